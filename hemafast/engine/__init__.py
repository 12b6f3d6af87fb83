"""Batches in, checkpoints and logs out."""
