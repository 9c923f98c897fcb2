"""A configuration key that no code reads would be a promise that nobody keeps."""

from __future__ import annotations

import ast
from pathlib import Path

from peftlab.config.keys import every_key, sections_of
from peftlab.config.schema import RunConfig

PACKAGE = Path(__file__).resolve().parents[2] / "peftlab"

# Sections handed on whole, as keyword arguments of a library, by `model_dump()` on the attribute.
HANDED_ON = {"eval.generation"}


def reading_modules() -> list[ast.Module]:
    return [
        ast.parse(path.read_text(encoding="utf-8"), str(path))
        for path in sorted(PACKAGE.rglob("*.py"))
        if PACKAGE / "config" not in path.parents
    ]


def attributes_read(modules: list[ast.Module]) -> set[str]:
    """Names of all attributes that are read, or asked for by `getattr` with a literal."""
    found: set[str] = set()
    for node in (node for module in modules for node in ast.walk(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "getattr"
            and isinstance(node.args[1], ast.Constant)
        ):
            found.add(str(node.args[1].value))
    return found


def dumped_whole(modules: list[ast.Module]) -> set[str]:
    """Names of the attributes that `model_dump` is called on."""
    return {
        node.func.value.attr
        for module in modules
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "model_dump"
        and isinstance(node.func.value, ast.Attribute)
    }


def test_every_key_is_read() -> None:
    modules = reading_modules()
    read, dumped = attributes_read(modules), dumped_whole(modules)
    for section in HANDED_ON:
        assert section.rpartition(".")[2] in dumped, f"{section} is not handed on whole any more"
    keys = {
        key
        for key, field in every_key(None).items()
        if not sections_of(field.annotation) and key.rpartition(".")[0] not in HANDED_ON
    }
    # Another spelling is the same key.
    keys -= {"method.lora_alpha", "method.lora_dropout", "train.warmup_ratio"}
    unread = sorted(key for key in keys if key.rpartition(".")[2] not in read)
    assert unread == [], "these keys are read by nothing in peftlab/"


def test_the_test_sees_a_key_that_nothing_reads() -> None:
    read = attributes_read(
        [ast.parse("def f(train):\n    train.seed = 1\n    return train.optim\n")]
    )
    assert "optim" in read
    assert "seed" not in read
    assert set(RunConfig.model_fields) - {"task"} <= {
        key for key, field in every_key(None).items() if sections_of(field.annotation)
    }
