"""The same input in train and in validation or test: counted, refused, or taken out of train.

Two rows have the same input where all their input columns agree after NFKC, without case, and with
white space folded. Inputs are compared as 64-bit hashes, so that memory does not grow with texts:
16 bytes a row. Rows repeated inside one split are left alone.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from peftlab.data.row_hashes import BESIDE, Hashes, RowHashes, hash_rows
from peftlab.errors import DataError

if TYPE_CHECKING:
    from peftlab.data.formats.row_format import RowFormat
    from peftlab.data.splits import Splits

logger = logging.getLogger("peftlab")

Policy = Literal["warn", "drop", "error"]

HELD_OUT = ("validation", "test")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows of a held-out `split` whose input stands in train too.

    `equal` of them have the answer of such a row of train, `differing` another; `train` are the
    indices of those rows of train, `copies` [train] the index in `split` of one with its input.
    """

    split: str
    total: int
    equal: int
    differing: int
    train: NDArray[np.int64]
    copies: NDArray[np.int64]

    @property
    def count(self) -> int:
        return self.equal + self.differing


def check_duplicates(splits: Splits, form: RowFormat, policy: Policy) -> Splits:
    """The splits; with drop, without the rows of train that a held-out split has too.

    Raises `DataError` with the policy error, and where dropping would leave no row of a class.
    """
    held_out = {name: getattr(splits, name) for name in HELD_OUT}
    if all(rows is None for rows in held_out.values()):
        return splits
    hashed = hash_rows(splits.train, form)
    found = [
        shared
        for name, rows in held_out.items()
        if rows is not None and (shared := _shared(name, hashed, hash_rows(rows, form))).count
    ]
    if not found:
        return splits
    lines = [_described(splits, shared) for shared in found]
    if policy == "error":
        raise DataError(
            "\n".join([*lines, "Take them out of one of the two, or set data.duplicates to drop "
                               "(the copies in train) or warn."])
        )  # fmt: skip
    if policy == "warn":
        for line in lines:
            logger.warning("%s; data.duplicates=drop takes the copies out of train", line)
        return splits
    reasons: dict[int, str] = {}
    for shared in found:
        for index, copy in zip(shared.train.tolist(), shared.copies.tolist(), strict=True):
            place = splits.location(shared.split, copy)
            reasons.setdefault(index, f"{shared.split} has the same input: {place!r}")
    for line in lines:
        logger.warning("%s", line)
    logger.warning(
        "train: %d of %d rows are left out (data.duplicates=drop)", len(reasons), len(splits.train)
    )
    return splits.without("train", reasons)


def _described(splits: Splits, shared: Shared) -> str:
    text = _example(splits, shared)
    answers = [
        f"{count} with {what}"
        for count, what in ((shared.equal, "the same answer"), (shared.differing, "another answer"))
        if count
    ]
    first, copy = int(shared.train[0]), int(shared.copies[0])
    return (
        f"{shared.split}: {shared.count} of {shared.total} inputs "
        f"({shared.count / shared.total:.1%}) are in train too, {' and '.join(answers)} (such as "
        f"{splits.location(shared.split, copy)} = {splits.location('train', first)}: {text})"
    )


def _example(splits: Splits, shared: Shared) -> str:
    row = splits.train[int(shared.train[0])]
    text = next((value for name, value in row.items() if name not in BESIDE), "")
    return repr(text if isinstance(text, str) else json.dumps(text, ensure_ascii=False))[:_SHOWN]


def _shared(split: str, train: RowHashes, rows: RowHashes) -> Shared:
    present = _found(rows.inputs, train.inputs)
    equal = present & _found(rows.whole, train.whole)
    copied = np.flatnonzero(_found(train.inputs, rows.inputs))
    order = np.argsort(rows.inputs, kind="stable")
    at = np.searchsorted(rows.inputs, train.inputs[copied], sorter=order)
    return Shared(
        split, len(present), int(equal.sum()), int(present.sum() - equal.sum()), copied, order[at]
    )


def _found(hashes: Hashes, among: Hashes) -> NDArray[np.bool_]:
    """Whether each hash is among others. numpy's `isin` takes several times as long."""
    known = np.sort(among)
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    found: NDArray[np.bool_] = known[at] == hashes
    return found
