"""Weights that rest in 16 or 8 bits, arithmetic and activations in fp32."""
