"""LoRA and frozen linear layers over bitsandbytes' 8-bit weights."""
