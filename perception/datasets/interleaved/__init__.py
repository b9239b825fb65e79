"""Interleaved solutions: MINT-CoT's published layout, and a pipeline that makes them from solved questions."""
