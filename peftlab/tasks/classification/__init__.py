"""Tasks on whole texts: classes, numbers, relations between two entities."""
