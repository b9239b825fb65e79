"""Pictures of what a recipe has learned or labelled."""
