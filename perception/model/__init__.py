"""`PerceptionModel` and what it needs of transformers: folders, processors, pictures."""
