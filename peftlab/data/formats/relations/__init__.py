"""Published forms of relations, each read as rows of `relation`."""
