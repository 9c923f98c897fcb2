"""L1, L2 and L2-SP: what is penalised, and how an optimizer step does it."""
