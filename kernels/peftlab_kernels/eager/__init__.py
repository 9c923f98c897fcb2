"""The torch backend: 16 and 32 bits, and 8 bits by an integer engine. The twin of `triton/`."""
