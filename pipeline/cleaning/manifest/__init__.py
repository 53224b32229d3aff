"""Reading the record of a cleaning run: questions, lists, coverage."""
