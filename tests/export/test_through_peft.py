"""Adapters that PEFT merges: what cannot be merged is refused before, or by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import VeraConfig, get_peft_model
from peft.tuners.vera import VeraModel
from transformers import BertForSequenceClassification

from peftlab.errors import CheckFailed
from peftlab.export import merge as merging
from tests.checkpoints import tiny_config, write_tokenizer

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def vera(tmp_path: Path) -> tuple[Path, Path]:
    """A base and an adapter on it that changes something."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config("bert"))
    model.save_pretrained(base)
    write_tokenizer(base, "bert")
    model.config._name_or_path = str(base)
    adapted = get_peft_model(model, VeraConfig(r=4, task_type="SEQ_CLS", target_modules=["query"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "vera_lambda" in name:
                parameter.fill_(0.5)
    adapted.save_pretrained(adapter)
    return base, adapter


def test_only_what_is_adapted_is_written_anew(vera: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base, adapter = vera
    merging.merge(adapter, tmp_path / "out", base=str(base))
    first, merged = (load_file(p / "model.safetensors") for p in (base, tmp_path / "out"))
    changed = {name for name in first if not torch.equal(first[name], merged[name])}
    assert changed == {f"bert.encoder.layer.{i}.attention.self.query.weight" for i in range(2)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": ()}, "base is not on this machine"),
        ({"in_8bit": True}, r"is stored in 8 bits; .* with --base\.$"),
    ],
)
def test_a_base_whose_weights_cannot_be_read_is_refused(
    changes: dict[str, Any], message: str, vera: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base, adapter = vera
    read = merging.read_checkpoint_config

    def changed(*args: Any, **kwargs: Any) -> Any:
        return replace(read(*args, **kwargs), **changes)

    monkeypatch.setattr(merging, "read_checkpoint_config", changed)
    with pytest.raises(CheckFailed, match=message):
        merging.merge(adapter, tmp_path / "out", base=str(base))


def test_an_adapter_on_what_is_converted_is_refused(
    vera: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its merged weight is in no tensor of the checkpoint, and would be lost."""
    base, adapter = vera
    build = merging._built

    def built(*args: Any) -> Any:
        made = build(*args)
        names = {n: key for n, key in made.names.items() if n != f"{QUERY}.weight"}
        return replace(made, names=names, converted={f"{QUERY}.weight": ("one", "two")})

    monkeypatch.setattr(merging, "_built", built)
    with pytest.raises(CheckFailed, match=rf"adapts {QUERY}, which .* from 2 tensors"):
        merging.merge(adapter, tmp_path / "out", base=str(base))


@pytest.mark.parametrize("fault", [RuntimeError, TypeError])
def test_pefts_own_refusal_is_named(
    fault: type[Exception], vera: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base, adapter = vera

    def refuse(self: Any) -> None:
        raise fault("sizes differ.")

    monkeypatch.setattr(VeraModel, "merge_and_unload", refuse)
    with pytest.raises(CheckFailed, match=r"VERA, which PEFT cannot merge .*: sizes differ\.$"):
        merging.merge(adapter, tmp_path / "out", base=str(base))
