"""Answers as spans of a context: windows, spans, SQuAD's metrics."""
