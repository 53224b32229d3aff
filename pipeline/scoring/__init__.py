"""Scores of restored images: what is paired with what, what is left to do, what it came to."""
