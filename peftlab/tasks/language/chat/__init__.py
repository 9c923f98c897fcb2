"""Conversations: templates, turns, what of them trains."""
