"""A benchmark: which data sets, which methods, where they lie, what they cost."""
