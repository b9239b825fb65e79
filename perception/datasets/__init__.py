"""Real data in its published layouts, as records to train on."""
