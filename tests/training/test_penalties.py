"""Penalties are applied once per optimizer step, for any accumulation: against float64 by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn

from peftlab.config.methods.full import FullOptions
from peftlab.config.schema import RegularizationConfig
from peftlab.errors import CheckFailed, ConfigError, Interrupted
from peftlab.methods.coverage import cover
from peftlab.methods.method import Applied
from peftlab.methods.penalties.penalised import regularizer
from peftlab.model.structure import mark_fresh
from tests.training.test_resume import HEAD as RESUMED
from tests.training.test_resume import SETTINGS, assert_same_bits, signalled

HEAD = "bert-classification"
STRENGTHS = {"l1": 0.05, "l2": 0.02, "l2_sp": 0.3}


def penalties_of(model: nn.Module, **settings: Any) -> Any:
    """The regularizer of a model whose classifier is new."""
    base: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    heads = ("score",) if hasattr(base, "score") else ("classifier",)
    mark_fresh(base, [f"{heads[0]}.weight", f"{heads[0]}.bias"])
    names = frozenset(n for n, p in model.named_parameters() if p.requires_grad)
    method = FullOptions(name="full")
    applied = Applied(model, method, "text-classification", names, cover(model), heads)
    return regularizer(applied, RegularizationConfig(**settings))


class ByHand:
    """Training in float64 by autograd of the whole objective, and L1 by its definition."""

    def __init__(self, model: nn.Module, rows: Any, collator: Any, strengths: Any) -> None:
        self.model = copy.deepcopy(model).double().train()
        self.batch, self.strengths = collator(rows), strengths
        self.named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.start = {
            n: torch.zeros_like(p) if "classifier" in n else p.detach().clone()
            for n, p in self.named.items()
        }

    def smooth(self) -> torch.Tensor:
        """L2 and L2-SP, LoRA's changes formed."""
        l2, l2_sp = self.strengths.get("l2", 0.0), self.strengths.get("l2_sp", 0.0)
        total = torch.zeros((), dtype=torch.float64)
        for name, p in self.named.items():
            if p.dim() > 1:
                total = total + l2 / 2 * p.square().sum()
            if "lora_" not in name:
                total = total + l2_sp / 2 * (p - self.start[name]).square().sum()
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                total = total + l2_sp / 2 * (layer.scaling["default"] * b @ a).square().sum()
        return total

    def absolute(self) -> torch.Tensor:
        matrices = [p.abs().sum() for p in self.named.values() if p.dim() > 1]
        return self.strengths.get("l1", 0.0) * torch.stack(matrices).sum()

    def train(self, steps: int, rate: float, clip: float, optim: str) -> list[dict[str, float]]:
        parameters = list(self.named.values())
        optimizer: Any = (
            torch.optim.AdamW(
                [
                    {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
                    {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
                ],
                eps=1e-3,
            )
            if optim == "adamw_torch"
            else torch.optim.SGD(parameters)
        )
        labels = self.batch["labels"]
        inputs = {k: v for k, v in self.batch.items() if k != "labels"}
        history = []
        for step in range(steps):
            now = rate * (1 - step / steps)
            for group in optimizer.param_groups:
                group["lr"] = now
            optimizer.zero_grad()
            loss, smooth = F.cross_entropy(self.model(**inputs).logits, labels), self.smooth()
            (loss + smooth).backward()
            norm = nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
            penalty = (smooth + self.absolute()).item()
            history.append({"loss": loss.item(), "penalty": penalty, "grad_norm": norm.item()})
            optimizer.step()
            threshold = now * self.strengths.get("l1", 0.0)
            with torch.no_grad():
                for p in parameters:
                    if p.dim() > 1:
                        p.copy_(p.sign() * (p.abs() - threshold).clamp_min(0))
        return history


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_cuts_of_a_step_agree_with_float64(
    lora: bool, clip: float, optim: str, make_model: Any, make_rows: Any, collator: Any, run: Any
) -> None:
    """Every strength at once, a schedule, clipping before the step, AdamW's own decay beside."""
    steps, rate = 6, 0.02 if optim == "adamw_torch" else 0.5
    rows = make_rows(HEAD, 19)
    twin = ByHand(make_model(HEAD, lora=lora), rows, collator, STRENGTHS)
    expected = twin.train(steps, rate, clip, optim)
    for whole, micro in ((20, 20), (20, 5), (19, 1)):
        model = make_model(HEAD, lora=lora)
        penalties = penalties_of(model, **STRENGTHS)
        result = run(
            model, rows, learning_rate=rate, global_batch_size=whole, micro=micro,
            num_train_epochs=steps, max_grad_norm=clip, optim=optim,
            weight_decay=0.1 if optim == "adamw_torch" else 0.0, adam_epsilon=1e-3,
            around={"regularizer": penalties},
        )  # fmt: skip
        points = [point for point in result.history if "loss" in point]
        assert len(points) == steps
        for point, hand in zip(points, expected, strict=True):
            for key, value in hand.items():
                assert point[key] == pytest.approx(value, rel=2e-4), (key, point["step"])
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(
                    parameter.detach().double(), twin.named[name].detach(),
                    rtol=1e-3, atol=2e-5, msg=name,
                )  # fmt: skip


def test_the_penalty_is_not_in_the_loss(make_model: Any, make_rows: Any, run: Any) -> None:
    """Where nothing moves, the loss is the task's with and without penalties."""
    rows, losses = make_rows(HEAD, 9), []
    for strengths in ({}, {"l2": 10.0, "l1": 1.0}):
        model = make_model(HEAD)
        penalties = penalties_of(model, **strengths) if strengths else None
        result = run(
            model, rows, learning_rate=1e-30, global_batch_size=4, max_steps=6, logging_steps=3,
            weight_decay=0.0, around={"regularizer": penalties},
        )  # fmt: skip
        losses.append([point["loss"] for point in result.history])
        if penalties is not None:
            total = penalties.penalties()["total"]
            assert [p["penalty"] for p in result.history] == pytest.approx([total] * 2, rel=1e-5)
            assert result.regularization is not None
            assert result.regularization["penalty"]["total"] == total
        else:
            assert result.regularization is None
            assert all("penalty" not in point for point in result.history)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_bf16_activations_leave_the_penalty_exact(
    make_model: Any, make_rows: Any, run: Any
) -> None:
    """The gradient is the task's plus lambda theta in fp32, to the last bits of fp32."""
    gradients: list[dict[str, torch.Tensor]] = []
    for strength in (0.0, 100.0):
        model = make_model(HEAD)
        before = {n: p.detach().double() for n, p in model.named_parameters()}
        penalties = penalties_of(model, l2=strength) if strength else None
        run(
            model, make_rows(HEAD, 8), learning_rate=1.0, global_batch_size=8, micro=2, max_steps=1,
            optim="sgd", weight_decay=0.0, max_grad_norm=0.0,
            around={"compute_dtype": torch.bfloat16, "regularizer": penalties},
        )  # fmt: skip
        gradients.append({n: before[n] - p.detach() for n, p in model.named_parameters()})
    for name, start in before.items():
        added = (gradients[1][name] - gradients[0][name]) if start.dim() > 1 else torch.zeros(())
        expected = 100.0 * start if start.dim() > 1 else torch.zeros(())
        torch.testing.assert_close(added.double(), expected.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_exact_zeros_and_the_reported_sparsity(
    lora: bool, make_model: Any, make_rows: Any, run: Any
) -> None:
    model = make_model(HEAD, lora=lora)
    dense = sum(int((p == 0).sum()) for p in model.parameters() if p.requires_grad and p.dim() > 1)
    result = run(
        model, make_rows(HEAD, 16), learning_rate=0.05, global_batch_size=8, micro=4,
        num_train_epochs=10, around={"regularizer": penalties_of(model, l1=0.9)},
    )  # fmt: skip
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    zeros = sum(int((p == 0).sum()) for p in matrices)
    scalars = sum(p.numel() for p in matrices)
    # The padding row of an embedding is zero from the start.
    assert dense < 0.05 * scalars < 0.3 * scalars < zeros < scalars
    report = result.regularization
    assert report is not None
    assert (report["zeros"], report["penalised"]) == (zeros, scalars)
    assert report["sparsity"] == zeros / scalars == result.history[-1]["sparsity"]
    # Vectors were left alone.
    assert all((p != 0).any() for p in model.parameters() if p.requires_grad and p.dim() == 1)


def test_an_adapter_is_drawn_to_no_change(make_model: Any, make_rows: Any, run: Any) -> None:
    """By L2-SP alone, no loss beside it: all labels are masked."""
    rows = [dict(row, labels=-100) for row in make_rows(HEAD, 4)]
    model = make_model(HEAD, lora=True)
    penalties = penalties_of(model, l2_sp=1.0)
    before = penalties.penalties()["l2_sp"]
    run(
        model, rows, learning_rate=0.05, global_batch_size=4, max_steps=60, weight_decay=0.0,
        around={"regularizer": penalties},
    )  # fmt: skip
    assert penalties.penalties()["l2_sp"] < 1e-2 * before


# 18 rows make 9 micro-batches and 5 steps an epoch: the 7th lies in step 4, the 10th in step 6.
@pytest.mark.parametrize(("batch", "saved"), [(7, 4), (10, 6)])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_resumed_to_the_same_bits(
    lora: bool, batch: int, saved: int, make_model: Any, make_rows: Any, run: Any, tmp_path: Path
) -> None:
    """The start that L2-SP pulls towards is the checkpoint's, not that of the resumed training."""
    rows = make_rows(RESUMED, 18)

    def train(model: nn.Module, **around: Any) -> Any:
        penalties = penalties_of(model, **STRENGTHS)
        settings = SETTINGS | {"staging": tmp_path, "logging_steps": 3}
        return run(model, rows, around={"regularizer": penalties, **around}, **settings)

    whole = make_model(RESUMED, lora=lora, dropout=0.1)
    expected = train(whole)
    with pytest.raises(Interrupted):
        train(signalled(make_model(RESUMED, lora=lora, dropout=0.1), batch))
    resumed = make_model(RESUMED, lora=lora, dropout=0.1)
    result = train(resumed, resume=tmp_path / f"checkpoint-{saved}")
    assert_same_bits(resumed, whole)
    assert result.history == expected.history
    assert result.regularization == expected.regularization


def test_resume_refuses_other_penalties(
    make_model: Any, make_rows: Any, run: Any, tmp_path: Path
) -> None:
    rows = make_rows(HEAD, 8)
    settings = {"global_batch_size": 4, "max_steps": 2, "save_every": 2, "staging": tmp_path}
    model = make_model(HEAD)
    run(model, rows, around={"regularizer": penalties_of(model, l2=0.5)}, **settings)
    resume = {"resume": tmp_path / "checkpoint-2"}
    other = make_model(HEAD)
    with pytest.raises(ConfigError, match=r"regularization\.l2 was 0\.5 and is 0\.25"):
        run(other, rows, around=resume | {"regularizer": penalties_of(other, l2=0.25)}, **settings)
    with pytest.raises(ConfigError, match=r"regularization\.l2 was 0\.5 and is None"):
        run(make_model(HEAD), rows, around=resume, **settings)


def test_a_strength_that_explodes_is_stopped_before_the_step(
    make_model: Any, make_rows: Any, run: Any
) -> None:
    model = make_model(HEAD)
    with pytest.raises(CheckFailed, match=r"Step 1: the gradient of .* is not finite"):
        run(
            model, make_rows(HEAD, 8), global_batch_size=4,
            around={"regularizer": penalties_of(model, l2=3e38, l2_sp=3e38)},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("optim", "words"),
    [
        ("lomo", "steps inside the backward pass"),
        ("galore_adamw_layerwise", "steps inside the backward pass"),
        ("schedule_free_adamw", r"regularization\.l1 cannot set to zero"),
    ],
)
def test_optimizers_that_no_penalty_can_join(
    optim: str, words: str, make_model: Any, make_rows: Any, run: Any
) -> None:
    model = make_model(HEAD)
    with pytest.raises(ConfigError, match=words):
        run(
            model, make_rows(HEAD, 8), global_batch_size=4, optim=optim,
            around={"regularizer": penalties_of(model, l1=0.1)},
        )  # fmt: skip
