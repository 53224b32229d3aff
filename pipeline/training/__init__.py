"""Batches for training, read from shards."""
