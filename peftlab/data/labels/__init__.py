"""Labels: what a source holds, and the names that a task learns."""
