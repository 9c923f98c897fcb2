"""A method is a line that names it and files of its own: nobody else asks which one it is."""

from __future__ import annotations

import ast
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftlab import pipeline
from peftlab.cli import main
from peftlab.config import config_from_mapping, json_schema, load_config, template
from peftlab.config.methods.options import METHODS
from peftlab.errors import ConfigError, Interrupted
from peftlab.methods.apply import method_of
from peftlab.methods.method import Method

PACKAGE = Path(__file__).resolve().parents[2] / "peftlab"
INSIDE = (PACKAGE / "methods", PACKAGE / "config" / "methods")
OUTSIDE = [p for p in sorted(PACKAGE.rglob("*.py")) if not any(i in p.parents for i in INSIDE)]

# Modules of the two folders that others may import: what all methods have in common.
COMMON = {
    "peftlab.config.methods.options",
    "peftlab.methods.apply",
    "peftlab.methods.method",
    "peftlab.methods.step_hooks",
    "peftlab.methods.trained_part",
    "peftlab.methods.adapter_files",
    "peftlab.methods.coverage",
    "peftlab.methods.features.cache",
    "peftlab.methods.penalties.penalised",
    "peftlab.methods.penalties.regularization",
}
NAMES = {name for kind in METHODS.values() for name in (kind.tag(), *kind.short_names)}
# Words that name other things too (a relation's head, a full evaluation, the library): there the
# other side of the comparison must speak of a method.
COMMON_WORDS = {"head", "full", "peft"}


def decided_by_name(tree: ast.AST) -> Iterator[int]:
    """Lines that decide by a method's name: compared, matched, or the key of a mapping."""
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        about = ""
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            about = ast.unparse(node)
        elif isinstance(node, ast.Match):
            parts = [p for case in node.cases for p in ast.walk(case.pattern)]
            about = ast.unparse(node.subject)
        elif isinstance(node, ast.Subscript):
            parts, about = [node.slice], ast.unparse(node.value)
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        for part in (inner for one in parts for inner in ast.walk(one)):
            if not (isinstance(part, ast.Constant) and isinstance(part.value, str)):
                continue
            plain = part.value in COMMON_WORDS
            if part.value in NAMES and (not plain or "method" in about or ".name" in about):
                yield part.lineno


def methods_imported(tree: ast.AST) -> Iterator[str]:
    """Modules of single methods that a file imports."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            inside = name.startswith(("peftlab.methods.", "peftlab.config.methods."))
            if inside and not any(name == c or name.startswith(f"{c}.") for c in COMMON):
                module = PACKAGE.parent.joinpath(*name.split("."))
                if module.with_suffix(".py").is_file():
                    yield name


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_outside_asks_which_method_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(decided_by_name(tree)) == []
    assert list(methods_imported(tree)) == []


def test_what_counts_as_asking() -> None:
    code = "a = x == 'qlora'\nb = {'last_n': 1}\nc = method.name in ('head', y)\nd = row['head']\n"
    code += "match method:\n  case 'full':\n    pass\ne = 'lora'\nf = rates['lora']\n"
    assert sorted(set(decided_by_name(ast.parse(code)))) == [1, 2, 3, 6, 9]
    code = "from peftlab.methods.lora import Lora\nfrom peftlab.methods import lora\n"
    code += "from peftlab.methods.apply import method_of\nimport peftlab.config.methods.full\n"
    imported = list(methods_imported(ast.parse(code)))
    assert imported == [
        "peftlab.methods.lora", "peftlab.methods.lora", "peftlab.config.methods.full",
    ]  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_names_lead_to_both_classes(name: str) -> None:
    kind = METHODS[name]
    assert kind.tag() == name
    assert isinstance(method_of(kind.model_validate({"name": name, **kind.example})), Method)


OPTIONS = """
from typing import ClassVar, Literal
from pydantic import Field
from peftlab.config.methods.options import MethodOptions


class BitFitOptions(MethodOptions):
    name: Literal["bitfit"]
    rate: float = Field(1e-2, gt=0, description="Learning rate where train's is auto.")

    implementation: ClassVar[str] = "bitfit_for_peftlab.method:BitFit"
    reads: ClassVar[frozenset[str]] = frozenset({"train.gradient_checkpointing"})
    short_names: ClassVar[tuple[str, ...]] = ("bitfit",)
    short_forms: ClassVar[str] = "bitfit"

    def describe(self) -> list[str]:
        return ["biases alone"]
"""
METHOD = """
from peftlab.methods.selection import Selection, task_head
from peftlab.methods.whole import WholeMethod


