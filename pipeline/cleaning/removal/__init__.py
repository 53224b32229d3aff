"""A removal request: what goes, what is left, and the proof."""
