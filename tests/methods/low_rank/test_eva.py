"""EVA: ranks and A by the layers' inputs, kept by checkpoints and by what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.errors import CheckFailed
from peftlab.methods.apply import apply_method, load_trained, method_of, save_trained
from peftlab.methods.low_rank import eva
from peftlab.methods.low_rank.decomposed import lora_layers
from peftlab.methods.method import Beginning
from tests.methods.common import CAUSAL, CLASSIFICATION, FOLDER_TASK, batch, load, method, step

Tiny = Callable[..., Path]


def begin(tiny: Tiny, family: str, checkpoint: Path | None = None, **settings: Any) -> Any:
    task = CLASSIFICATION if family in ("bert", "t5") else CAUSAL
    kind = settings.pop("kind", "lora")
    given = {"r": 3, "alpha": 6, "dropout": 0.0, "init_lora_weights": "eva"} | settings
    chosen = method(kind, **given)
    loaded = load(tiny(family, FOLDER_TASK[task]), task, chosen)
    inputs = batch(loaded)
    with torch.no_grad():
        base = loaded.model.eval()(**inputs).logits
    applied = apply_method(loaded.model, chosen, task=task)
    beginning = Beginning(0, torch.float32, lambda: [inputs], checkpoint)
    return method_of(chosen).begin(applied, beginning), inputs, base


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qlora"])
def test_directions_of_the_inputs(family: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    over = {"kind": "qlora"} if family == "qlora" else {}
    name = "llama" if over else family
    applied, inputs, base = begin(tiny_checkpoint, name, **over)
    with torch.no_grad():
        assert torch.allclose(applied.model.eval()(**inputs).logits, base, atol=1e-5)
    layers = lora_layers(applied.model)
    ranks = {layer.r["default"] for layer in layers.values()}
    assert len(ranks) > 1, "ranks are redistributed"
    for layer in layers.values():
        a = layer.lora_A["default"].weight
        assert a.dtype is torch.float32
        assert torch.allclose(a @ a.T, torch.eye(len(a)), atol=1e-3)
        assert layer.scaling["default"] == pytest.approx(2)
    mine = {n for n, p in applied.model.named_parameters() if p.requires_grad}
    assert mine == applied.trainable
    step(applied.model, inputs, applied.task)
    with torch.no_grad():
        want = applied.model.eval()(**inputs).logits
    save_trained(applied, tmp_path)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["init_lora_weights"] is True
    assert said["rank_pattern"]
    task = FOLDER_TASK[applied.task]
    again = load(tiny_checkpoint(name, task), applied.task, applied.method, seed=4)
    found = load_trained(again.model, applied.method, tmp_path, task=applied.task)
    with torch.no_grad():
        assert torch.equal(found.model.eval()(**inputs).logits, want)


def test_a_checkpoint_carries_ranks_and_directions(
    tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied, _, _ = begin(tiny_checkpoint, "llama")
    applied.start.save(tmp_path)
    monkeypatch.setattr(eva, "directions", lambda *_: pytest.fail("no second pass"))
    resumed, _, _ = begin(tiny_checkpoint, "llama", tmp_path)
    assert resumed.trainable == applied.trainable
    for name in applied.trainable:
        first, second = (m.model.get_parameter(name) for m in (applied, resumed))
        assert torch.equal(first, second)


def test_too_few_positions_or_features(tiny_checkpoint: Tiny) -> None:
    with pytest.raises(CheckFailed, match="needs 30 positions a batch"):
        begin(tiny_checkpoint, "llama", r=15)
    with pytest.raises(CheckFailed, match="looks for 34 directions"):
        begin(tiny_checkpoint, "llama", r=17)


def test_a_pass_that_does_not_converge_ends(
    tiny_checkpoint: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eva, "_MOST_BATCHES", 1)
    with pytest.raises(CheckFailed, match="did not converge in 1 batches"):
        begin(tiny_checkpoint, "llama")


def test_a_layer_without_directions_is_refused(
    tiny_checkpoint: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = eva.get_eva_state_dict

    def lacking(*args: Any, **kwargs: Any) -> Any:
        return {n: a for n, a in whole(*args, **kwargs).items() if "layers.1.mlp.up_" not in n}

    monkeypatch.setattr(eva, "get_eva_state_dict", lacking)
    with pytest.raises(CheckFailed, match=r"no directions for model\.layers\.1\.mlp\.up_proj"):
        begin(tiny_checkpoint, "llama")
