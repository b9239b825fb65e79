"""Models for training: parts, adapters, losses, saving."""
