"""Which parameters train: one class a method, and what they share."""
