"""A column that says which split each row is of."""

from __future__ import annotations

import logging
from collections import Counter

from peftlab.data.reading.raw_splits import RawSplit
from peftlab.data.reading.split_names import exact_split
from peftlab.data.reading.views import rows_where
from peftlab.errors import ConfigError, DataError, did_you_mean

logger = logging.getLogger("peftlab")

_MOST_SPLITS = 20


def by_column(raw: RawSplit, column: str | None) -> dict[str, RawSplit] | None:
    """The rows of a table by the values of a column; None where it has no such column.

    `column` is `data.splits.column`: auto takes a column called split that has the usual names.
    Raises `DataError`, also where the values leave open whether they are splits.
    """
    if column is None:
        return None
    auto = column == "auto"
    name = _usual_column(raw) if auto else column
    if name is None:
        return None
    if name not in raw.columns:
        hint = did_you_mean(name, raw.columns) or ";"
        raise ConfigError(
            f"data.splits.column={name} is no column of {raw.where}{hint} its columns are "
            f"{', '.join(raw.columns[:12])}."
        )
    counts = Counter(record.get(name) for _, record in raw.rows([name]))
    values = {value: exact_split(value) if isinstance(value, str) else None for value in counts}
    shown = ", ".join(f"{value} ({count})" for value, count in counts.most_common(8))
    if auto and "train" not in values.values():
        return None
    if auto and None in values.values():
        raise DataError(
            f"{raw.where} has a column {name!r} with the values {shown}, which are not all names "
            f"of splits. Set data.splits.column={name} if it says which rows train and test (those "
            "of other values are then left out), or data.splits.column=null if all rows train."
        )
    if len(counts) > _MOST_SPLITS:
        raise DataError(
            f"{raw.where}: column {name!r} (data.splits.column) has {len(counts):,} values, more "
            f"than {_MOST_SPLITS} splits."
        )
    logger.info("%s: column %r says which split a row is of: %s%s", raw.where, name, shown,
                " (data.splits.column=null reads all rows as train)" if auto else "")  # fmt: skip
    return {str(value): rows_where(raw, name, value) for value in counts}


def _usual_column(raw: RawSplit) -> str | None:
    return next((name for name in raw.columns if name.lower() == "split"), None)
