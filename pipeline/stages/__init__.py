"""The work itself, one stage a file; no scheduling inside."""
