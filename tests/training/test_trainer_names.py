"""Every optimizer and schedule of Trainer: it trains, or a message says why not."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from peftlab.errors import ConfigError
from peftlab.training.trainer_names import check_choices

HEAD = "bert-classification"


@pytest.mark.parametrize("optim", [name.value for name in OptimizerNames])
def test_optimizers(
    optim: str, make_model: Any, make_rows: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(HEAD, lora=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    refusal, result = "", None
    try:
        with caplog.at_level(logging.WARNING, logger="peftlab"):
            result = run(model, make_rows(HEAD, 8), global_batch_size=4, max_steps=3, optim=optim)
    except ConfigError as error:
        refusal = str(error)
    if result is None:
        assert optim in refusal
        assert "adamw_torch" in refusal
        assert optim not in {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop"}
        return
    assert result.steps == 3
    moved = dict(model.named_parameters())
    assert any(not torch.equal(moved[name], tensor) for name, tensor in before.items())
    assert all(torch.isfinite(moved[name]).all() for name in before)
    if optim.startswith("paged_") and not torch.cuda.is_available():
        assert "unpaged" in caplog.text


def test_8_bit_state_is_small(make_model: Any, make_rows: Any, run: Any) -> None:
    pytest.importorskip("bitsandbytes")
    from torch import nn
    from transformers.modeling_outputs import SequenceClassifierOutput

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4096, 3)

        def forward(self, features: torch.Tensor) -> Any:
            return SequenceClassifierOutput(logits=self.linear(features))

    def collate(rows: Any) -> Any:
        return {"features": torch.ones(len(rows), 4096), "labels": torch.zeros(len(rows)).long()}

    state = {}
    for optim in ("adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit"):
        around = {"collator": collate}
        state[optim] = run(
            Wide(), [{}] * 4, global_batch_size=4, max_steps=1, optim=optim, around=around
        ).optimizer_bytes
    assert state["adamw_bnb_8bit"] < 0.35 * state["adamw_torch"]
    assert state["paged_adamw_8bit"] < 0.35 * state["adamw_torch"]


@pytest.mark.parametrize("schedule", [name.value for name in SchedulerType])
def test_schedules(schedule: str, make_model: Any, make_rows: Any, run: Any) -> None:
    result = run(
        make_model(HEAD, lora=True), make_rows(HEAD, 8), global_batch_size=2,
        num_train_epochs=5, lr_scheduler_type=schedule, warmup_steps=0.1,
        around={"evaluate": lambda model: {"loss": 1.0}},
    )  # fmt: skip
    rates = [point["learning_rate"] for point in result.history if "loss" in point]
    assert len(rates) == 20
    assert max(rates) == pytest.approx(1e-2)
    if schedule in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        assert rates[-1] == pytest.approx(1e-3, rel=0.2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optim": "adamw_troch"}, "train.optim is 'adamw_troch'; did you mean adamw_torch"),
        ({"lr_scheduler_type": "cosin"}, "did you mean cosine"),
        ({"report_to": ["tensorbord"]}, "output.report_to is 'tensorbord'; did you mean tenso"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "evaluates": False}, "set eval.every"),
    ],
)
def test_unknown_names(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_choices(**{"optim": "adamw_torch", "lr_scheduler_type": "linear"} | changed)
