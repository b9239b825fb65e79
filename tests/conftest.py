"""Tests are hermetic: a model that is not on disk fails at once instead of asking the hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before any test module
