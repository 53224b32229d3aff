"""Metrics of restored faces, one family a file; `table.METRICS` says what each one is."""
