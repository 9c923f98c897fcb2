"""From text to a checked configuration: YAML, overrides, problems, and back to text."""
