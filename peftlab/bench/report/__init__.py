"""A comparison's report: JSON, Markdown and a self-contained page with its figures."""
