"""Real data in its published layout."""
