"""Reused memory: each tensor keeps its values until its use is requested again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftlab.export.merge import adapter_source, laid_out
from peftlab.export.scratch import Scratch
from peftlab.export.skeleton import Skeleton
from peftlab.export.streamed import streamed
from peftlab.export.tensors import Tensors

from .adapters import Made


def test_memory_grows_and_is_shared_by_use() -> None:
    scratch = Scratch()
    small = scratch.tensor("a", (3, 5), torch.float32).fill_(7)
    again = scratch.tensor("a", (5, 3), torch.bfloat16)
    assert again.data_ptr() == small.data_ptr()
    assert (again.shape, again.dtype) == ((5, 3), torch.bfloat16)
    other = scratch.tensor("b", (3, 5), torch.float32).fill_(1)
    assert not torch.equal(other, small)
    larger = scratch.tensor("a", (7, 11), torch.float64)
    assert larger.is_contiguous()
    assert larger.fill_(2).sum() == 2 * 77
    assert scratch.tensor("a", (), torch.float32).shape == ()
    assert scratch.tensor("a", (0, 4), torch.float32).numel() == 0


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
def test_a_merged_tensor_stays_until_the_second_after_it(
    dtype: torch.dtype | None, tmp_path: Path
) -> None:
    made = Made(tmp_path, "llama", dtype=torch.bfloat16, r=3, target_modules="all-linear")
    built, plan = laid_out(adapter_source(made.adapter), dtype=dtype)
    changes = adapter_source(made.adapter).changes
    outputs = [output for output in plan.outputs if output.kind == "merged"]
    assert len(outputs) > 4
    alone = Tensors(built, changes, plan.outputs)
    expected = [alone.made(output).clone() for output in outputs]
    tensors = Tensors(built, changes, plan.outputs, overwrite=True)
    before: Tensor | None = None
    for index, output in enumerate(outputs):
        result = tensors.made(output)
        assert torch.equal(result, expected[index])
        if before is not None:
            assert torch.equal(before, expected[index - 1])
        before = result


def test_parts_of_a_module_that_come_apart_are_not_overwritten(tmp_path: Path) -> None:
    made = Made(tmp_path, "gpt2", r=2, target_modules=["c_attn"], bias="lora_only")
    source = adapter_source(made.adapter)
    built, plan = laid_out(source)
    outputs = [output for output in plan.outputs if output.kind == "merged"]
    # All weights first, then what else each module has.
    outputs.sort(key=lambda output: output.parameter.endswith("bias"))
    alone = Tensors(built, source.changes, plan.outputs)
    expected = {output.spec.name: alone.made(output).clone() for output in plan.outputs
                if output.kind == "merged"}  # fmt: skip
    tensors = Tensors(built, source.changes, plan.outputs, overwrite=True)
    held = {output.spec.name: tensors.made(output) for output in outputs[:2]}
    for name, tensor in held.items():
        assert torch.equal(tensor, expected[name])


class _Slices(nn.Module):
    """Hands out a part of its own weight, as tables of positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 3))

    def forward(self, length: int) -> dict[str, Tensor]:
        return {"rows": self.weight[:length]}


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _Slices(), _Slices()

    @classmethod
    def _from_config(cls, _: Any, dtype: torch.dtype) -> _Two:
        return cls().to(dtype)

    def forward(self, length: int) -> Tensor:
        first = self.first(length)["rows"]
        second = self.second(length)["rows"]
        return torch.stack([first, second])


def test_what_a_module_hands_on_of_its_weights_outlives_them() -> None:
    given = {"first.weight": torch.randn(6, 3), "second.weight": torch.randn(6, 3)}
    skeleton = Skeleton(_Two(), None, {}, (), {}, Path())
    with streamed(skeleton, given.__getitem__, {}) as model:
        result = model(4)
    assert torch.equal(result, torch.stack([given["first.weight"][:4], given["second.weight"][:4]]))
