"""What LoRA's keys name in a model, and what its factors start from."""
