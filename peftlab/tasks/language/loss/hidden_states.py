"""What a language model puts into its head, and which token each of those states predicts.

A decoder's states predict the token after them. Those of an encoder-decoder, whose batch has
`decoder_input_ids`, predict the label at their own place: the ids are the labels moved right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from peftlab.tasks.encoding import IGNORED
from peftlab.tasks.language.loss.head_blocks import Head
from peftlab.tasks.task import Batch


@dataclass(frozen=True, slots=True)
class Selected:
    """Hidden states that predict a trained token [N, H], those tokens [N], and their rows [N]."""

    hidden: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    head: Head


def model_inputs(batch: Batch) -> dict[str, Any]:
    """The batch without its labels, so that the model forms no loss of its own."""
    # Packed rows are kept apart where there is neither mask nor cache; padding is on their right.
    left_out = {"labels", "attention_mask"} if "position_ids" in batch else {"labels"}
    return {name: value for name, value in batch.items() if name not in left_out}


def is_seq2seq(batch: Batch) -> bool:
    """Whether an encoder reads `input_ids` and a decoder writes the labels."""
    return "decoder_input_ids" in batch


def targets(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What each position predicts [B, T], and where that is trained.

    A decoder's last position predicts nothing.
    """
    labels: torch.Tensor = batch["labels"]
    if not is_seq2seq(batch):
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return labels, labels != IGNORED


def base_model(model: nn.Module) -> Any:
    """The Transformers model within wrappers of DDP's kind and within PEFT's."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    get_base_model = getattr(model, "get_base_model", None)
    return model if get_base_model is None else get_base_model()


def select(model: nn.Module, batch: Batch) -> Selected:
    """Run the whole model, but its head on no position; keep what the head would be given.

    The model's own forward is called, so PEFT's, autocast's and checkpointing's wrappers all act.
    """
    base = base_model(model)
    inputs = model_inputs(batch) | {"use_cache": False}
    if is_seq2seq(batch):
        capturing = _captured_at(base.get_output_embeddings(), before=True)
    else:
        capturing = _captured_at(base.get_decoder(), before=False)
        nowhere = torch.empty(0, dtype=torch.int64, device=batch["input_ids"].device)
        inputs["logits_to_keep"] = nowhere
    with capturing as captured:
        model(**inputs)
    hidden, autocast = captured
    head = Head(base.get_output_embeddings(), _softcap(base), autocast, hidden.device.type)
    labels, trained = (tensor.to(hidden.device) for tensor in targets(batch))
    return Selected(hidden[trained], labels[trained], trained.nonzero()[:, 0], head)


@contextmanager
def _captured_at(module: nn.Module, *, before: bool) -> Iterator[list[Any]]:
    """Hidden states [B, T, H] as they leave a decoder, or as they come to a head (`before`).

    The head is then given none of them. At the head they have all that a model does to them on the
    way (T5 multiplies by d_model**-0.5), and no argument of the model's is needed to stop there.
    """
    captured: list[Any] = []

    def keep(hidden: torch.Tensor) -> None:
        kind = hidden.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        captured[:] = [hidden, autocast]

    def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
        keep(output[0])

    def instead(_module: nn.Module, inputs: Any) -> Any:
        keep(inputs[0])
        return (inputs[0][:, :0],)

    handle = (
        module.register_forward_pre_hook(instead) if before else module.register_forward_hook(after)
    )
    try:
        yield captured
    finally:
        handle.remove()


def _softcap(base: Any) -> float | None:
    value = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    return None if value is None else float(value)
