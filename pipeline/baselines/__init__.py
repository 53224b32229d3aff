"""Restorers that are not ours, behind the protocol of our own: baselines of an evaluation."""
