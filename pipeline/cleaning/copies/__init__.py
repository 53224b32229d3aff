"""Copies of an image among a million: prints, the search, the comparison, groups."""
