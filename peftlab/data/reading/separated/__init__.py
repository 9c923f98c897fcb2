"""Separated values: the separator and the quoting by complete rows, the header, the rows."""
