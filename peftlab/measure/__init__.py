"""What a run costs: peak memory by part, the allocator that shapes it, the machine it ran on."""
