"""How cells spell labels: lists, places, separators, numbers, words for none."""
