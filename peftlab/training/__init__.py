"""Training by transformers.Trainer, with a loss that is independent of accumulation."""
