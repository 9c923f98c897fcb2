"""The inputs of a language model's head, and the token that each of them predicts.

A decoder's states predict the next token. Those of an encoder-decoder, whose batch has
`decoder_input_ids`, predict the label at the same position: the ids are the labels shifted right.
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
    """The batch without labels, so that the model computes no loss itself."""
    # Packed rows need a call without mask and cache to stay separate; padding is on the right.
    left_out = {"labels", "attention_mask"} if "position_ids" in batch else {"labels"}
    return {name: value for name, value in batch.items() if name not in left_out}


def is_seq2seq(batch: Batch) -> bool:
    """Whether the batch is for an encoder-decoder."""
    return "decoder_input_ids" in batch


def targets(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The label that each position predicts [B, T], and whether it is trained.

    A decoder's last position predicts nothing.
    """
    labels: torch.Tensor = batch["labels"]
    if not is_seq2seq(batch):
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return labels, labels != IGNORED


def base_model(model: nn.Module) -> Any:
    """The Transformers model inside the wrappers of DDP and PEFT."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    get_base_model = getattr(model, "get_base_model", None)
    return model if get_base_model is None else get_base_model()


def select(model: nn.Module, batch: Batch) -> Selected:
    """Run the model with its head on no position, and return the head's inputs.

    It calls the model's own forward, so the wrappers of PEFT, autocast and checkpointing apply.
    """
    base = base_model(model)
    inputs = model_inputs(batch) | {"use_cache": False}
    if is_seq2seq(batch):
        capturing = _captured_at(base.get_output_embeddings(), before=True)
    else:
        capturing = _captured_at(base.get_decoder(), before=False)
        no_positions = torch.empty(0, dtype=torch.int64, device=batch["input_ids"].device)
        inputs["logits_to_keep"] = no_positions
    with capturing as captured:
        model(**inputs)
    hidden, autocast = captured
    # A method's virtual tokens stand before the row's.
    hidden = hidden[:, -batch["labels"].shape[1] :]
    head = Head(base.get_output_embeddings(), _softcap(base), autocast, hidden.device.type)
    labels, trained = (tensor.to(hidden.device) for tensor in targets(batch))
    return Selected(hidden[trained], labels[trained], trained.nonzero()[:, 0], head)


@contextmanager
def _captured_at(module: nn.Module, *, before: bool) -> Iterator[list[Any]]:
    """Captures hidden states [B, T, H] at a decoder's output, or at a head's input (`before`).

    The head then gets none of them. Its input includes everything that the model applies before it
    (T5 multiplies by d_model**-0.5), and the model needs no argument to skip its logits.
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
