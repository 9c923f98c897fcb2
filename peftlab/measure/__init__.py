"""The cost of a run: peak memory by part, the allocator behind it, and the machine."""