class BitFit(WholeMethod):
    def select(self, model, task, tokens):
        names = {n for n, _ in model.named_parameters() if n.endswith(".bias")}
        heads = task_head(model)
        names |= {n for n, _ in model.named_parameters() if n.startswith(heads)}
        return model, Selection(frozenset(names), heads)

    def default_learning_rate(self, hidden_size):
        return self.options.rate
"""


@pytest.fixture
def bitfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that brings a method along, installed as pip would."""
    site = tmp_path / "site"
    package = site / "bitfit_for_peftlab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "options.py").write_text(OPTIONS)
    (package / "method.py").write_text(METHOD)
    installed = site / "bitfit_for_peftlab-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: bitfit-for-peftlab\n")
    (installed / "entry_points.txt").write_text(
        "[peftlab.methods]\nbitfit = bitfit_for_peftlab.options:BitFitOptions\n"
        "lora = bitfit_for_peftlab.options:BitFitOptions\n"
        "broken = bitfit_for_peftlab.missing:Options\n"
    )
    monkeypatch.syspath_prepend(str(site))


@pytest.fixture
def mapping(tiny_checkpoint: Any, tmp_path: Path) -> dict[str, Any]:
    for split, count in (("train", 24), ("validation", 8)):
        rows = [{"text": f"a {w} film {i}", "label": w} for i in range(count // 2)
                for w in ("good", "bad")]  # fmt: skip
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        (data / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {
        "model": {"name": str(tiny_checkpoint("bert")), "dtype": "float32"},
        "task": "text-classification",
        "data": {"source": str(tmp_path / "data")},
        "method": {"name": "bitfit"},
        "train": {"max_steps": 6, "global_batch_size": 8, "save_every": 2},
        "eval": {"every": "never"},
        "output": {"dir": str(tmp_path / "run"), "plots": False},
        "bench": {"methods": ["bitfit"], "untuned": False},
    }


@pytest.mark.usefixtures("bitfit")
def test_another_packages_method_is_configured(
    mapping: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = config_from_mapping(mapping)
    assert config.method.name == "bitfit"
    assert METHODS["lora"].__module__ == "peftlab.config.methods.lora"
    assert "lora is taken by peftlab.config.methods.lora" in caplog.text
    assert "broken = bitfit_for_peftlab.missing:Options" in caplog.text
    assert "bitfit" in json_schema()["properties"]["method"]["anyOf"][0]["enum"]
    assert "rate: 0.01" in template("m", "text-classification", "d", "bitfit")
    with pytest.raises(ConfigError, match=r"method\.rate is 0; allowed: a number above 0"):
        config_from_mapping(mapping | {"method": {"name": "bitfit", "rate": 0}})
    with pytest.raises(ConfigError, match=r"did you mean method\.rate\?"):
        config_from_mapping(mapping | {"method": {"name": "bitfit", "ratee": 1}})
    with pytest.raises(ConfigError, match="did you mean bitfit"):
        config_from_mapping(mapping | {"method": "bitfitt"})


def test_without_the_package_the_method_is_unknown(mapping: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"method\.name is 'bitfit'; allowed: head, last_n"):
        config_from_mapping(mapping)


@pytest.mark.slow
@pytest.mark.usefixtures("bitfit")
def test_another_packages_method_plans_trains_resumes_and_benches(
    mapping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from peftlab.pipeline import preparation

    config = config_from_mapping(mapping)
    planned = pipeline.plan(config)
    assert 0 < planned.trained_parameters < planned.total_parameters
    run = pipeline.train(config)
    assert run.metrics["train"]["learning_rate"] == 1e-2
    whole = _trained(Path(mapping["output"]["dir"]))
    assert all(name.endswith(".bias") or "classifier" in name for name in whole)
    (opened,) = pipeline.open_run(run.folder).predict(["a good film"])
    assert opened["label"] in {"good", "bad"}

    stopped = mapping | {"output": {"dir": str(tmp_path / "stopped"), "plots": False}}
    prepare = preparation.prepare

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        prepared = prepare(*args, **kwargs)
        calls = 0

        def hook(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        prepared.applied.model.register_forward_pre_hook(hook)
        return prepared

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "prepare", interrupted)
        with pytest.raises(Interrupted):
            pipeline.train(config_from_mapping(stopped))
    pipeline.train(config_from_mapping(stopped), resume="auto")
    resumed = _trained(tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(mapping))
    assert load_config(file).config == config
    assert main(["bench", str(file), "-o", str(tmp_path / "bench")]) == 0
    assert "biases alone" in (tmp_path / "bench" / "report.html").read_text()


def _trained(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "trained" / "model.safetensors")
