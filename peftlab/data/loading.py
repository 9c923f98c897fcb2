"""From a source to checked splits: find files, choose columns, check values, split, sample."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

from peftlab.data.column_file import columns_on_disk
from peftlab.data.columns import choose_layout, columns_of_split
from peftlab.data.formats.cells import Kind, arrow_type
from peftlab.data.labels.names import name_labels
from peftlab.data.labels.values import LabelKind
from peftlab.data.opening import choose_splits, open_source
from peftlab.data.reading.raw_splits import RawSplit
from peftlab.data.rows import CheckedSplit, check_rows
from peftlab.data.source import Source
from peftlab.data.splits import Splits
from peftlab.data.splitting import Indices, sample, split_fraction
from peftlab.errors import ConfigError, DataError

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger("peftlab")

DEFAULT_VALIDATION_FRACTION = 0.1


def load_splits(
    source: str | Source,
    *,
    formats: Sequence[str],
    roles: Sequence[str],
    label_kind: LabelKind = "one",
    columns: Mapping[str, str] | None = None,
    train: str = "train",
    validation: str | float = "auto",
    test: str | None = "auto",
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    seed: int = 42,
    streaming: bool = False,
) -> Splits:
    """Load and check a local file, a folder of split files, or a hub data set.

    A `source` that is text is its place; `columns` are then those that the source would name.
    `formats` are tried in this order where the source leaves its own open; `roles` are the column
    roles that the task reads; `label_kind` is the kind of a row's label. `validation` is a split's
    name, a fraction of train (0: none), or "auto": the split if it exists, else a tenth of train.
    With `streaming`, rows are read one by one and stored in files; samples are the first rows, and
    later rows are never read.
    Raises `DataError` naming file, row or column, `ConfigError` for contradictory settings.
    """
    if isinstance(validation, int | float) and not 0 <= validation < 1:
        raise ConfigError(
            f"data.splits.validation={validation} is not a fraction of train; give a number "
            "between 0 and 1, or a split's name."
        )
    if isinstance(source, str):
        source = Source(source, columns=columns or {})
    raw, declared, label_origin = open_source(source, streaming=streaming)
    chosen = choose_splits(raw, source.place, train, validation, test)
    opened = {split: raw[name]() for split, name in chosen.items()}
    limits = {"train": max_train_samples, "validation": max_eval_samples, "test": max_eval_samples}
    fraction = DEFAULT_VALIDATION_FRACTION if isinstance(validation, str) else validation
    if streaming:
        # The validation share of train comes on top of the training rows.
        taken = 0.0 if "validation" in opened else fraction
        wanted = None if max_train_samples is None else ceil(max_train_samples / (1 - taken))
        first_rows = limits | {"train": wanted}
        opened = {split: part.head(first_rows[split]) for split, part in opened.items()}
    train_part = opened["train"]
    layout = choose_layout(
        train_part.columns, source.columns,
        formats if source.format == "auto" else (source.format,), train_part.where, roles=roles,
        first=partial(_first_row, train_part),
    )  # fmt: skip
    kind: LabelKind = "many" if layout.format.labels == "tags" else label_kind
    mapping = dict(layout.columns)
    checked: dict[str, CheckedSplit] = {}
    for split, part in opened.items():
        own = columns_of_split(layout, part.columns, part.where)
        mapping |= {role: column for role, column in own.items() if role not in mapping}
        with columns_on_disk(streaming):
            rows = check_rows(
                part, layout, own, label_kind=kind,
                may_lack_labels=split == "test" and test == "auto",
            )  # fmt: skip
        if rows is None:
            logger.warning("%s: no row has a label; there will be no test split", part.where)
        else:
            checked[split] = rows
    if checked["train"].count < 2:
        raise DataError(f"{opened['train'].where} has one row; training needs at least two.")
    label_names, labels = None, dict[str, Any]()
    kind = _one_kind(checked)
    if kind == "number":
        labels = {split: rows.labels for split, rows in checked.items()}
    elif layout.format.labels in mapping:
        declared_here = opened["train"].class_names.get(mapping[str(layout.format.labels)])
        if declared_here is not None:
            declared, label_origin = declared_here, "the ClassLabel column"
        label_names, labels = name_labels(checked, declared, label_origin)
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
    built = {
        split: _build(
            rows,
            layout.format.labels,
            labels.get(split),
            keep[split],
            limits[split],
            seed,
            stream,
            streaming,
        )
        for stream, (split, rows) in enumerate(checked.items(), start=1)
    }
    if label_names is not None and kind == "one":
        _check_train(built["train"], names["train"])
    return Splits(
        built["train"], built.get("validation"), built.get("test"), source.place, names, mapping,
        label_names, layout.format.name, kind,
    )  # fmt: skip


def _first_row(part: RawSplit, columns: Sequence[str]) -> Mapping[str, Any]:
    return next((record for _, record in part.rows(columns)), {})


def _one_kind(checked: Mapping[str, CheckedSplit]) -> LabelKind:
    """The common kind of labels. Raises `DataError` where only some splits have lists."""
    kinds = {rows.kind for rows in checked.values()}
    if len(kinds) > 1:
        described = ", ".join(f"{rows.raw.where}: {rows.kind}" for rows in checked.values())
        raise DataError(f"labels are lists in one split and not in another ({described}).")
    return kinds.pop()


def _build(
    rows: CheckedSplit,
    role: str | None,
    labels: list[Any] | None,
    keep: Indices | None,
    limit: int | None,
    seed: int,
    stream: int,
    on_disk: bool,
) -> datasets.Dataset:
    import datasets
    import pyarrow as pa

    columns: dict[str, pa.ChunkedArray | pa.Array] = dict(rows.columns)
    if labels is not None and role is not None:
        kinds: dict[LabelKind, Kind] = {"one": "text", "many": "texts", "number": "number"}
        columns[role] = pa.array(labels, arrow_type(kinds[rows.kind]))
    drawn = sample(rows.count if keep is None else len(keep), limit, seed, stream)
    if keep is not None and drawn is not None:
        drawn = keep[drawn]
    kept = keep if drawn is None else drawn
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
