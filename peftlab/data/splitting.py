"""Seeded draws: a validation share, stratified by label, and samples of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def split_fraction(
    count: int, fraction: float, seed: int, labels: Sequence[str] | None = None
) -> tuple[Indices, Indices]:
    """Indices of train and of validation, each ascending and with at least one row of `count` >= 2.

    With labels, the draw is stratified as nearly as whole rows allow, and a label's last row stays
    in train while another label can give one.
    """
    wanted = min(max(1, round(fraction * count)), count - 1)
    order = np.random.default_rng([seed, 0]).permutation(count)
    if labels is None:
        held_out = order[:wanted]
    else:
        _, codes = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
        held_out = _stratified(order, codes, wanted)
    is_validation = np.zeros(count, dtype=bool)
    is_validation[held_out] = True
    return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)


def _stratified(order: Indices, codes: NDArray[np.intp], wanted: int) -> Indices:
    sizes = np.bincount(codes)
    share = sizes * (wanted / len(codes))
    quota = np.minimum(share.astype(np.int64), np.maximum(sizes - 1, 0))
    # Largest remainders first; ties fall to the larger class, then to the first in order.
    while (short := wanted - int(quota.sum())) > 0:
        spare = sizes - quota
        open_classes = np.flatnonzero(spare > 1)
        if len(open_classes) == 0:
            open_classes = np.flatnonzero(spare > 0)
        ranked = open_classes[np.lexsort((-sizes[open_classes], (quota - share)[open_classes]))]
        quota[ranked[:short]] += 1
    ordered_codes = codes[order]
    rank = np.empty(len(order), dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    rank[np.argsort(ordered_codes, kind="stable")] = np.arange(len(order)) - np.repeat(
        starts, sizes
    )
    return order[rank < quota[ordered_codes]]


def sample(count: int, limit: int | None, seed: int, stream: int) -> Indices | None:
    """Ascending indices of `limit` rows drawn from `count`; None to keep all."""
    if limit is None or limit >= count:
        return None
    drawn = np.random.default_rng([seed, stream]).permutation(count)[:limit]
    return np.sort(drawn)
