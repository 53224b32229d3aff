"""Faces in photos: alignment to the FFHQ template."""
