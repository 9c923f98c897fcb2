"""Kernels of peftlab: torch and Triton only, nothing of PEFT or Transformers."""
