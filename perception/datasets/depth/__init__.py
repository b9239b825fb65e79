"""Depth maps: reading them from files and tables, pairing them with images, tokenising them, asking about them."""
