"""Texts with marked spans: entities as annotation tools export them."""
