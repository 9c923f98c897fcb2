"""One rule of dtypes for every device, decided before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.errors import CheckFailed
from peftlab.model import precision
from peftlab.model.head_spec import HeadSpec
from peftlab.model.loading import load_model
from peftlab.model.precision import choose_precision
from tests.checkpoints import write_checkpoint

F32, B16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("requested", "checkpoint", "device", "units", "at_rest", "compute", "noted"),
    [
        ("auto", F32, "cpu", False, F32, F32, False),
        ("auto", B16, "cpu", False, B16, F32, True),
        ("auto", F16, "cpu", False, F16, F32, True),
        ("auto", F32, "cpu", True, F32, B16, False),
        ("auto", B16, "cpu", True, B16, B16, False),
        ("auto", F16, "cpu", True, B16, B16, True),
        ("auto", F16, "cuda", True, F16, B16, False),
        ("auto", B16, "cuda", False, F32, F32, True),
        ("float32", B16, "cpu", True, F32, F32, False),
        ("bfloat16", F32, "cpu", True, B16, B16, False),
        ("float16", F32, "cuda", True, F16, B16, False),
    ],
)
def test_the_rule(
    monkeypatch: pytest.MonkeyPatch,
    requested: Any,
    checkpoint: torch.dtype,
    device: str,
    units: bool,
    at_rest: torch.dtype,
    compute: torch.dtype,
    noted: bool,
) -> None:
    monkeypatch.setattr(precision, "has_bf16_units", lambda _: units)
    chosen = choose_precision(requested, checkpoint, device)
    assert (chosen.at_rest, chosen.compute) == (at_rest, compute)
    assert bool(chosen.notes) is noted
    assert chosen.fp32_activations is (compute is F32 and at_rest is not F32)
    wide = choose_precision(requested, checkpoint, device, fp32_at_rest=True)
    assert not wide.fp32_activations
    assert wide.compute is compute
    assert wide.at_rest is (F32 if chosen.fp32_activations else at_rest)


@pytest.mark.parametrize(
    ("requested", "device", "units"),
    [("float16", "cpu", False), ("float16", "cpu", True), ("float16", "cuda", False),
     ("bfloat16", "cpu", False), ("bfloat16", "cuda", False)],
)  # fmt: skip
def test_what_the_device_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, requested: Any, device: str, units: bool
) -> None:
    monkeypatch.setattr(precision, "has_bf16_units", lambda _: units)
    with pytest.raises(CheckFailed, match=f"model.dtype is {requested}.*auto or float32"):
        choose_precision(requested, F32, device)


@pytest.mark.parametrize("checkpoint", ["bfloat16", "float16"])
def test_the_dtype_of_a_16bit_checkpoint_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str
) -> None:
    folder = str(write_checkpoint(tmp_path / checkpoint, "llama", "causal", dtype=checkpoint))
    head = HeadSpec("AutoModelForCausalLM")

    def load(units: bool, **settings: Any) -> tuple[set[torch.dtype], str, bool]:
        monkeypatch.setattr(precision, "cpu_has_bf16_units", lambda: units)
        loaded = load_model(folder, head, **settings)
        dtypes = {p.dtype for p in loaded.model.parameters()}
        return dtypes, " ".join(loaded.notes), loaded.fp32_activations

    dtypes, notes, activations = load(units=False)
    assert (dtypes, activations) == ({getattr(torch, checkpoint)}, True)
    assert f"stay in {checkpoint}, arithmetic and activations are float32" in notes
    dtypes, notes, activations = load(units=False, fp32_at_rest=True)
    assert (dtypes, activations) == ({F32}, False)
    assert "loaded in float32, which takes twice its size" in notes
    assert load(units=True)[::2] == ({B16}, False)
    assert load(units=True, fp32_at_rest=True)[::2] == ({B16}, False)
