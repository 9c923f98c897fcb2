"""Features of the frozen part, computed once: where they are kept and when they hold."""
