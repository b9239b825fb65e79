"""Models in training: parts, adapters, losses, saving."""
