"""Every tensor of a merged model, laid out before one is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.export.merge import adapter_source, laid_out
from peftlab.export.outline import Outline
from peftlab.export.source import Source

from .adapters import Made

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def of(made: Made, *, dtype: torch.dtype | None = None, **source: Any) -> Outline:
    from dataclasses import replace

    given: Source = replace(adapter_source(made.adapter, str(made.base)), **source)
    return laid_out(given, dtype=dtype)[1]


def kinds(plan: Outline) -> dict[str, int]:
    return dict(Counter(output.kind for output in plan.outputs))


def test_adapted_tensors_are_merged_and_all_others_copied(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", target_modules=["q_proj"])
    plan, base = of(made), load_file(made.base / "model.safetensors")
    assert [output.spec.name for output in plan.outputs] == list(base)
    assert kinds(plan) == {"merged": 2, "copied": len(base) - 2}
    assert {o.spec.name for o in plan.outputs if o.kind == "merged"} == {
        f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)
    }
    assert not plan.untied
    assert (plan.added, plan.dropped) == ((), ())


def test_another_dtype_casts_floats_and_leaves_what_has_it(tmp_path: Path) -> None:
    made = Made(tmp_path, "gpt2", target_modules=["c_attn"])
    assert {o.spec.dtype for o in of(made, dtype=torch.bfloat16).outputs} == {"BF16"}
    assert kinds(of(made, dtype=torch.bfloat16)).keys() == {"merged", "cast"}
    assert kinds(of(made, dtype=torch.float32)).keys() == {"merged", "copied"}


def test_a_saved_head_unties_and_is_named(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", target_modules=["q_proj"], modules_to_save=["lm_head"])
    plan = of(made)
    assert plan.untied
    assert plan.added == ("lm_head.weight",)
    assert kinds(plan)["replaced"] == 1


def test_a_bare_base_is_written_by_the_models_names(tmp_path: Path) -> None:
    made = Made(tmp_path, "bert", bare=True, target_modules=["query"])
    plan = of(made)
    assert set(plan.added) == {"classifier.weight", "classifier.bias"}
    assert all(o.spec.name.startswith(("bert.", "classifier.")) for o in plan.outputs)


@pytest.mark.parametrize("requantise", [False, True])
def test_layers_that_were_in_8_bits(requantise: bool, tmp_path: Path) -> None:
    """Are rounded to that first, and if they are to rest so, have scales and a format as well."""
    made = Made(tmp_path, "gpt2", target_modules=["c_attn"])
    layers = ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc")
    plan = of(made, quantised=lambda _: layers, requantise=requantise)
    rounded = {o.parameter: o for o in plan.outputs if o.quantised}
    assert set(rounded) == {f"{name}.weight" for name in layers}
    assert {o.kind for o in rounded.values()} == {"merged", "cast"}
    assert all(o.transposed for o in rounded.values())
    assert kinds(plan).get("scales", 0) == kinds(plan).get("format", 0) == 2 * requantise
    specs = {o.spec.name: (o.spec.dtype, o.spec.shape) for o in plan.outputs}
    written = specs[f"{layers[1]}.weight"]
    assert written == (("I8", (128, 32)) if requantise else ("F32", (32, 128)))
    if requantise:
        assert specs[f"{layers[1]}.SCB"] == ("F32", (128,))
        assert specs[f"{layers[1]}.weight_format"] == ("U8", ())


def test_a_base_of_another_shape_or_without_a_layer_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", target_modules=["q_proj"])
    file = made.base / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(whole | {name: whole[name][:16].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckFailed, match=rf"{name} as \(16, 32\), but the model needs \(32, 32\)"):
        of(made)
    save_file({k: t for k, t in whole.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(CheckFailed, match=f"{name}"):
        of(made)
