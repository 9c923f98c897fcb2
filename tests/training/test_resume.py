"""Stopped and resumed, a run ends where it would have ended: in the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftlab.errors import CheckFailed, ConfigError, Interrupted

datasets = pytest.importorskip("datasets")

HEAD = "gpt2-classification"
SETTINGS: dict[str, Any] = {
    "head": HEAD, "global_batch_size": 4, "micro": 2, "num_train_epochs": 3, "save_every": 2,
    "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "logging_steps": 2,
}  # fmt: skip


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same_bits(left: nn.Module, right: nn.Module) -> None:
    mine, other = trained(left), trained(right)
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, other[name]), name


def at_forward(model: nn.Module, call: int, act: Callable[[], None]) -> nn.Module:
    """Let something happen in the middle of training: at the model's n-th forward pass."""
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == call:
            act()

    model.register_forward_pre_hook(hook)
    return model


def signalled(model: nn.Module, call: int, number: int = signal.SIGINT) -> nn.Module:
    return at_forward(model, call, lambda: os.kill(os.getpid(), number))


def counted_evaluation(values: list[float]) -> Any:
    """Validation whose metric goes through given values, one an evaluation."""
    left = iter(values)
    return lambda model: {"score": next(left), "loss": 1.0}


@pytest.fixture
def rows(make_rows: Any) -> datasets.Dataset:
    return datasets.Dataset.from_list(make_rows(HEAD, 18))


# 18 rows make 9 micro-batches and 5 steps an epoch: the 7th lies in step 4, the 9th is all of
# step 5, the last of the first epoch, the 10th lies in step 6.
@pytest.mark.parametrize(
    ("batch", "number", "saved"),
    [(7, signal.SIGINT, 4), (9, signal.SIGTERM, 5), (10, signal.SIGINT, 6)],
)
def test_a_signal_saves_and_resuming_gives_the_same_bits(
    batch: int, number: int, saved: int, rows: Any, make_model: Any, run: Any, tmp_path: Path
) -> None:  # fmt: skip
    whole = make_model(HEAD, lora=True, dropout=0.1)
    expected = run(whole, rows, **SETTINGS)
    stopped = signalled(make_model(HEAD, lora=True, dropout=0.1), batch, number)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"after step {saved} of 15"):
        run(stopped, rows, staging=tmp_path, **SETTINGS)
    assert signal.getsignal(number) is before
    checkpoint = tmp_path / f"checkpoint-{saved}"
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [checkpoint.name]
    resumed = make_model(HEAD, lora=True, dropout=0.1, seed=5)
    # The frozen base comes from its checkpoint, the trained part from ours.
    frozen = dict(whole.named_parameters())
    with torch.no_grad():
        for name, parameter in resumed.named_parameters():
            if not parameter.requires_grad:
                parameter.copy_(frozen[name])
    result = run(resumed, rows, staging=tmp_path, around={"resume": checkpoint}, **SETTINGS)
    assert_same_bits(resumed, whole)
    assert (result.steps, result.tokens) == (expected.steps, expected.tokens)
    assert result.loss == expected.loss
    assert result.history == expected.history


def test_killed_between_checkpoints(rows: Any, make_model: Any, run: Any, tmp_path: Path) -> None:
    """No time to save: the run resumes from the newest complete checkpoint and best weights."""

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    scores = [0.5, 0.9, 0.3]
    judged = {"best_metric": "score", "greater_is_better": True}
    whole = make_model(HEAD)
    expected = run(
        whole, rows, around={"evaluate": counted_evaluation(scores), **judged}, **SETTINGS
    )
    assert (expected.best_step, expected.metrics["score"]) == (10, 0.9)
    # The 20th micro-batch completes step 11, right after the second epoch.
    stopped = at_forward(make_model(HEAD), 20, kill)
    with pytest.raises(Killed):
        run(
            stopped, rows, staging=tmp_path,
            around={"evaluate": counted_evaluation(scores), **judged}, **SETTINGS,
        )  # fmt: skip
    checkpoint = tmp_path / "checkpoint-10"
    assert {path.name for path in checkpoint.iterdir()} == {
        "trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
        "trainer_state.json", "ledger.json", "best.safetensors",
    }  # fmt: skip
    resumed = make_model(HEAD, seed=3)
    result = run(
        resumed, rows, staging=tmp_path,
        around={"resume": checkpoint, "evaluate": counted_evaluation(scores[2:]), **judged},
        **SETTINGS,
    )  # fmt: skip
    assert_same_bits(resumed, whole)
    assert (result.best_step, dict(result.metrics)) == (10, dict(expected.metrics))
    assert not (tmp_path / "best.safetensors").exists()


