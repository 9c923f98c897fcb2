"""Thirty ways to hold it wrong: each ends with one readable message and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Change = Callable[[dict[str, Any], Path], None]
"""Spoils a good configuration, or the data beside it."""


def good(folder: Path, model: Path) -> dict[str, Any]:
    rows = [{"text": f"a good film number {i}", "label": i % 2} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"name": str(model)},
        "task": "text-classification",
        "data": {"source": str(folder / "rows.jsonl")},
        "method": {"name": "lora", "r": 2},
        "train": {"max_steps": 1},
        "output": {"dir": str(folder / "out" / "run")},
    }


def setting(path: str, value: object) -> Change:
    def change(config: dict[str, Any], folder: Path) -> None:
        *parents, last = path.split(".")
        for key in parents:
            config = config.setdefault(key, {})
        config[last] = value

    return change


def data(content: str | bytes, name: str = "rows.jsonl") -> Change:
    def change(config: dict[str, Any], folder: Path) -> None:
        file = folder / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        config["data"]["source"] = str(file)

    return change


def lines(*rows: object, times: int = 20) -> str:
    return "".join(json.dumps(row) + "\n" for _ in range(times) for row in rows)


def occupied(config: dict[str, Any], folder: Path) -> None:
    out = folder / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    config["output"]["dir"] = str(out)


def pickled(config: dict[str, Any], folder: Path) -> None:
    model = folder / "pickled"
    model.mkdir()
    (model / "config.json").write_text((Path(config["model"]["name"]) / "config.json").read_text())
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    config["model"]["name"] = str(model)


POSITIVE, NEGATIVE = {"text": "good", "label": 1}, {"text": "bad", "label": 0}

BAD: dict[str, tuple[Change, int, str]] = {
    # name: (what is spoiled, exit code, what the message must say)
    "unknown section": (setting("trian", {}), 2, "train"),
    "unknown key": (setting("train.learning_rat", 1e-4), 2, "train.learning_rate"),
    "another method's key": (setting("method.pooling", "mean"), 2, "method.pooling"),
    "another task's key": (setting("data.packing", True), 2, "causal-lm"),
    "unknown method": (setting("method", {"name": "lorra"}), 2, "lora"),
    "unknown task": (setting("task", "text-clasification"), 2, "text-classification"),
    "number out of range": (setting("method.r", 0), 2, "method.r"),
    "text for a number": (setting("train.learning_rate", "fast"), 2, "train.learning_rate"),
    "uneven micro-batch": (
        setting("train", {"global_batch_size": 16, "micro_batch_size": 5}), 2, "micro_batch_size",
    ),
    "unknown metric": (setting("eval.best", "f1_makro"), 2, "f1_macro"),
    "unknown optimizer": (setting("train.optim", "adamw_torhc"), 2, "adamw_torch"),
    "unknown schedule": (setting("train.lr_scheduler_type", "liner"), 2, "linear"),
    "half precision on a CPU": (setting("model.dtype", "float16"), 3, "float16"),
    "missing model": (setting("model.name", "./no/such/model"), 3, "no/such/model"),
    "pickled weights": (pickled, 3, "safetensors"),
    "target that matches nothing": (setting("method.target_modules", ["qurey"]), 3, "query"),
    "one good target, one typo": (
        setting("method.target_modules", ["query", "vlaue"]), 3, "value",
    ),
    "too many blocks": (setting("method", {"name": "last_n", "n": 99}), 2, "99"),
    "max_length beyond the model": (setting("data.max_length", 100000), 3, "100000"),
    "folder that is taken": (occupied, 2, "no run"),
    "missing data": (setting("data.source", "./nowhere.jsonl"), 3, "nowhere.jsonl"),
    "empty file": (data(""), 3, "empty|no rows"),
    "malformed line": (data(lines(POSITIVE, NEGATIVE) + '{"text": \n'), 3, ":41|line 41|row 41"),
    "binary file": (data(bytes(range(256)) * 8), 3, "rows.jsonl"),
    "missing column": (data(lines({"text": "a"}, {"text": "b"})), 3, "label"),
    "null value": (data(lines(POSITIVE, NEGATIVE, {"text": None, "label": 1})), 3, "null"),
    "mixed types": (data(lines(POSITIVE, NEGATIVE, {"text": "x", "label": "one"})), 3, "label"),
    "one class": (data(lines(POSITIVE)), 3, "label|class"),
    "one row": (data(lines(POSITIVE, times=1)), 3, "row"),
    "unknown file type": (data("hello", "rows.docx"), 3, "docx"),
    "column that is not there": (
        setting("data.columns", {"text": "txet", "label": "label"}), 3, "txet",
    ),
    "split that is not there": (setting("data.splits", {"train": "trian"}), 3, "trian"),
}  # fmt: skip

AS_COMMANDS = ("unknown key", "target that matches nothing", "malformed line")


def spoiled(name: str, folder: Path, model: Path) -> tuple[list[str], set[Path]]:
    config = good(folder, model)
    BAD[name][0](config, folder)
    file = folder / "run.yaml"
    file.write_text(json.dumps(config, indent=1))  # JSON is YAML
    return ["train", str(file)], set(folder.rglob("*"))


def judge(name: str, code: int, out: str, err: str) -> None:
    _, expected, words = BAD[name]
    assert code == expected, err
    assert "Traceback" not in err + out
    assert any(word in err for word in words.split("|")), err
    assert 0 < len(err.strip().splitlines()) <= 12, err


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_explained_and_leaves_nothing(
    name: str, tmp_path: Path, tiny_checkpoint: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from peftlab.cli import main

    arguments, before = spoiled(name, tmp_path, tiny_checkpoint("bert"))
    capfd.readouterr()
    code = main(arguments)
    out, err = capfd.readouterr()
    judge(name, code, out, err)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", AS_COMMANDS)
def test_bad_input_as_a_real_command(name: str, tmp_path: Path, tiny_checkpoint: Any) -> None:
    arguments, before = spoiled(name, tmp_path, tiny_checkpoint("bert"))
    done = subprocess.run(
        [sys.executable, "-m", "peftlab", *arguments],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    judge(name, done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert set(tmp_path.rglob("*")) == before


def test_there_are_at_least_thirty() -> None:
    assert len(BAD) >= 30


def test_the_unspoiled_configuration_trains(tmp_path: Path, tiny_checkpoint: Any) -> None:
    from peftlab.cli import main

    config = good(tmp_path, tiny_checkpoint("bert"))
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config))
    assert main(["train", str(file)]) == 0
    assert (tmp_path / "out" / "run" / "metrics.json").is_file()
