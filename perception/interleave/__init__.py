"""Interleaved reasoning (MINT-CoT, arXiv 2506.05331): steps that select visual tokens, in regions of any shape."""
