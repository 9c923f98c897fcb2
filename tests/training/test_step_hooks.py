"""What a method adds to a step acts in training, not in the reports, and survives a resume."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftlab.config.methods.options import METHODS
from peftlab.errors import CheckFailed, ConfigError, Interrupted
from peftlab.methods.apply import apply_method, method_of, save_trained
from peftlab.methods.method import Applied
from peftlab.training.checkpoint import METHOD
from tests.training.test_resume import assert_same_bits, signalled

datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("ignore")

HEAD = "bert-classification"
SETTINGS: dict[str, Any] = {
    "head": HEAD, "global_batch_size": 4, "micro": 2, "max_steps": 8, "save_every": 2,
    "lr_scheduler_type": "constant", "learning_rate": 0.05,
}  # fmt: skip


@pytest.fixture
def rows(make_rows: Any) -> Any:
    return datasets.Dataset.from_list(make_rows(HEAD, 16))


def adalora(model: nn.Module, seed: int = 3, **settings: Any) -> tuple[Applied, Any]:
    chosen = METHODS["peft"].model_validate({"name": "peft", "peft_type": "ADALORA", **settings})
    torch.manual_seed(seed)
    applied = apply_method(model, chosen, task="text-classification")
    hooks = method_of(chosen).step_hooks(applied)
    assert hooks is not None
    hooks.begin(8)
    return applied, hooks


def ranks(model: Any) -> int:
    values = [p for n, p in model.named_parameters() if "lora_E" in n]
    return sum(int((v != 0).sum()) for v in values)


@pytest.mark.parametrize("tfinal", [0, 3])
def test_adalora_resumes_in_the_same_bits(
    tfinal: int, rows: Any, make_model: Any, run: Any, tmp_path: Path
) -> None:
    whole, hooks = adalora(make_model(HEAD), tfinal=tfinal)
    run(whole.model, rows, around={"hooks": hooks}, **SETTINGS)
    layers = sum("lora_E" in name for name in whole.trainable)
    assert 8 * layers <= ranks(whole.model) < 12 * layers

    stopped, hooks = adalora(make_model(HEAD), tfinal=tfinal)
    signalled(stopped.model, 11, signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(stopped.model, rows, staging=tmp_path, around={"hooks": hooks}, **SETTINGS)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    resumed, hooks = adalora(make_model(HEAD), seed=9, tfinal=tfinal)
    around = {"resume": checkpoint, "hooks": hooks}
    run(resumed.model, rows, staging=tmp_path, around=around, **SETTINGS)
    assert_same_bits(resumed.model, whole.model)

    resumed, hooks = adalora(make_model(HEAD), seed=9, tfinal=tfinal)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    (checkpoint / METHOD).unlink()
    around = {"resume": checkpoint, "hooks": hooks}
    with pytest.raises(CheckFailed, match=r"method\.safetensors cannot be read"):
        run(resumed.model, rows, staging=tmp_path, around=around, **SETTINGS)


def test_the_term_trains_and_is_not_reported(rows: Any, make_model: Any, run: Any) -> None:
    settings = SETTINGS | {"max_steps": 2, "save_every": "never"}
    losses, factors = [], []
    for weight in (0.0, 0.5):
        applied, hooks = adalora(make_model(HEAD), orth_reg_weight=weight)
        result = run(applied.model, rows, around={"hooks": hooks}, **settings)
        losses.append([entry["loss"] for entry in result.history if "loss" in entry])
        factors.append(next(p for n, p in applied.model.named_parameters() if "lora_A" in n))
    assert losses[0][0] == losses[1][0]
    assert not torch.equal(*factors)


def test_ranks_that_are_saved_are_those_of_the_weights(make_model: Any, tmp_path: Path) -> None:
    """The weights kept may be an earlier step's, and PEFT's own note the last one's."""
    applied, _ = adalora(make_model(HEAD))
    settings: Any = applied.model.peft_config["default"]  # type: ignore[index,union-attr]
    names = [n for n, _ in applied.model.named_parameters() if "lora_E" in n]
    with torch.no_grad():
        for name, parameter in applied.model.named_parameters():
            if "lora_E" in name:
                parameter.copy_(torch.arange(12.0)[:, None])
    settings.rank_pattern = {n.removeprefix("base_model.model."): [False] * 12 for n in names}
    save_trained(applied, tmp_path)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {len(t) for n, t in saved.items() if n.endswith("lora_E")} == {11}


def test_an_optimizer_is_made_once(
    rows: Any, make_model: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftlab.training.item_mean_trainer import ItemMeanTrainer

    create, seen = ItemMeanTrainer.create_optimizer, []

    def twice(self: Any, model: Any = None) -> Any:
        first = create(self, model)
        assert create(self, model) is first
        seen.append(len(first._optimizer_step_post_hooks))
        return first

    monkeypatch.setattr(ItemMeanTrainer, "create_optimizer", twice)
    applied, hooks = adalora(make_model(HEAD))
    run(applied.model, rows, around={"hooks": hooks}, **SETTINGS | {"save_every": "never"})
    assert seen == [1]


def test_too_few_steps_for_the_schedule(make_model: Any) -> None:
    _, hooks = adalora(make_model(HEAD), tinit=5, tfinal=2)
    with pytest.raises(ConfigError, match=r"none of the run's 7 steps"):
        hooks.begin(7)
