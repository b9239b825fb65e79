"""Interleaved solutions: MINT-CoT's published layout, and making it from images with solutions."""
