"""Hashes of rows: 64 bits for a row's input, and for its input and answer."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import datasets
    import pyarrow

    from peftlab.data.formats.row_format import RowFormat

Hashes = NDArray[np.int64]

BESIDE = frozenset({"id", "prompt_messages"})
"""Columns of checked rows that are neither what is read nor what is answered."""

_BATCH = 10_000
# White space of an ASCII text that folding would change.
_UNFOLDED = r"  |^ | $|[\x00-\x1f]"


@dataclass(frozen=True, slots=True)
class RowHashes:
    """A hash of each row's input, and of its input with its answer: [rows] each."""

    inputs: Hashes
    whole: Hashes


def hash_rows(rows: datasets.Dataset, form: RowFormat) -> RowHashes:
    """Inputs are equal where all their columns are after `folded`; answers as they are.

    The answer of a conversation is what the assistant says last; the rest is its input.
    """
    answers = form.targets | {form.labels} | BESIDE
    # Of the format, not of the split: a column that a split does not have is empty there.
    inputs = [name for name in form.gives if name not in answers]
    rest = [name for name in rows.column_names if name not in {*inputs, *BESIDE}]
    present = [name for name in (*inputs, *rest) if name in rows.column_names]
    hashed = np.empty((2, len(rows)), dtype=np.int64)
    at = 0
    for batch in rows.select_columns(present).with_format("arrow").iter(batch_size=_BATCH):
        count = batch.num_rows
        read: list[list[str]] = []
        answered = [[*map(_text, batch[name].to_pylist())] for name in rest]
        for name in inputs:
            if name not in present:
                read.append([""] * count)
            elif name == "messages":
                asked, said = zip(*map(_turns, batch[name].to_pylist()), strict=True)
                read.append([*map(fold, asked)])
                answered.append(list(said))
            else:
                read.append(folded(batch[name]))
        keys = [*map(hash, read[0] if len(read) == 1 else zip(*read, strict=True))]
        hashed[0, at : at + count] = keys
        hashed[1, at : at + count] = [*map(hash, zip(keys, *answered, strict=True))]
        at += count
    return RowHashes(hashed[0], hashed[1])


def folded(column: pyarrow.ChunkedArray) -> list[str]:
    """`fold` of every value; missing ones are empty, others than text are their JSON."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return [fold(_text(value)) for value in column.to_pylist()]
    texts: list[str] = pc.fill_null(pc.ascii_lower(column), "").to_pylist()
    # Most texts are folded already but for case: Arrow finds the others quicker than Python.
    unfolded = pc.or_(
        pc.invert(pc.string_is_ascii(column)), pc.match_substring_regex(column, _UNFOLDED)
    )
    at = np.flatnonzero(pc.fill_null(unfolded, False).to_numpy())
    for index, text in zip(at.tolist(), column.take(at).to_pylist(), strict=True):
        texts[index] = fold(text)
    return texts


def fold(text: str) -> str:
    """Texts that differ in case, white space or compatible characters (NFKC) are one."""
    text = text.lower() if text.isascii() else _compatible(_compatible(text).casefold())
    # No space is printable but the plain one.
    if text.isprintable() and "  " not in text and not text.startswith(" ") and text[-1:] != " ":
        return text
    return " ".join(text.split())


def _compatible(text: str) -> str:
    # The check is quick, and most texts pass it.
    if unicodedata.is_normalized("NFKC", text):
        return text
    return unicodedata.normalize("NFKC", text)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, sort_keys=True)


def _turns(messages: str) -> tuple[str, str]:
    """A conversation up to its last answer, and the rest."""
    turns = json.loads(messages)
    count = len(turns)
    while count and turns[count - 1].get("role") == "assistant":
        count -= 1
    asked = "\0".join(_text(value) for turn in turns[:count] for value in turn.values())
    return asked, json.dumps(turns[count:])
