"""Labels of words: rows of tags, spans, word pieces."""
