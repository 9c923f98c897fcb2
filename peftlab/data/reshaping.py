"""Rows of a format that joins, leaves out or converts rows become rows of a plainer format."""

from __future__ import annotations

from collections.abc import Mapping

from peftlab.data.columns import Layout, columns_of_split
from peftlab.data.reading.raw_splits import RawSplit


def reshape(opened: Mapping[str, RawSplit], layout: Layout) -> tuple[dict[str, RawSplit], Layout]:
    """The splits and their layout as tasks read them; unchanged for most formats.

    Raises `DataError`.
    """
    form = layout.format
    if form.becomes is None:
        return dict(opened), layout
    shaped = {
        split: form.reshape(part, columns_of_split(layout, part.columns, part.where))
        for split, part in opened.items()
    }
    plain = form.becomes()
    available = shaped["train"].columns
    columns = {role: role for role in plain.roles if role in available}
    return shaped, Layout(plain, tuple(plain.roles), columns, layout.name, layout.columns)
