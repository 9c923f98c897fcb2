"""Files of annotated text: tagged tokens, marked relations, standoff spans, parallel lines."""
