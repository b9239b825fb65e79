"""Batches: what a training step sees."""
