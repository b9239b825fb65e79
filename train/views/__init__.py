"""Pictures of what a recipe learns or labels."""
