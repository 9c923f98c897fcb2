"""The loss of a language model without materialising all logits."""
