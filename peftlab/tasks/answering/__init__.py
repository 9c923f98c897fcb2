"""Answers found in a context: windows, spans, SQuAD's metrics."""
