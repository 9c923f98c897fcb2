"""The tensors that an outline announces, each made once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.export.merge import adapter_source, laid_out
from peftlab.export.tensors import Tensors, based
from peftlab_kernels.int8_format import int8_dequantize, int8_quantize

from .adapters import Made

pytestmark = [
    pytest.mark.poison_empty(False),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
LAYER = "transformer.h.0.attn.c_attn"


def made_of(made: Made, dtype: torch.dtype | None = None, **source: Any) -> tuple[Any, Tensors]:
    result = replace(adapter_source(made.adapter, str(made.base)), **source)
    built, plan = laid_out(result, dtype=dtype)
    return plan.outputs, Tensors(built, result.changes, plan.outputs)


def delta(made: Made, layer: str) -> torch.Tensor:
    state = load_file(made.adapter / "adapter_model.safetensors")
    a, b = (state[f"base_model.model.{layer}.lora_{part}.weight"].double() for part in "AB")
    return (8 / 4 * (b @ a)).T  # Conv1D


def test_a_merged_tensor_is_the_base_with_the_adapter_rounded_once(tmp_path: Path) -> None:
    made = Made(tmp_path, "gpt2", target_modules=["c_attn"], dtype=torch.bfloat16)
    exact = load_file(made.base / "model.safetensors")[f"{LAYER}.weight"].double()
    exact += delta(made, LAYER)
    for dtype in (None, torch.float32):
        outputs, tensors = made_of(made, dtype)
        result = {o.spec.name: tensors.made(o) for o in outputs if o.kind == "merged"}
        got = result[f"{LAYER}.weight"]
        assert got.dtype is (dtype or torch.bfloat16)
        assert torch.allclose(got.double(), exact, rtol=2**-8 if dtype is None else 1e-6, atol=1e-7)
        assert tensors.consumed == 4


def test_what_was_in_8_bits_is_merged_over_its_codes(tmp_path: Path) -> None:
    """`through` a dtype too, if weights were rounded to one before they were quantised."""
    made = Made(tmp_path, "gpt2", target_modules=["c_attn"])
    weight = load_file(made.base / "model.safetensors")[f"{LAYER}.weight"]
    for through in (None, torch.bfloat16):
        outputs, tensors = made_of(made, quantised=lambda _: (LAYER,), through=through)
        output = next(o for o in outputs if o.spec.name == f"{LAYER}.weight")
        codes, scales = int8_quantize((weight if through is None else weight.to(through)).T)
        rounded = int8_dequantize(codes, scales, torch.empty(codes.shape)).T
        assert torch.equal(based(output), rounded)
        exact = rounded.double() + delta(made, LAYER)
        assert torch.allclose(tensors.made(output).double(), exact, rtol=1e-6, atol=1e-7)


def test_codes_again_bring_their_scales(tmp_path: Path) -> None:
    made = Made(tmp_path, "gpt2", target_modules=["c_attn"])
    plain, tensors = made_of(made, quantised=lambda _: (LAYER,))
    merged = tensors.made(next(o for o in plain if o.spec.name == f"{LAYER}.weight"))
    outputs, tensors = made_of(made, quantised=lambda _: (LAYER,), requantise=True)
    result = {
        o.spec.name.removeprefix(f"{LAYER}."): tensors.made(o)
        for o in outputs
        if o.in_8bit or o.kind in ("scales", "format")
    }
    codes, scales = int8_quantize(merged.T)
    assert torch.equal(result["weight"], codes)
    assert torch.equal(result["SCB"], scales)
    assert result["weight_format"].dtype is torch.uint8


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path, "gpt2", target_modules=["c_attn"])
    file = made.adapter / "adapter_model.safetensors"
    state = load_file(file)
    state[f"base_model.model.{LAYER}.lora_B.weight"].fill_(1e30)
    save_file(state, file, metadata={"format": "pt"})
    outputs, tensors = made_of(made, torch.float16)
    output = next(o for o in outputs if o.spec.name == f"{LAYER}.weight")
    with pytest.raises(CheckFailed, match=f"{LAYER}.weight is not finite as F16"):
        tensors.made(output)
