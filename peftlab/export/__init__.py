"""Merged models: read by tensor, written by shard, and proven before they are named."""
