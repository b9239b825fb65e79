"""The recipes: `python -m train.X`, from a checkout. One loop (`train.loop`) runs them all."""
