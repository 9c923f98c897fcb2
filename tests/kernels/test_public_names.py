"""The names of `peftlab_kernels` itself: lazy, complete, and as its README uses them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

import peftlab_kernels

README = Path(peftlab_kernels.__file__).parents[1] / "README.md"


def test_every_name_resolves_and_no_other_does() -> None:
    assert peftlab_kernels.__all__ == sorted(peftlab_kernels._MODULES)
    for name in peftlab_kernels.__all__:
        assert getattr(peftlab_kernels, name).__name__ == name
    with pytest.raises(AttributeError, match="'peftlab_kernels' has no attribute 'lora_liner'"):
        peftlab_kernels.lora_liner  # noqa: B018


def test_the_package_imports_nothing_until_a_name_is_used() -> None:
    """torch._dynamo, which some of its modules import, takes seconds."""
    tree = ast.parse(Path(peftlab_kernels.__file__).read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert len(imports) == len(modules)
    assert modules == {"__future__", "importlib", "typing"}


def test_the_readme_s_example_runs() -> None:
    """Its first block of Python, on tensors of the shapes that it names."""
    text = README.read_text(encoding="utf-8")
    (example, *_) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shapes = {"x": (3, 8), "weight": (6, 8), "lora_a": (2, 8), "lora_b": (6, 2), "bias": (6,)}
    names = {name: torch.randn(shape) for name, shape in shapes.items()}
    exec(example, names)
    assert names["y"].shape == (3, 6)
