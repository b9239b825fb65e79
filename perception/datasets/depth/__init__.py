"""Depth maps: files, tables, pairs with images, codes, questions about them."""
