"""What a run keeps, when it stops, what it leaves behind, and that it learns."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from peftlab.errors import CheckFailed, ConfigError

datasets = pytest.importorskip("datasets")

HEAD = "bert-classification"


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Scripted:
    """Validation with a given course; remembers the weights at each evaluation."""

    def __init__(self, *values: float) -> None:
        self.values, self.weights = values, list[dict[str, torch.Tensor]]()

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.weights.append(parameters(model))
        return {"score": self.values[len(self.weights) - 1]}


def test_it_learns_and_is_quiet(
    make_model: Any, make_rows: Any, run: Any, capfd: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    staging = tmp_path / "staging"
    staging.mkdir()
    model = make_model(HEAD, lora=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(
            model, datasets.Dataset.from_list(make_rows(HEAD, 60)),
            staging=staging, global_batch_size=8, micro=4, num_train_epochs=12, logging_steps=16,
        )  # fmt: skip
    losses = [point["loss"] for point in result.history]
    assert losses[-1] < 0.8 * losses[0]
    assert result.steps == 96
    assert result.epochs == 12
    assert capfd.readouterr() == ("", "")
    # Neither in the staging folder nor beside it.
    assert [path.name for path in tmp_path.iterdir()] == ["staging"]
    assert not list(staging.iterdir())


@pytest.mark.parametrize(
    ("values", "greater", "best"),
    [((1, 3, 2), True, 2), ((3.0, 2.0, 2.5), False, 2), ((1, 1, 1), True, 1)],
)
def test_the_best_weights_are_kept(
    values: Any, greater: bool, best: int, make_model: Any, make_rows: Any, run: Any, tmp_path: Path
) -> None:
    model, course = make_model(HEAD, lora=True), Scripted(*values)
    result = run(
        model, make_rows(HEAD, 8), staging=tmp_path, global_batch_size=4, num_train_epochs=3,
        around={"evaluate": course, "best_metric": "score", "greater_is_better": greater},
    )  # fmt: skip
    assert (result.best_step, result.best_epoch) == (2 * best, float(best))
    assert result.metrics == {"score": values[best - 1]}
    kept = course.weights[best - 1]
    assert all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
    other = course.weights[best % 3]
    assert any(not torch.equal(p, other[name]) for name, p in model.named_parameters())
    evaluated = [point["step"] for point in result.history if "eval_score" in point]
    assert evaluated == [2, 4, 6]
    assert not list(tmp_path.iterdir())


def test_early_stopping(make_model: Any, make_rows: Any, run: Any) -> None:
    course = Scripted(1.0, 2.0, 1.5, 2.0, 9.0)
    result = run(
        make_model(HEAD), make_rows(HEAD, 8), global_batch_size=4, num_train_epochs=10,
        around={
            "evaluate": course, "evaluate_every": 3, "early_stopping_patience": 2,
            "best_metric": "score", "greater_is_better": True,
        },
    )  # fmt: skip
    assert result.stopped_early
    assert (result.steps, result.best_step, len(course.weights)) == (12, 6, 4)


def test_a_metric_nobody_reports(make_model: Any, make_rows: Any, run: Any) -> None:
    with pytest.raises(CheckFailed, match=r"eval\.best is f1, but validation reports score"):
        run(
            make_model(HEAD), make_rows(HEAD, 8), global_batch_size=4,
            around={"evaluate": Scripted(1.0), "best_metric": "f1"},
        )  # fmt: skip


def test_same_seed_same_bits(make_model: Any, make_rows: Any, run: Any) -> None:
    results = []
    for seed in (7, 7, 8):
        model = make_model(HEAD, lora=True, dropout=0.2)
        run(model, make_rows(HEAD, 20), global_batch_size=4, num_train_epochs=2, seed=seed)
        results.append(parameters(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_a_loss_that_is_not_finite_stops_before_the_step(
    make_model: Any, make_rows: Any, run: Any
) -> None:
    model = make_model(HEAD)
    with torch.no_grad():
        model.classifier.bias[0] = float("inf")
    before = parameters(model)
    with pytest.raises(CheckFailed, match="Step 1: the loss is nan"):
        run(model, make_rows(HEAD, 8), global_batch_size=4)
    after = parameters(model)
    assert all(torch.equal(before[n], after[n]) or before[n].isinf().any() for n in before)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_names_its_tensor(
    clip: float, make_model: Any, make_rows: Any, run: Any
) -> None:
    model = make_model(HEAD)
    calls: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        return gradient * float("nan") if len(calls) == 3 else gradient

    model.classifier.weight.register_hook(spoil)
    with pytest.raises(CheckFailed, match=r"Step 3: the gradient of classifier\.weight"):
        run(model, make_rows(HEAD, 20), global_batch_size=4, max_grad_norm=clip)


def test_a_step_with_nothing_to_predict_is_a_step_without_gradient(
    make_model: Any, make_rows: Any, run: Any
) -> None:
    rows = [dict(row, labels=[-100] * len(row["labels"])) for row in make_rows("gpt2-causal", 4)]
    model = make_model("gpt2-causal")
    before = parameters(model)
    result = run(
        model, rows, head="gpt2-causal", global_batch_size=4, micro=2, max_steps=1, weight_decay=0.0
    )
    assert result.history[0]["grad_norm"] == 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("head", ["bert-classification", "t5-classification", "llama-causal"])
@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_changes_nothing(
    head: str, lora: bool, make_model: Any, make_rows: Any, run: Any
) -> None:
    """Nothing but memory; with frozen embeddings too.

    By plain gradient descent: Adam divides by the gradient's size, and so blows the rounding of the
    smallest gradients up to whole steps.
    """
    results = []
    for checkpointing in (False, True):
        model = make_model(head, lora=lora)
        before = model.config.use_cache if hasattr(model.config, "use_cache") else None
        run(
            model, make_rows(head, 8), head=head, global_batch_size=4, max_steps=3,
            gradient_checkpointing=checkpointing, optim="sgd", learning_rate=0.1,
        )  # fmt: skip
        assert getattr(model.config, "use_cache", None) == before
        assert not any(
            getattr(module, "gradient_checkpointing", False) for module in model.modules()
        )
        results.append(parameters(model))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-5, atol=1e-6)


class OverFeatures(nn.Module):
    """A head over cached features, as the `head` method trains it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 3)

    def forward(self, features: torch.Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(logits=self.linear(features))


def test_cached_features_train_alike_and_count_their_tokens(run: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"features": torch.randn(6, generator=generator), "labels": i % 3, "tokens": 5 + i}
        for i in range(11)
    ]

    def collate(batch: Any) -> dict[str, torch.Tensor]:
        return {
            "features": torch.stack([row["features"] for row in batch]),
            "labels": torch.tensor([row["labels"] for row in batch]),
            "tokens": torch.tensor([row["tokens"] for row in batch]),
        }

    weights = []
    for micro in (6, 1):
        model = OverFeatures()
        result = run(
            model, rows, global_batch_size=6, micro=micro, num_train_epochs=2,
            around={"collator": collate}, gradient_checkpointing=True,
        )  # fmt: skip
        assert result.tokens == 2 * sum(row["tokens"] for row in rows)
        weights.append(model.linear.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)


