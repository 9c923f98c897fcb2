"""Golden examples: a few rows, their token ids and the trained model's logits, kept in the record.

They are replayed whenever the run is opened again: tokenizer, templates and weights are then known
to be those of the training, unchanged since.
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
"""The examples are the shortest of this many rows, so that the record stays small."""
_POSITIONS = 3
_TOP = 5
# Shares of the largest logit, which counts as the second number at least.
_SAME = 2e-3, 0.05
"""For fp32 arithmetic on the same kind of device: threads and kernels sum in other orders."""
_ROUNDED = 0.1, 1.0
"""For 16-bit arithmetic, or another kind of device than the run was trained on."""
_SETTINGS = (
    "bos_token", "bos_token_id", "eos_token", "eos_token_id", "pad_token", "pad_token_id",
    "padding_side", "truncation_side",
)  # fmt: skip


def policy(tokenizer: Any) -> dict[str, Any]:
    """Settings of a tokenizer that the ids of whole rows do not reveal."""
    settings: dict[str, Any] = {name: getattr(tokenizer, name, None) for name in _SETTINGS}
    template = getattr(tokenizer, "chat_template", None)
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    settings["chat_template"] = (
        None if template is None else hashlib.sha256(text.encode()).hexdigest()[:16]
    )
    return settings


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
            continue  # This row alone has nothing to train on.
        logits = _logits(task, model, tokenizer, encoded, compute)
        examples.append({"row": row, "encoded": encoded, "logits": _top(logits)})
        if len(examples) == _ROWS:
            break
    return {
        "tokenizer": policy(tokenizer),
        "computed": {**_computed(model, compute), **({"rounded": True} if rounded else {})},
        "examples": examples,
    }


def check_tokenizer(
    golden: Mapping[str, Any], task: Task, tokenizer: Any, *, max_length: int, what: str
) -> None:
    """Raise `CheckFailed` where a tokenizer, `what`, gives other ids than the run's did."""
    now = policy(tokenizer)
    for name, was in golden["tokenizer"].items():
        if now.get(name) != was:
            raise CheckFailed(
                f"{what} has changed since training: its {name} was {was!r} and is "
                f"{now.get(name)!r}. Restore it, or train again."
            )
    for example in golden["examples"]:
        try:
            encoded = _encoded(task, tokenizer, example["row"], max_length)
        except DataError as error:
            raise CheckFailed(f"{what} no longer reads {_named(example)}: {error}") from None
        length = len(encoded["input_ids"])
        for column, was in example["encoded"].items():
            if column == "labels" and (not isinstance(was, list) or len(was) != length):
                continue  # of a whole row: not the tokenizer's
            if encoded.get(column) != was:
                raise CheckFailed(
                    f"{what} encodes {_named(example)} differently than in training: "
                    f"{_difference(column, was, encoded.get(column))}. Restore it, or train again."
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
    """Raise `CheckFailed` where a model, `what`, gives other logits than the run's did."""
    then, now_computed = dict(golden["computed"]), _computed(model, compute)
    rounded = bool(then.pop("rounded", False))
    exact = not rounded and then == now_computed and now_computed["compute"] == "float32"
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
                        f"{what} computes {_named(example)} differently than after training: logit "
                        f"{index} at position {kept['at']} was {was:.5g} and is {now:.5g}; "
                        f"rounding explains up to {allowed:.2g}. The base "
                        "or the trained part has changed: restore them, or train again."
                    )


def _encoded(task: Task, tokenizer: Any, row: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """The numeric columns of the first encoded row of a checked row."""
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

    device = _device(model)
    batch = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in task.collator(tokenizer)([dict(encoded)]).items()
    }
    narrow = torch.autocast(device.type, torch.bfloat16, enabled=compute is torch.bfloat16)
    with evaluating(model), torch.no_grad(), narrow:
        logits = logits_of(model(**task.model_inputs(batch)))[0].float().cpu()
    return logits if logits.ndim > 1 else logits[None]


def _device(model: nn.Module) -> torch.device:
    """The device a model computes on; a streamed model, with parameters on meta, uses the CPU."""
    import torch

    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def _computed(model: nn.Module, compute: torch.dtype) -> dict[str, str]:
    return {"device": _device(model).type, "compute": str(compute).removeprefix("torch.")}


def _top(logits: torch.Tensor) -> list[dict[str, Any]]:
    """The largest logits at a few positions, the last among them."""
    count = len(logits)
    positions = sorted({round((count - 1) * k / (_POSITIONS - 1)) for k in range(_POSITIONS)})
    largest = []
    for at in positions:
        values, indices = logits[at].topk(min(_TOP, logits.shape[-1]))
        largest.append({"at": at, "indices": indices.tolist(), "values": values.tolist()})
    return largest


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
