"""Cleaning a data set of faces: what is measured, decided, verified and recorded of every image."""
