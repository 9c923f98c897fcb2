"""The loss of a language model without its whole logits."""
