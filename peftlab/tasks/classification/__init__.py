"""Texts as wholes: classes, scores, relations between two entities."""
