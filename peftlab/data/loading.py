"""From a source to checked splits: find files, choose columns, check values, split, sample."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from peftlab.data import duplicates as duplicates_of
from peftlab.data.bad_rows import BadRows, Dropped, Policy, log_dropped
from peftlab.data.column_file import columns_on_disk
from peftlab.data.columns import choose_layout, columns_of_split
from peftlab.data.formats.cells import Kind, arrow_type
from peftlab.data.labels.names import name_labels
from peftlab.data.labels.sources import named_labels, with_label_columns
from peftlab.data.labels.spelling.request import LabelRequest
from peftlab.data.labels.summary import summary
from peftlab.data.labels.values import LabelKind
from peftlab.data.opening import choose_splits, open_source
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.data.reading.views import with_paths
from peftlab.data.reshaping import reshape
from peftlab.data.rows import CheckedSplit, check_rows
from peftlab.data.slices import open_parts
from peftlab.data.source import Source
from peftlab.data.splits import Origin, Splits
from peftlab.data.splitting import Indices, sample, split_fraction
from peftlab.errors import ConfigError, DataError

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger("peftlab")

DEFAULT_VALIDATION_FRACTION = 0.1
_LOOKED_AT = 20
"""Rows that a format is recognised by."""


def load_splits(
    source: str | Source,
    *,
    formats: Sequence[str],
    roles: Sequence[str],
    label_kind: LabelKind = "one",
    columns: Mapping[str, str | Sequence[str]] | None = None,
    label_names: Sequence[str] | None = None,
    label_separator: str | None = "auto",
    train: str = "train",
    validation: str | float = "auto",
    test: str | None = "auto",
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 42,
    streaming: bool = False,
    on_bad_rows: Policy = "error",
    duplicates: duplicates_of.Policy = "warn",
) -> Splits:
    """Load and check a local file, a folder of split files, or a hub data set.

    A `source` that is text is its place; `columns` are then those that the source would name.
    `formats` are tried in this order where the source leaves its own open; `roles` are the column
    roles that the task reads. `label_kind` is the kind of a row's label, `label_names` are the
    names of 0, 1, ..., and `label_separator` stands between labels in a cell (auto: as the cells
    show; None: never). `columns` may name several columns for label, one a label.
    `validation` is a split's name, a fraction of train (0: none), or "auto": the split if it
    exists, else a tenth of train.
    With `streaming`, rows are read one by one and stored in files; samples are the first rows, and
    later rows are never read.
    `on_bad_rows`: drop leaves rows out that cannot be used, and records them in `Splits.dropped`.
    `duplicates`: what to do about inputs that train shares with another split.
    Raises `DataError` naming file, row or column, `ConfigError` for contradictory settings.
    """
    if isinstance(validation, int | float) and not 0 <= validation < 1:
        raise ConfigError(
            f"data.splits.validation={validation} is not a fraction of train; give a number "
            "between 0 and 1, or a split's name."
        )
    if isinstance(source, str):
        source = Source(source, columns=columns or {})
    raw, in_file, file = open_source(source, streaming=streaming)
    chosen = choose_splits(raw, source.place, train, validation, test)
    paths = {role: name for role, name in source.columns.items() if isinstance(name, str)}
    opened = {split: with_paths(part, paths) for split, part in open_parts(raw, chosen).items()}
    limits = {"train": max_train_samples, "validation": max_eval_samples, "test": max_eval_samples}
    fraction = DEFAULT_VALIDATION_FRACTION if isinstance(validation, str) else validation
    opened, explicit = with_label_columns(opened, source.columns, label_kind)
    train_part = opened["train"]
    layout = choose_layout(
        train_part.columns, explicit,
        formats if source.format == "auto" else (source.format,), train_part.where, roles=roles,
        first=partial(_first_rows, train_part),
    )  # fmt: skip
    opened, layout = reshape(opened, layout)
    if streaming:
        # The validation share of train comes on top of the training rows.
        taken = 0.0 if "validation" in opened else fraction
        wanted = None if max_train_samples is None else ceil(max_train_samples / (1 - taken))
        first_rows = limits | {"train": wanted}
        opened = {split: part.head(first_rows[split]) for split, part in opened.items()}
    request = LabelRequest(
        label_kind, label_separator, none_is_class=layout.format.name == "relation",
        tags=layout.format.labels == "tags",
    )  # fmt: skip
    request, layout = named_labels(opened, layout, request, label_names, in_file, file)
    mapping = {**layout.source, **layout.columns}
    checked: dict[str, CheckedSplit] = {}
    dropped = Dropped() if on_bad_rows == "drop" else None
    for split, part in opened.items():
        own = columns_of_split(layout, part.columns, part.where)
        mapping |= {role: column for role, column in own.items() if role not in mapping}
        with columns_on_disk(streaming):
            rows = check_rows(
                part, layout, own, request=request,
                label_form=None if split == "train" else checked["train"].form,
                may_lack_labels=split == "test" and test == "auto",
                drop=None if dropped is None else partial(dropped.add, split),
            )  # fmt: skip
        if rows is None:
            logger.warning("%s: no row has a label; there will be no test split", part.where)
        else:
            checked[split] = rows
    if checked["train"].count < 2:
        raise DataError(f"{opened['train'].where} has one row; training needs at least two.")
    names_in_order, labels = None, dict[str, Any]()
    form = checked["train"].form
    kind: LabelKind = label_kind if form is None else form.kind
    if form is not None and kind == "number":
        labels = {split: rows.labels for split, rows in checked.items()}
    elif form is not None:
        label_column = mapping[str(layout.format.labels)]
        names_in_order, labels = _name_labels(checked, request, label_column, dropped)
    keep: dict[str, Indices | None] = dict.fromkeys(checked)
    names = {split: rows.raw.where for split, rows in checked.items()}
    if "validation" not in checked and fraction > 0:
        keep["train"], keep["validation"] = split_fraction(
            checked["train"].count, fraction, seed, labels.get("train") if kind == "one" else None
        )
        checked["validation"], names["validation"] = (
            checked["train"],
            (f"{fraction:g} of {names['train']}"),
        )
        if "train" in labels:
            labels["validation"] = labels["train"]
    for split, rows in checked.items():
        mine = [] if dropped is None else [row for row in dropped.rows if row.split == split]
        log_dropped(split, mine, rows.count + len(mine))
    built: dict[str, datasets.Dataset] = {}
    origins: dict[str, Origin] = {}
    for stream, (split, rows) in enumerate(checked.items(), start=1):
        kept = _kept(rows.count, keep[split], limits[split], seed, stream)
        built[split] = _build(rows, layout.format.labels, labels.get(split), kept, streaming)
        numbers = np.asarray(rows.numbers, dtype=np.int64)
        origins[split] = Origin(rows.raw.location, numbers if kept is None else numbers[kept])
    if names_in_order is not None and kind == "one":
        _check_train(built["train"], names["train"])
    splits = Splits(
        built["train"], built.get("validation"), built.get("test"), source.place, names, mapping,
        names_in_order, layout.name, kind, origins=origins,
        dropped=() if dropped is None else tuple(dropped.rows),
        names_declared=request.declared is not None
        or (form is not None and form.names is not None),
    )  # fmt: skip
    splits = duplicates_of.check_duplicates(splits, layout.format, duplicates)
    if form is None:
        return splits
    column = mapping[str(layout.format.labels)]
    understood = summary(splits.train, form, names_in_order, column)
    logger.info("%s", understood)
    return replace(splits, understood=understood)


def _name_labels(
    checked: dict[str, CheckedSplit], request: LabelRequest, column: str, dropped: Dropped | None
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """`name_labels`, of the rows that have a name where others are `dropped`."""
    while True:
        try:
            return name_labels(checked, request, column)
        except BadRows as bad:
            split = str(bad.split)
            rows = checked[split]
            if dropped is None or len(bad.reasons) == rows.count:
                raise bad.located(rows.location, rows.count) from None
            for index, why in sorted(bad.reasons.items()):
                dropped.add(split, rows.location(index), why, rows.row(index))
            checked[split] = rows.without(bad.reasons)


def _first_rows(part: RawSplit, columns: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    return [record for _, record in islice(part.rows(columns), _LOOKED_AT)] or [{}]


def _kept(
    count: int, keep: Indices | None, limit: int | None, seed: int, stream: int
) -> Indices | None:
    """The rows of `keep`, or all of `count`, that are drawn; None: all."""
    drawn = sample(count if keep is None else len(keep), limit, seed, stream)
    if drawn is None:
        return keep
    return drawn if keep is None else keep[drawn]


def _build(
    rows: CheckedSplit,
    role: str | None,
    labels: list[Any] | None,
    kept: Indices | None,
    on_disk: bool,
) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    columns: dict[str, pa.ChunkedArray | pa.Array] = dict(rows.columns)
    if labels is not None and role is not None:
        kinds: dict[LabelKind, Kind] = {"one": "text", "many": "texts", "number": "number"}
        columns[role] = pa.array(labels, arrow_type(kinds[rows.kind]))
    whole = datasets.Dataset.from_dict(columns)
    if kept is None:
        return whole
    if on_disk:
        return whole.select(kept)
    # Copied rows: reading through indices is several times slower.
    return datasets.Dataset.from_dict({n: c.take(kept) for n, c in columns.items()})


def _check_train(rows: datasets.Dataset, where: str) -> None:
    present = set(rows.select_columns("label")[:]["label"])
    if len(present) < 2:
        raise DataError(
            f"{where}: every training row has the label {next(iter(present))!r}; a classifier "
            "needs at least two."
        )
