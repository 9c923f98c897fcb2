"""Exporting a run: which form of its base, verified, as safetensors or GGUF."""