def test_tokens_and_seconds(
    make_model: Any, make_rows: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that each look moves on by a second, and each evaluation by a hundred."""
    now = 0.0

    def look() -> float:
        nonlocal now
        now += 1.0
        return now

    def slow(model: nn.Module) -> dict[str, float]:
        nonlocal now
        now += 100.0
        return {"loss": 1.0}

    monkeypatch.setattr("peftlab.training.ledger.time", SimpleNamespace(perf_counter=look))
    rows = make_rows(HEAD, 10)
    result = run(
        make_model(HEAD), rows, global_batch_size=4, num_train_epochs=3, around={"evaluate": slow}
    )
    assert result.tokens == 3 * sum(len(row["input_ids"]) for row in rows)
    # The look before and after each of three evaluations is all that is left of their time.
    assert result.seconds - result.training_seconds == pytest.approx(300, abs=6)
    assert 0 < result.training_seconds < 100
    assert result.tokens_per_second == pytest.approx(result.tokens / result.training_seconds)


def test_memory_parts(make_model: Any, make_rows: Any, run: Any) -> None:
    model = make_model(HEAD)
    count = sum(p.numel() for p in model.parameters())
    result = run(model, make_rows(HEAD, 8), global_batch_size=4, max_steps=2)
    assert result.gradient_bytes == 4 * count
    assert 8 * count <= result.optimizer_bytes < 8 * count + 1000


def test_model_stays_what_it_was(make_model: Any, make_rows: Any, run: Any) -> None:
    """No wrapped forward, no hooks, no leftovers of Accelerate."""
    model = make_model(HEAD)
    names = set(vars(model))
    run(model, make_rows(HEAD, 8), global_batch_size=4, around={"compute_dtype": torch.bfloat16})
    assert set(vars(model)) == names
    assert "forward" not in vars(model)
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


def test_bf16_activations(make_model: Any, make_rows: Any, run: Any) -> None:
    seen = []
    model = make_model(HEAD)
    model.bert.encoder.layer[0].output.dense.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    rows = make_rows(HEAD, 8)
    run(model, rows, global_batch_size=4, max_steps=1, around={"compute_dtype": torch.bfloat16})
    assert seen == [torch.bfloat16]
    with pytest.raises(ConfigError, match="float16 activations"):
        run(model, rows, global_batch_size=4, around={"compute_dtype": torch.float16})


def test_several_processes_are_refused(
    make_model: Any, make_rows: Any, run: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process, but a launcher started 2"):
        run(make_model(HEAD), make_rows(HEAD, 8), global_batch_size=4)


def test_tensorboard_writes_into_the_run(
    make_model: Any, make_rows: Any, run: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    staging = tmp_path / "staging"
    staging.mkdir()
    run(
        make_model(HEAD), make_rows(HEAD, 8), staging=staging, global_batch_size=4,
        around={"report_to": ["tensorboard"], "evaluate": lambda model: {"loss": 0.25}},
    )  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(staging / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in events.Scalars("eval/loss")] == [0.25] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"staging"}
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_validation_is_logged(
    make_model: Any, make_rows: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="peftlab"):
        run(
            make_model(HEAD), make_rows(HEAD, 8), global_batch_size=4, num_train_epochs=2,
            around={"evaluate": Scripted(0.5, 0.25), "best_metric": "score",
                    "greater_is_better": True},
        )  # fmt: skip
    assert "Epoch 1, step 2: validation score 0.5 *" in caplog.text
    assert "Kept the weights of step 2" in caplog.text