def test_checkpoint_holds_the_trained_part_only(
    rows: Any, make_model: Any, run: Any, tmp_path: Path
) -> None:
    model = make_model(HEAD, lora=True)
    run(model, rows, staging=tmp_path, **SETTINGS | {"save_every": "epoch", "max_steps": 3})
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoint-3" / "trained.safetensors")
    assert saved.keys() == trained(model).keys()
    assert len(saved) < len(list(model.parameters()))
    # Nothing but the checkpoint was left behind.
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_resuming_a_finished_run_trains_no_more(
    rows: Any, make_model: Any, run: Any, tmp_path: Path
) -> None:
    settings = SETTINGS | {"max_steps": 7, "save_every": "epoch"}
    model = make_model(HEAD)
    first = run(model, rows, staging=tmp_path, **settings)
    again = make_model(HEAD, seed=9)
    result = run(
        again, rows, staging=tmp_path, around={"resume": tmp_path / "checkpoint-7"}, **settings
    )
    assert_same_bits(again, model)
    assert result.steps == 7
    assert result.history == first.history


def test_resume_refuses_other_settings_and_damage(
    rows: Any, make_model: Any, run: Any, tmp_path: Path
) -> None:
    run(make_model(HEAD), rows, staging=tmp_path, **SETTINGS | {"max_steps": 4})
    around = {"resume": tmp_path / "checkpoint-4"}
    with pytest.raises(ConfigError, match=r"weight_decay was 0.01 and is 0.5"):
        run(
            make_model(HEAD), rows, staging=tmp_path, around=around,
            **SETTINGS | {"max_steps": 4, "weight_decay": 0.5},
        )  # fmt: skip
    with pytest.raises(ConfigError, match=r"training rows was 18 and is 17"):
        run(
            make_model(HEAD), rows.select(range(17)), staging=tmp_path, around=around,
            **SETTINGS | {"max_steps": 4},
        )  # fmt: skip
    with pytest.raises(CheckFailed, match=r"score"):
        run(
            make_model(HEAD, lora=True), rows, staging=tmp_path, around=around,
            **SETTINGS | {"max_steps": 4},
        )  # fmt: skip
    damaged = tmp_path / "checkpoint-5"
    shutil.copytree(tmp_path / "checkpoint-4", damaged)
    (damaged / "optimizer.pt").unlink()
    with pytest.raises(CheckFailed, match=r"without optimizer\.pt"):
        run(
            make_model(HEAD), rows, staging=tmp_path, around={"resume": damaged},
            **SETTINGS | {"max_steps": 4},
        )  # fmt: skip
    ledger = json.loads((tmp_path / "checkpoint-4" / "ledger.json").read_text())
    assert ledger["finished"] is True


@pytest.mark.parametrize(
    ("judged", "words"),
    [
        ({"best_metric": "loss"}, r"eval\.best was 'score' and is 'loss'"),
        ({"greater_is_better": False}, r"value of eval\.best was 'greater' and is 'smaller'"),
    ],
)
def test_resume_refuses_to_judge_otherwise(
    judged: dict[str, Any], words: str, rows: Any, make_model: Any, run: Any, tmp_path: Path
) -> None:
    """The best score so far cannot be compared with losses."""
    around = {
        "evaluate": counted_evaluation([0.9]), "evaluate_every": 2,
        "best_metric": "score", "greater_is_better": True,
    }  # fmt: skip
    with pytest.raises(Interrupted):
        run(signalled(make_model(HEAD), 5), rows, staging=tmp_path, around=around, **SETTINGS)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    with pytest.raises(ConfigError, match=words):
        run(
            make_model(HEAD), rows, staging=tmp_path,
            around=around | {"resume": checkpoint} | judged, **SETTINGS,
        )  # fmt: skip


def test_logging_may_change_on_resume(rows: Any, make_model: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(signalled(make_model(HEAD), 3), rows, staging=tmp_path, **SETTINGS)
    result = run(
        make_model(HEAD), rows, staging=tmp_path,
        around={"resume": tmp_path / "checkpoint-2"}, **SETTINGS | {"logging_steps": 1},
    )  # fmt: skip
    assert [point["step"] for point in result.history] == list(range(2, 16))
