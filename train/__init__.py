"""Training recipes, run from a checkout with `python -m train.X`. They share one loop, `train.loop.fit`."""
