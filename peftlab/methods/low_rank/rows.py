"""Rows of embeddings that train, in an adapter's file and in a model: by table and token id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel

from peftlab.errors import CheckFailed
from peftlab.methods.targets import matches
from peftlab.model.structure import input_embeddings

Tables = Mapping[str, Sequence[int]]
"""Ids of the rows that train, by a table's whole name, in the order of the rows on disk."""

_PART = ".token_adapter.trainable_tokens_delta"


class RowTables:
    """The tables of a model, by whatever names an adapter's configuration gives them."""

    def __init__(self, model: PeftModel) -> None:
        base = model.get_base_model()
        self._names = [name for name, _ in base.named_modules() if name]
        own = input_embeddings(base)
        self._own = next(name for name, module in base.named_modules() if module is own)

    def of(self, indices: Any) -> dict[str, list[int]]:
        """`trainable_token_indices`, of which a list means the input embeddings."""
        if not indices:
            return {}
        given = indices if isinstance(indices, dict) else {self._own: indices}
        return {self._whole(name): list(ids) for name, ids in given.items()}

    def _whole(self, name: str) -> str:
        if name in self._names:
            return name
        return next((known for known in self._names if matches(known, name)), name)

    def placed(
        self,
        saved: Mapping[str, torch.Tensor],
        mine: Mapping[str, torch.Tensor],
        then: Tables,
        now: Tables,
    ) -> dict[str, torch.Tensor]:
        """`saved` with its rows at their tokens' places in `mine`; tokens it lacks keep theirs.

        Raises `CheckFailed` where the file has other rows than its configuration names.
        """
        placed = dict(saved)
        for key, tensor in mine.items():
            if not key.endswith(_PART):
                continue
            table = key.removeprefix("base_model.model.").removesuffix(_PART)
            # A tied table has the rows of the input embeddings without being named.
            had = list(then.get(table, then.get(self._own, ())))
            has = list(now.get(table, now.get(self._own, ())))
            if len(saved.get(key, ())) != len(had):
                raise CheckFailed(
                    f"the adapter's file has {len(saved.get(key, ()))} rows of {table}, and its "
                    f"configuration names {len(had)}; save it again."
                )
            rows = tensor.detach().clone()
            common = [token for token in has if token in had]
            if common and not rows.is_meta:
                old = saved[key][[had.index(token) for token in common]]
                rows[[has.index(token) for token in common]] = old.to(rows)
            placed[key] = rows
        return placed
