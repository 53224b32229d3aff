"""A local page to look through what a cleaning run did, and to overrule it."""
