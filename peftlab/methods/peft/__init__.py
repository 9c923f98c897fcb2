"""Method `peft`: any adapter of the installed PEFT but LoRA."""
