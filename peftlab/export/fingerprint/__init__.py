"""Fingerprints of a base: what of it is hashed, taken and compared."""
