"""The trial of a model on a set's own faces, and what may be restored by it."""
