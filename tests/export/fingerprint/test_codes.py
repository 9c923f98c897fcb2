"""Codes are known by a sample of rows: from a layer, from 8-bit files, from what they come of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from peftlab.export.fingerprint.codes import codes_of, differences
from peftlab.export.safetensors_files import stored_in
from peftlab_kernels.int8_linear import Int8Linear

KEY = "block.0.wide.weight"


def weight(rows: int = 70, columns: int = 33) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def files(folder: Path, **tensors: torch.Tensor) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    state = {name.replace("__", "."): t.contiguous() for name, t in tensors.items()}
    save_file(state, folder / "model.safetensors")
    return stored_in([folder / "model.safetensors"])


def floats(folder: Path, matrix: torch.Tensor) -> Any:
    return files(folder, **{KEY.replace(".", "__"): matrix})


def eight_bits(folder: Path, layer: Int8Linear) -> Any:
    stem = KEY.removesuffix("weight").replace(".", "__")
    return files(folder, **{f"{stem}weight": layer.weight.data, f"{stem}SCB": layer.SCB})


@pytest.mark.parametrize("shape", [(70, 33), (3, 5), (16, 16), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_layer_its_files_and_what_they_come_of_agree(
    shape: tuple[int, int], dtype: torch.dtype, transposed: bool, tmp_path: Path
) -> None:
    matrix = weight(*shape).to(dtype)
    layer = Int8Linear.from_weight(matrix)
    source = floats(tmp_path / "source", matrix.T if transposed else matrix)
    known = codes_of({KEY: layer}, source)
    assert known["rounded"] is None
    assert known["tensors"][KEY]["shape"] == list(shape)
    assert known["tensors"][KEY]["transposed"] == transposed or shape == (1, 1)
    codes = eight_bits(tmp_path / "codes", layer)
    assert differences(known, source) == differences(known, codes) == ()
    again = codes_of({KEY: layer}, codes)
    assert again["tensors"][KEY]["sample"] == known["tensors"][KEY]["sample"]


def test_weights_that_were_rounded_before_are_known_for_it(tmp_path: Path) -> None:
    layer = Int8Linear.from_weight(weight().bfloat16())
    known = codes_of({KEY: layer}, floats(tmp_path, weight()))
    assert known["rounded"] == "BF16"
    assert differences(known, floats(tmp_path, weight())) == ()


@pytest.mark.parametrize("row", [0, 69])
def test_another_code_another_scale_and_another_source_are_reported(
    row: int, tmp_path: Path
) -> None:
    """First and last rows are among those sampled."""
    layer = Int8Linear.from_weight(weight())
    known = codes_of({KEY: layer}, floats(tmp_path, weight()))
    layer.SCB[row] *= 1.001
    assert differences(known, eight_bits(tmp_path, layer)) == (f"{KEY} has other codes",)
    layer = Int8Linear.from_weight(weight())
    layer.weight.data[row, -1] += 1
    assert differences(known, eight_bits(tmp_path, layer)) == (f"{KEY} has other codes",)
    other = weight()
    other[row] *= 1.01
    assert differences(known, floats(tmp_path, other)) == (f"{KEY} has other codes",)
    other[row] = float("nan")
    (difference,) = differences(known, floats(tmp_path, other))
    assert difference.startswith(f"{KEY} has no codes (row")
    assert differences(known, floats(tmp_path, weight(71))) == (
        f"{KEY} is [71, 33], and was [70, 33]",
    )
    assert differences(known, {}) == (f"{KEY} is missing",)
    assert differences(known, {}, only=()) == ()


def test_a_source_that_did_not_make_the_codes_is_no_source_of_theirs(tmp_path: Path) -> None:
    source = floats(tmp_path, weight() * 2)
    known = codes_of({KEY: Int8Linear.from_weight(weight())}, source)
    assert differences(known, source) == (f"{KEY} has other codes",)
