"""Language models: rows, encoding, packing, generation, metrics."""
