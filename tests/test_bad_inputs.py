"""Thirty ways to hold it wrong: each ends with one readable message and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab.cli import main
from tests.forked import forked
from tests.hanging import HANGS_AFTER

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
    "unknown section": (setting("trian", {}), 2, "did you mean train"),
    "unknown key": (setting("train.learning_rat", 1e-4), 2, "did you mean train.learning_rate?"),
    "another method's key": (setting("method.pooling", "mean"), 2, "by method head, not by lora"),
    "another task's key": (setting("data.packing", True), 2, "causal-lm only"),
    "unknown method": (setting("method", {"name": "lorra"}), 2, "did you mean lora"),
    "unknown task": (setting("task", "text-clasification"), 2, "did you mean text-classification"),
    "number out of range": (setting("method.r", 0), 2, "method.r is 0"),
    "text for a number": (setting("train.learning_rate", "fast"), 2, "learning_rate is 'fast'"),
    "uneven micro-batch": (
        setting("train", {"global_batch_size": 16, "micro_batch_size": 5}), 2,
        "does not divide global_batch_size 16",
    ),
    "unknown metric": (setting("eval.best", "f1_makro"), 2, "did you mean f1_macro"),
    "unknown optimizer": (setting("train.optim", "adamw_torhc"), 2, "did you mean adamw_torch?"),
    "unknown schedule": (setting("train.lr_scheduler_type", "liner"), 2, "did you mean linear?"),
    "half precision on a CPU": (setting("model.dtype", "float16"), 3, "model.dtype is float16"),
    "missing model": (setting("model.name", "./no/such/model"), 3, "which does not exist"),
    "pickled weights": (pickled, 3, "holds pickled weights only"),
    "target that matches nothing": (
        setting("method.target_modules", ["qurey"]), 3, "did you mean query",
    ),
    "one good target, one typo": (
        setting("method.target_modules", ["query", "vlaue"]), 3, "did you mean value?",
    ),
    "too many blocks": (setting("method", {"name": "last_n", "n": 99}), 2, "has 2 blocks"),
    "max_length beyond the model": (setting("data.max_length", 100000), 3, "reads 64 tokens"),
    "folder that is taken": (occupied, 2, "not empty and not a run"),
    "missing data": (setting("data.source", "./nowhere.jsonl"), 3, "no such file or folder"),
    "empty file": (data(""), 3, "is empty (0 bytes)"),
    "malformed line": (data(lines(POSITIVE, NEGATIVE) + '{"text": \n'), 3, ":41: malformed JSON"),
    "binary file": (data(bytes(range(256)) * 8), 3, "NUL bytes: the file is binary"),
    "Latin-1 file": (data(lines(POSITIVE, NEGATIVE).encode() + b"\xe9\n"), 3, ":41 is not UTF-8"),
    "missing column": (data(lines({"text": "a"}, {"text": "b"})), 3, "no column for 'label'"),
    "null value": (
        data(lines(POSITIVE, NEGATIVE, {"text": None, "label": 1})), 3, "column 'text' is null",
    ),
    "mixed types": (
        data(lines(POSITIVE, NEGATIVE, {"text": "x", "label": "one"})), 3, "mixes types",
    ),
    "one class": (data(lines(POSITIVE)), 3, "every training row has the label"),
    "one row": (data(lines(POSITIVE, times=1)), 3, "has one row"),
    "unknown file type": (data("hello", "rows.docx"), 3, "does not read '.docx'"),
    "column that is not there": (
        setting("data.columns", {"text": "txet", "label": "label"}), 3, "no column 'txet'",
    ),
    "split that is not there": (setting("data.splits", {"train": "trian"}), 3, "no split 'trian'"),
}  # fmt: skip

AS_COMMANDS = ("unknown key", "target that matches nothing", "malformed line")


def spoiled(
    name: str, folder: Path, model: Path, verb: str = "train"
) -> tuple[list[str], set[Path]]:
    config = good(folder, model)
    BAD[name][0](config, folder)
    file = folder / "run.yaml"
    file.write_text(json.dumps(config, indent=1))  # JSON is YAML
    return [verb, str(file)], set(folder.rglob("*"))


def judge(name: str, code: int, out: str, err: str) -> None:
    _, expected, words = BAD[name]
    assert code == expected, err
    assert "Traceback" not in err + out
    assert words in err, err
    assert 0 < len(err.strip().splitlines()) <= 12, err


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_explained_and_leaves_nothing(
    name: str, verb: str, tmp_path: Path, tiny_checkpoint: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from peftlab.cli import main

    arguments, before = spoiled(name, tmp_path, tiny_checkpoint("bert"), verb)
    capfd.readouterr()
    code = main(arguments)
    out, err = capfd.readouterr()
    judge(name, code, out, err)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", AS_COMMANDS)
def test_bad_input_as_a_real_command(name: str, tmp_path: Path, tiny_checkpoint: Any) -> None:
    """To a process's own streams: one is started anew, the others are forks."""
    arguments, before = spoiled(name, tmp_path, tiny_checkpoint("bert"))
    if name == AS_COMMANDS[0]:
        done: Any = subprocess.run(
            [sys.executable, "-m", "peftlab", *arguments],
            capture_output=True, text=True, check=False, timeout=HANGS_AFTER,
        )  # fmt: skip
    else:
        done = forked(lambda: main(arguments))
    judge(name, done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert set(tmp_path.rglob("*")) == before


def test_there_are_at_least_thirty() -> None:
    assert len(BAD) >= 30


def test_the_unspoiled_configuration_trains(tmp_path: Path, tiny_checkpoint: Any) -> None:
    config = good(tmp_path, tiny_checkpoint("bert"))
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config))
    assert main(["train", str(file)]) == 0
    assert (tmp_path / "out" / "run" / "metrics.json").is_file()
