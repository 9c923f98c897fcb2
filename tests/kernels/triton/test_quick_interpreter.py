"""What the tests' interpreter remembers changes no bit of what the plain interpreter computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from tests.kernels.triton.int8_layers import Int8Layer
from tests.kernels.triton.layers import Layer

REPOSITORY = Path(__file__).resolve().parents[3]

PLAIN = """
import sys
import torch
from triton.runtime import interpreter
from tests.kernels.triton.test_quick_interpreter import results
made = results()
assert not hasattr(interpreter._patch_lang, "__wrapped__"), "this interpreter remembers"
torch.save(made, sys.argv[1])
"""


def results() -> dict[str, Tensor]:
    """Values and gradients of layers that go through every kind of kernel, in two passes each."""
    layers = {
        "fp32, dropout": Layer((37, 40, 72, 5), dropout=0.3),
        "bf16, transposed": Layer((37, 40, 72, 16), dtype=torch.bfloat16, transposed=True),
        "fp16, cublas": Layer((5, 33, 24, 3), dtype=torch.float16, base="cublas", dropout=0.2),
        "int8": Int8Layer((37, 40, 72, 5), dtype=torch.bfloat16, dropout=0.3),
    }
    made: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for number in range(2):
            out = layer.forward()
            gradients = layer.backward(out)
            named = {"y": out.y, "x": gradients.x, "A": gradients.lora_a, "B": gradients.lora_b}
            made |= {f"{name}: {key} {number}": t for key, t in named.items() if t is not None}
    return made


def test_the_plain_interpreter_computes_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "plain.pt"
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(file)], cwd=REPOSITORY, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    plain, remembered = torch.load(file), results()
    assert plain.keys() == remembered.keys()
    assert len(plain) == 4 * 2 * 4
    assert [name for name, t in plain.items() if not torch.equal(t, remembered[name])] == []
