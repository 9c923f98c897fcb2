"""Where the labels of a source and their names are: columns, a column of names, declarations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from peftlab.config.tasks.options import LabelKind
from peftlab.data.columns import Layout
from peftlab.data.labels.label_columns import (
    check_names,
    find_label_columns,
    join_columns,
    joined_name,
)
from peftlab.data.labels.spelling.request import LabelRequest
from peftlab.data.labels.text_column import names_beside
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.errors import ConfigError


def with_label_columns(
    opened: Mapping[str, RawSplit], columns: Mapping[str, str | Sequence[str]], kind: LabelKind
) -> tuple[dict[str, RawSplit], dict[str, str]]:
    """The splits with a column a label joined into one column, and the configured columns.

    Without `columns.label`, columns of 0 and 1 are found where they alone stand beside a text and
    the labels may be several (`kind` auto or many). Raises `ConfigError` for a list of columns in
    another role, `DataError` for a column that a split does not have.
    """
    several = {role: names for role, names in columns.items() if not isinstance(names, str)}
    one = {role: name for role, name in columns.items() if isinstance(name, str)}
    for role in several:
        if role != "label" or kind not in ("auto", "many", "one"):
            raise ConfigError(
                f"data.columns.{role} is a list of columns; only the label of a classification "
                "may be in several."
            )
    names: Sequence[str] | None = several.get("label")
    if names is not None:
        check_names(names)
    elif kind in ("auto", "many"):
        names = find_label_columns(opened["train"], one)
    if names is None:
        return dict(opened), one
    joined = joined_name(names, [column for raw in opened.values() for column in raw.columns])
    parts = {split: join_columns(raw, names, joined) for split, raw in opened.items()}
    return parts, one | {"label": joined}


def named_labels(
    opened: Mapping[str, RawSplit],
    layout: Layout,
    request: LabelRequest,
    label_names: Sequence[str] | None,
    in_file: tuple[str, ...] | None,
    file: str,
) -> tuple[LabelRequest, Layout]:
    """The request with the labels' names, and the layout, whose label column may be their names.

    Names are those configured, else a ClassLabel's, else those of `labels.json`, else those of a
    column beside numbers, such as `label_text`. Raises `ConfigError` for a name that is configured
    twice.
    """
    role = layout.format.labels
    column = None if role is None else layout.columns.get(role)
    if column is None or role is None or request.kind == "number":
        return request, layout
    classes = opened["train"].class_names.get(column)
    if label_names is not None:
        named = tuple(label_names)
        twice = next((name for name, count in Counter(named).items() if count > 1), None)
        if twice is not None:
            raise ConfigError(f"data.label_names names {twice!r} twice.")
        encoded = classes is not None
        return replace(request, declared=named, origin="data.label_names", encoded=encoded), layout
    if classes is not None:
        where = "the ClassLabel column"
        return replace(request, declared=classes, origin=where, encoded=True), layout
    if in_file is not None:
        return replace(request, declared=in_file, origin=file), layout
    if request.tags or (beside := names_beside(opened, column)) is None:
        return request, layout
    text_column, names = beside
    columns = {**layout.columns, role: text_column}
    where = f"the column {text_column!r}"
    return replace(request, declared=names, origin=where), replace(layout, columns=columns)
