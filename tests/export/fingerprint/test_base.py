"""A base is identified by its tensors, not by its location or its shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.export.fingerprint.hashes import differences, fingerprint
from peftlab.export.safetensors_files import stored_in


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {
        "a.weight": torch.randn(33, 7, generator=draw),
        "b.weight": torch.randn(300, 256, generator=draw),  # longer than what is sampled of it
        "c.bias": torch.randn(5, generator=draw).bfloat16(),
        "d.none": torch.zeros(0, 4),
    }


def stored(folder: Path, *files: dict[str, torch.Tensor]) -> dict[str, object]:
    folder.mkdir(parents=True)
    for number, state in enumerate(files):
        save_file(state, folder / f"{number}.safetensors")
    return dict(stored_in(sorted(folder.glob("*.safetensors"))))


def test_neither_sharding_nor_order_nor_place_matters(tmp_path: Path) -> None:
    state = tensors()
    one = fingerprint(stored(tmp_path / "one", state))  # type: ignore[arg-type]
    first, *rest = reversed(state.items())
    cut = stored(tmp_path / "some" / "where", dict([first]), dict(rest))
    assert fingerprint(cut) == one  # type: ignore[arg-type]
    assert json.loads(json.dumps(one)) == one
    assert differences(one, cut) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [0, 299 * 256 + 255])
def test_another_value_is_reported_by_name(tmp_path: Path, at: int) -> None:
    """First and last bytes are among those sampled."""
    known = fingerprint(stored(tmp_path / "one", tensors()))  # type: ignore[arg-type]
    other = tensors()
    other["b.weight"].view(-1)[at] += 1
    changed = stored(tmp_path / "two", other)
    assert differences(known, changed) == ("b.weight has other values",)  # type: ignore[arg-type]
    assert differences(known, changed, only=["a.weight"]) == ()  # type: ignore[arg-type]


def test_shapes_dtypes_and_absence_are_reported(tmp_path: Path) -> None:
    known = fingerprint(stored(tmp_path / "one", tensors()))  # type: ignore[arg-type]
    other = tensors()
    other["a.weight"] = other["a.weight"][:32].clone()
    other["b.weight"] = other["b.weight"].half()
    del other["c.bias"]
    sentences = differences(known, stored(tmp_path / "two", other))  # type: ignore[arg-type]
    assert sentences == (
        "a.weight is [32, 7], and was [33, 7]",
        "b.weight is F16, and was F32",
        "c.bias is missing",
    )


def test_a_prompt_is_held_to_the_whole_base(tiny_checkpoint: Any) -> None:
    """No layer is adapted, and every layer reads what was trained."""
    import transformers
    from peft import PromptTuningConfig, get_peft_model

    from peftlab.export.fingerprint.base import trained_on

    folder = tiny_checkpoint("llama", "causal")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    known = trained_on(str(folder), None, get_peft_model(base, config), trust_remote_code=False)
    assert known is not None
    assert set(known["tensors"]) == set(load_file(folder / "model.safetensors"))
