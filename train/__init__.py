"""The recipes: `python -m train.X`, from a checkout. One loop (`train.loop.fit`) runs them all."""
