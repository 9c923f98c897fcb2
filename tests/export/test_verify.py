"""The proof fails where a byte or a value is not what it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.errors import VerificationError
from peftlab.export.merge import adapter_source, laid_out, merge
from peftlab.export.safetensors_files import stored_in
from peftlab.export.verify import TOLERANCES, check_files, hashed, logit_error

from .adapters import FAMILIES, LINEAR, Made

pytestmark = [
    pytest.mark.poison_empty(False),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def merged(tmp_path: Path) -> Any:
    """An adapter, its outline, the hashes of what was copied, and the one file written."""
    made = Made(tmp_path, "llama", target_modules=["q_proj"])
    report = merge(made.adapter, made.out, base=str(made.base))
    _, plan = laid_out(adapter_source(made.adapter, str(made.base)))
    return made, plan.outputs, report.hashes, made.out / "model.safetensors"


def rewrite(file: Path, **changes: Any) -> None:
    state = load_file(file)
    for name, change in changes.items():
        key = name.replace("__", ".")
        if change is None:
            del state[key]
        else:
            state[key] = change(state[key]) if key in state else change(torch.ones(2))
    save_file(state, file, metadata={"format": "pt"})


def test_files_as_announced_pass(merged: Any) -> None:
    _, outputs, copied, file = merged
    assert check_files([file], outputs, copied).keys() == load_file(file).keys()
    stored = stored_in([file])["model.norm.weight"]
    assert hashed(stored) == copied["model.norm.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None}, "model.norm.weight is missing"),
        ({"mine": lambda t: t}, "mine is unexpected"),
        ({"model__norm__weight": lambda t: t[:5].clone()}, "of another shape"),
        ({"model__norm__weight": lambda t: t.half()}, "written as F16"),
        ({"model__norm__weight": lambda t: t + 1e-6}, "was copied and reads back differently"),
    ],
)
def test_what_differs_is_named(changes: Any, message: str, merged: Any) -> None:
    _, outputs, copied, file = merged
    rewrite(file, **changes)
    with pytest.raises(VerificationError, match=message):
        check_files([file], outputs, copied)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_agree_until_a_merged_value_is_another(family: str, tmp_path: Path) -> None:
    made = Made(tmp_path, family, target_modules=[LINEAR[family]])
    merge(made.adapter, made.out, base=str(made.base), verify=False)
    source = adapter_source(made.adapter, str(made.base))
    built, plan = laid_out(source)

    def error() -> dict[str, Any]:
        files = stored_in([made.out / "model.safetensors"])
        return logit_error(built, source.changes, plan.outputs, files)

    result = error()
    assert result["finite"]
    assert result["error"] < 1e-5 == result["tolerance"] == TOLERANCES["F32"]
    # As if the adapter had not been added to one of its layers.
    name = next(o.spec.name for o in plan.outputs if o.kind == "merged" and "weight" in o.spec.name)
    base = load_file(made.base / "model.safetensors")
    rewrite(made.out / "model.safetensors", **{name.replace(".", "__"): lambda _: base[name]})
    assert error()["error"] > result["tolerance"]
