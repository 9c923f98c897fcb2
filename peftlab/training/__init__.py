"""Training by transformers.Trainer, with a loss that accumulation cannot change."""
