"""Merged models: read tensor by tensor, written shard by shard, and proven before they are named."""
