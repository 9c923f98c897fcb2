"""Intervals and correlations of metrics."""
