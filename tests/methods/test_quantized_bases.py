"""Adapters over bases in 8 and 4 bits: what trains, what is counted, and that nothing is merged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from peftlab.fusion import fuse
from peftlab.measure.memory import tensor_bytes, weight_bytes
from peftlab.methods.apply import apply_method
from peftlab.methods.method import Applied
from peftlab_kernels.int8_linear import Int8Linear
from tests.methods.common import CAUSAL, CLASSIFICATION, FOLDER_TASK, batch, load, method, step

Tiny = Callable[..., Path]
CASES = [("bert", CLASSIFICATION), ("gpt2", CAUSAL), ("t5", CLASSIFICATION), ("llama", CAUSAL)]


def applied(folder: Path, task: str, **settings: Any) -> tuple[Any, Applied]:
    chosen = method("qlora", **{"r": 2, "dropout": 0.0} | settings)
    loaded = load(folder, task, chosen)
    return loaded, apply_method(loaded.model, chosen, task=task)


def codes(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{n}.{k}": t.clone()
        for n, m in model.named_modules()
        if isinstance(m, Int8Linear)
        for k, t in m.state_dict().items()
    }


@pytest.mark.parametrize(("family", "task"), CASES)
def test_adapters_train_in_fp32_over_frozen_codes(
    tiny_checkpoint: Tiny, tmp_path: Path, family: str, task: str
) -> None:
    folder = tiny_checkpoint(family, FOLDER_TASK[task])
    loaded, found = applied(folder, task)
    model: Any = found.model
    before = codes(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == found.trainable
    assert {p.dtype for p in trained.values()} == {torch.float32}
    inputs = batch(loaded)
    with torch.no_grad(), model.disable_adapter():
        base = model.eval()(**inputs).logits
    for _ in range(2):
        step(model, inputs, task)
    with torch.no_grad():
        adapted = model.eval()(**inputs).logits
    assert not torch.equal(adapted, base)
    after = codes(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())

    model.save_pretrained(tmp_path)
    again = load(folder, task, method("qlora"))
    read = PeftModel.from_pretrained(again.model, str(tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(read(**inputs).logits, adapted)


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("how", ["merge_adapter", "merge_and_unload"])
def test_nothing_is_merged_into_codes(
    tiny_checkpoint: Tiny, how: str, fused: bool, safe: bool
) -> None:
    loaded, found = applied(tiny_checkpoint("llama", "causal"), CAUSAL)
    model: Any = found.model
    step(model, batch(loaded), CAUSAL)
    if fused:
        fuse(model)
    before = codes(model)
    copied = copy.deepcopy(model)
    for one in (model, copied):
        with pytest.raises(ValueError, match="8-bit codes, into which no adapter can be merged"):
            getattr(one, how)(safe_merge=safe)
        after = codes(one)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())
    if fused:
        layer = next(m for m in model.modules() if type(m).__name__ == "FusedLoraLinear")
        with pytest.raises(ValueError, match="cannot be merged into 8-bit codes"):
            layer.merge(safe_merge=safe)


def test_what_is_counted(tiny_checkpoint: Tiny) -> None:
    folder = tiny_checkpoint("llama", "causal")
    plain = method("lora", r=2, dropout=0.0)
    loaded = load(folder, CAUSAL, plain)
    wanted = apply_method(loaded.model, plain, task=CAUSAL).coverage
    for empty in (False, True):
        chosen = method("qlora", r=2, dropout=0.0)
        model = load(folder, CAUSAL, chosen, empty=empty).model
        found = apply_method(model, chosen, task=CAUSAL).coverage
        assert (found.parameters, found.trained) == (wanted.parameters, wanted.trained)
        kinds = {row.pattern: row.kind for row in found.rows}
        assert kinds["model.layers.*.mlp.up_proj"] == "Int8Linear"
        assert kinds["lm_head"] == "Linear"

    model = load(folder, CAUSAL, method("qlora")).model
    in_8_bits = [m for m in model.modules() if isinstance(m, Int8Linear)]
    rows, scalars = (sum(f(m.weight) for m in in_8_bits) for f in (len, torch.numel))
    others = tensor_bytes(p for p in model.parameters() if p.dtype is not torch.int8)
    buffers = tensor_bytes(b for n, b in model.named_buffers() if "rotary" in n)
    assert weight_bytes(model) == scalars + (4 * rows + len(in_8_bits)) + others + buffers


@pytest.mark.parametrize(("family", "task"), [CASES[0], CASES[3]])
def test_4_bits_train(tiny_checkpoint: Tiny, family: str, task: str) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tiny_checkpoint(family, FOLDER_TASK[task])
    eight = applied(folder, task)[1].coverage
    loaded, found = applied(folder, task, bits=4)
    model: Any = found.model
    assert (found.coverage.parameters, found.coverage.trained) == (eight.parameters, eight.trained)
    assert weight_bytes(model) < weight_bytes(applied(folder, task)[1].model)
    inputs = batch(loaded)
    with torch.no_grad():
        before = model.eval()(**inputs).logits
    for _ in range(2):
        step(model, inputs, task)
    with torch.no_grad():
        after = model.eval()(**inputs).logits
    assert after.isfinite().all()
    assert not torch.equal(after, before)
