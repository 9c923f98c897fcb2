"""Training in bf16 activations: the chunked causal loss, proved and trained in one region."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from peftlab.config.schema import TrainConfig
from peftlab.tasks.language.causal_lm import CausalLM
from peftlab.tasks.language.causal_rows import Pairs
from peftlab.training.trainer import train

HEAD = "llama-causal"


def first_gradients(
    model: nn.Module, rows: Any, collator: Any, staging: Path, loss: Literal["auto", "plain"]
) -> dict[str, torch.Tensor]:
    """Each trained tensor's gradient in the first step, which is of one micro-batch."""
    staging.mkdir()
    gradients: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda parameter: gradients.update({name: parameter.grad.clone()})

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(keep(name))
    settings = TrainConfig(
        max_steps=1, global_batch_size=4, warmup_steps=0, weight_decay=0.0, save_every="never"
    )
    train(
        model,
        CausalLM(Pairs(), loss=loss),
        rows,
        collator=collator,
        settings=settings,
        learning_rate=1e-2,
        micro_batch_size=4,
        staging=staging,
        compute_dtype=torch.bfloat16,
    )
    return gradients


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_the_first_micro_batch_trains_every_tensor(
    lora: bool, make_model: Any, make_rows: Any, collator: Any, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """What the proof casts without gradient, in the same autocast region, is not trained on."""
    model, rows = make_model(HEAD, lora=lora), make_rows(HEAD, 4)
    before = copy.deepcopy(model)
    with caplog.at_level(logging.INFO, "peftlab"):
        got = first_gradients(model, rows, collator, tmp_path / "auto", "auto")
    assert "equal to the plain loss on a slice" in caplog.text
    trained = {name for name, p in before.named_parameters() if p.requires_grad}
    assert got.keys() == trained
    start = dict(before.named_parameters())
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, start[name])
        assert moved is (name in trained), name
    for name, gradient in got.items():
        assert gradient.dtype == torch.float32
        assert torch.isfinite(gradient).all(), name
        assert gradient.any(), name
    expected = first_gradients(before, rows, collator, tmp_path / "plain", "plain")
    for name, gradient in expected.items():
        assert float((got[name] - gradient).norm() / gradient.norm()) < 0.03, name
