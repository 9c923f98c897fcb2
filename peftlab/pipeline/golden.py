"""Golden examples: a few rows, their token ids and the trained model's logits, kept in the record.

Whatever opens the run again replays them first: what answers is then known to be what was trained,
its tokenizer, its templates and its weights, and not something that became of them since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftlab.errors import CheckFailed, DataError

if TYPE_CHECKING:
    import datasets
    import torch
    from torch import nn

    from peftlab.tasks.task import Task

_ROWS = 3
_AMONG = 200
"""Rows that the examples are the shortest of: the record stays small."""
_POSITIONS = 3
_TOP = 5
# Shares of the largest logit, which counts as the second number at least.
_SAME = 2e-3, 0.05
"""Of fp32 arithmetic on the same kind of device: threads and kernels sum in other orders."""
_ROUNDED = 0.1, 1.0
"""Of 16-bit arithmetic, or on another kind of device than the run was trained on."""
_SETTINGS = (
    "bos_token", "bos_token_id", "eos_token", "eos_token_id", "pad_token", "pad_token_id",
    "padding_side", "truncation_side",
)  # fmt: skip


def policy(tokenizer: Any) -> dict[str, Any]:
    """What of a tokenizer no ids of whole rows tell: padding, the ends, the chat template."""
    found: dict[str, Any] = {name: getattr(tokenizer, name, None) for name in _SETTINGS}
    template = getattr(tokenizer, "chat_template", None)
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    found["chat_template"] = (
        None if template is None else hashlib.sha256(text.encode()).hexdigest()[:16]
    )
    return found


def record_golden(
    task: Task,
    model: nn.Module,
    tokenizer: Any,
    rows: datasets.Dataset,
    *,
    max_length: int,
    compute: torch.dtype,
    rounded: bool = False,
) -> dict[str, Any]:
    """The examples of a trained model, drawn from checked rows; JSON values.

    `rounded`: what is saved computes the same but for a rounding of weights to 16 bits.
    """
    shortest = sorted(
        range(min(_AMONG, len(rows))), key=lambda i: len(json.dumps(rows[i], default=str))
    )
    examples: list[dict[str, Any]] = []
    for index in shortest:
        row = rows[index]
        try:
            encoded = _encoded(task, tokenizer, row, max_length)
        except DataError:
            continue  # Alone, this row leaves nothing to train on.
        logits = _logits(task, model, tokenizer, encoded, compute)
        examples.append({"row": row, "encoded": encoded, "logits": _top(logits)})
        if len(examples) == _ROWS:
            break
    return {
        "tokenizer": policy(tokenizer),
        "computed": _computed(model, compute) | ({"rounded": "yes"} if rounded else {}),
        "examples": examples,
    }


def check_tokenizer(
    golden: Mapping[str, Any], task: Task, tokenizer: Any, *, max_length: int, what: str
) -> None:
    """Raise `CheckFailed` where a tokenizer, `what`, makes other ids than the run's did."""
    now = policy(tokenizer)
    for name, was in golden["tokenizer"].items():
        if now.get(name) != was:
            raise CheckFailed(
                f"{what} has changed since training: its {name} was {was!r} and is "
                f"{now.get(name)!r}. Restore it, or train anew."
            )
    for example in golden["examples"]:
        try:
            encoded = _encoded(task, tokenizer, example["row"], max_length)
        except DataError as error:
            raise CheckFailed(f"{what} no longer reads {_named(example)}: {error}") from None
        for column, was in example["encoded"].items():
            if encoded.get(column) != was:
                raise CheckFailed(
                    f"{what} reads {_named(example)} otherwise than in training: "
                    f"{_difference(column, was, encoded.get(column))}. Restore it, or train anew."
                )


def check_logits(
    golden: Mapping[str, Any],
    task: Task,
    model: nn.Module,
    tokenizer: Any,
    *,
    compute: torch.dtype,
    what: str,
) -> None:
    """Raise `CheckFailed` where a model, `what`, answers otherwise than the run's did."""
    now_computed = _computed(model, compute)
    exact = golden["computed"] == now_computed and now_computed["compute"] == "float32"
    share, floor = _SAME if exact else _ROUNDED
    for example in golden["examples"]:
        logits = _logits(task, model, tokenizer, example["encoded"], compute)
        for kept in example["logits"]:
            here = logits[kept["at"]] if kept["at"] < len(logits) else logits.new_zeros(0)
            allowed = share * max(floor, *map(abs, kept["values"]))
            for index, was in zip(kept["indices"], kept["values"], strict=True):
                now = float(here[index]) if index < len(here) else float("nan")
                if not abs(now - was) <= allowed:
                    raise CheckFailed(
                        f"{what} answers {_named(example)} otherwise than after training: logit "
                        f"{index} at position {kept['at']} was {was:.5g} and is {now:.5g}; "
                        f"{allowed:.2g} is what arithmetic explains. The base "
                        "or the trained part has changed: restore them, or train anew."
                    )


def _encoded(task: Task, tokenizer: Any, row: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """The numbers of the first encoded row that a checked row makes."""
    import datasets

    one = datasets.Dataset.from_list([dict(row)])
    first = task.encode(one, tokenizer, max_length=max_length).rows[0]
    return {name: value for name, value in first.items() if _numbers(value)}


def _numbers(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, int | float) for item in items)


def _logits(
    task: Task, model: nn.Module, tokenizer: Any, encoded: Mapping[str, Any], compute: torch.dtype
) -> torch.Tensor:
    """Logits [positions, classes or vocabulary] of one encoded row, fp32; one position of a row."""
    import torch

    from peftlab.model.mode import evaluating
    from peftlab.model.structure import logits_of

    place = _place(model)
    batch = {
        name: value.to(place) if isinstance(value, torch.Tensor) else value
        for name, value in task.collator(tokenizer)([dict(encoded)]).items()
    }
    narrow = torch.autocast(place.type, torch.bfloat16, enabled=compute is torch.bfloat16)
    with evaluating(model), torch.no_grad(), narrow:
        logits = logits_of(model(**task.model_inputs(batch)))[0].float().cpu()
    return logits if logits.ndim > 1 else logits[None]


def _place(model: nn.Module) -> torch.device:
    """Where a model computes; one that is streamed rests nowhere, and computes on the CPU."""
    import torch

    place = next(model.parameters()).device
    return torch.device("cpu") if place.type == "meta" else place


def _computed(model: nn.Module, compute: torch.dtype) -> dict[str, str]:
    return {"device": _place(model).type, "compute": str(compute).removeprefix("torch.")}


def _top(logits: torch.Tensor) -> list[dict[str, Any]]:
    """The largest logits at a few positions, the last among them."""
    count = len(logits)
    places = sorted({round((count - 1) * k / (_POSITIONS - 1)) for k in range(_POSITIONS)})
    found = []
    for at in places:
        values, indices = logits[at].topk(min(_TOP, logits.shape[-1]))
        found.append({"at": at, "indices": indices.tolist(), "values": values.tolist()})
    return found


def _named(example: Mapping[str, Any]) -> str:
    texts: Sequence[Any] = [v for v in example["row"].values() if isinstance(v, str)]
    return f"the golden example {texts[0]!r:.50}" if texts else "a golden example"


def _difference(column: str, was: Any, now: Any) -> str:
    if not isinstance(was, list) or not isinstance(now, list):
        return f"{column} was {was} and is {now}"
    at = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), None)
    if at is None:
        return f"{column} had {len(was)} numbers and has {len(now)}"
    return f"{column} at position {at} was {was[at]} and is {now[at]}"
