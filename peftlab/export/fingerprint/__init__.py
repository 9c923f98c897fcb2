"""Fingerprints of a base: what is hashed, recorded and compared."""
