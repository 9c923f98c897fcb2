"""Runs of every method, exported: what any tool loads computes what the run computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.poison_empty(False)

WORDS = ("good", "bad")
TEXTS = ["a good film , number 3", "the bad story", "not very great"]
METHODS: dict[str, dict[str, Any]] = {
    "head": {"name": "head", "pooling": "model"},
    "last_n": {"name": "last_n", "n": 1},
    "full": {"name": "full"},
    "lora": {"name": "lora", "r": 4},
}
Train = Callable[..., Any]
Cli = Callable[..., Any]


def probabilities(folder: Path) -> list[list[float]]:
    """Of the texts, by the classifier in a folder, with Transformers alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    with torch.no_grad():
        logits = [model.eval()(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
    return [row.softmax(-1).tolist() for row in logits]


@pytest.mark.parametrize(
    ("family", "method"), [*(("bert", method) for method in METHODS), ("gpt2", "lora")]
)
def test_a_run_of_any_method_is_exported_and_answers_alike_in_plain_transformers(
    method: str, family: str, trained: Train, cli: Cli, tmp_path: Path
) -> None:
    run = trained(family, **METHODS[method])
    out = tmp_path / "some where" / "merged"
    ran = cli("export", run.folder, "-o", out)
    assert ran.code == 0, ran.err
    assert "Load it: transformers.AutoModelForSequenceClassification" in ran.out
    expected = [[p["probabilities"][w] for w in ("bad", "good")] for p in run.predict(TEXTS)]
    for row_probabilities, wanted in zip(probabilities(out), expected, strict=True):
        assert row_probabilities == pytest.approx(wanted, abs=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert set(config["label2id"]) == set(WORDS)


def test_a_head_on_features_that_no_class_computes_is_refused(
    trained: Train, cli: Cli, tmp_path: Path
) -> None:
    run = trained("bert", name="head", pooling="mean")
    ran = cli("export", run.folder, "-o", tmp_path / "out")
    assert ran.code == 3
    assert "pooled by mean" in ran.err
    assert "method.pooling=model" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_dtypes_and_shards_are_as_asked(trained: Train, cli: Cli, tmp_path: Path) -> None:
    run = trained("bert", **METHODS["lora"])
    out = tmp_path / "out"
    ran = cli(
        "export", run.folder, "-o", out, "--dtype", "bfloat16", "--max-shard-size", "20KB", "--json"
    )
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report == json.loads((out / "merge_report.json").read_text())
    assert len(report["files"]) > 2
    assert report["dtype"] == "BF16"
    logits = report["verified"]["logits"]
    assert 1e-5 < logits["error"] < logits["tolerance"] == 2e-2
    assert {p.name for p in out.glob("*.safetensors")} == set(report["files"])
    tensors = [t for name in report["files"] for t in load_file(out / name).values()]
    assert {t.dtype for t in tensors} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    for row_probabilities, wanted in zip(probabilities(out), run.predict(TEXTS), strict=True):
        assert max(row_probabilities) == pytest.approx(wanted["probability"], abs=2e-2)


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no output": ((), "needs -o DIR"),
    "a dtype": (("-o", "{out}", "--dtype", "int4"), "--dtype int4: allowed: float32"),
    "a size": (("-o", "{out}", "--max-shard-size", "0"), "--max-shard-size"),
    "a form": (("-o", "{out}", "--merge-base", "nf4"), "--merge-base nf4: allowed: auto"),
    "a form of no 8-bit run": (("-o", "{out}", "--merge-base", "dequant"), "not trained over"),
    "a taken folder": (("-o", "{taken}"), "is not empty"),
    "a file": (("-o", "{taken}/mine"), "is a file"),
    "below a file": (("-o", "{taken}/mine/out"), "cannot be created"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_usage_exits_2_and_writes_nothing(
    what: str, trained: Train, cli: Cli, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("x")
    words, message = REFUSED[what]
    folders = {"out": tmp_path / "out", "taken": taken}
    run = trained("bert", **METHODS["lora"])
    ran = cli("export", run.folder, *(word.format(**folders) for word in words))
    assert ran.code == 2
    assert message in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    assert [p.name for p in taken.iterdir()] == ["mine"]


def test_what_does_not_belong_together_exits_3(trained: Train, cli: Cli, tmp_path: Path) -> None:
    run = trained("bert", **METHODS["lora"])
    base = Path(run.record["model"]["name"])
    other = shutil.copytree(base, tmp_path / "other")
    state = load_file(other / "model.safetensors")
    state["encoder.layer.0.attention.self.query.weight"].add_(1)
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    for folder in (run.folder, run.folder / "adapter"):
        ran = cli("export", folder, "-o", out, "--base", other)
        assert ran.code == 3
        assert "encoder.layer.0.attention.self.query.weight has other values" in ran.err
    assert cli("export", tmp_path, "-o", out).code == 3
    assert cli("export", tmp_path / "nowhere", "-o", out).code == 3
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def corrupted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have a tensor's last byte, which holds sign and exponent, flip on the disk once written."""
    from peftlab.export import merge
    from peftlab.export.safetensors_files import stored_in

    right = merge.check_files

    def check(files: Any, *rest: Any) -> Any:
        tensor = stored_in(files)[name]
        with tensor.file.open("r+b") as file:
            file.seek(tensor.stop - 1)
            byte = file.read(1)[0]
            file.seek(tensor.stop - 1)
            file.write(bytes([byte ^ 0x04]))
        return right(files, *rest)

    monkeypatch.setattr(merge, "check_files", check)


COPIED = "bert.encoder.layer.0.output.dense.bias"
MERGED = "bert.encoder.layer.1.attention.self.query.weight"
TARGETS = {"target_modules": ["query", "value"]}


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (COPIED, (), "was copied and reads back differently"),
        (COPIED, ("--no-verify",), "was copied and reads back differently"),
        (MERGED, (), "logits differ from the adapter's"),
    ],
)
def test_a_byte_that_turns_on_the_disk_exits_4_and_leaves_nothing(
    name: str, flags: tuple[str, ...], message: str, trained: Train, cli: Cli,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = trained("bert", **METHODS["lora"] | TARGETS)
    corrupted(monkeypatch, name)
    ran = cli("export", run.folder, "-o", tmp_path / "new" / "out", *flags)
    assert ran.code == 4
    assert message in ran.err
    assert list(tmp_path.iterdir()) == []


def test_no_verify_compares_no_logits_and_says_so(trained: Train, cli: Cli, tmp_path: Path) -> None:
    run = trained("bert", **METHODS["lora"] | TARGETS)
    ran = cli("export", run.folder, "-o", tmp_path / "fast", "--no-verify")
    assert ran.code == 0, ran.err
    assert "Logits were not compared" in ran.out
    report = json.loads((tmp_path / "fast" / "merge_report.json").read_text())
    assert "logits" not in report["verified"]
    assert report["verified"]["copied_equal"] > 10
    run.export(tmp_path / "slow")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("fast", "slow")]
    assert weights[0] == weights[1]
