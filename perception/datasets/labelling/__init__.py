"""Images labelled by teachers: models that give depth maps and boxes."""
