"""Names and ids of perception tokens, spans of them, and their rows in a model."""
