"""Relation extraction through every verb: on made rows by every method, and on real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import peftlab
from peftlab import pipeline
from peftlab.cli import main

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ANIMALS, FOODS = ("dog", "cat", "girl"), ("food", "book", "phone")


def made_rows(start: int, count: int) -> list[dict[str, Any]]:
    """Who loves what: only the positions of the markers decide."""
    rows = []
    for i in range(start, start + count):
        who, what = ANIMALS[i % 3], FOODS[(i // 3) % 3]
        other = f"the {who} said <e1>{what}</e1> and <e2>{i % 10}</e2> ."
        ahead = f"the <e1>{who}</e1> loved a <e2>{what}</e2> and said {i % 10} ."
        back = f"the <e2>{who}</e2> loved a <e1>{what}</e1> and said {i % 10} ."
        text, label = ((other, "Other"), (ahead, "Love(e1,e2)"), (back, "Love(e2,e1)"))[i % 3]
        rows.append({"text": text, "label": label})
    return rows


def source(folder: Path) -> Path:
    for name, start, count in (("train", 0, 48), ("validation", 48, 12), ("test", 60, 16)):
        rows = made_rows(start, count)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(model: Any, data: Path, run: Path, **train: Any) -> dict[str, Any]:
    return {
        "model": {"name": str(model), "dtype": "float32"},
        "task": "relation-extraction",
        "data": {"source": str(data), "max_length": 24},
        "train": {"global_batch_size": 8, "save_every": "never", **train},
        "eval": {"every": "never"},
        "output": {"dir": str(run), "plots": False},
    }


@pytest.mark.parametrize(
    ("family", "method", "representation"),
    [
        ("bert", "lora", "pooled"), ("bert", "lora", "entity_start"), ("gpt2", "full", "pooled"),
        ("bert", {"name": "last_n", "n": 1}, "entity_start"), ("bert", "head", "entity_start"),
        ("bert", {"name": "qlora", "arithmetic": "w8a16"}, "pooled"),
        ("t5", "lora", "entity_start"), ("llama", "lora", "pooled"),
    ],
)  # fmt: skip
def test_every_method_learns_and_answers(
    family: str, method: Any, representation: str, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    rate = {"head": 0.05, "lora": 1e-2}.get(str(method), 3e-3)
    made = settings(tiny_checkpoint(family), source(tmp_path), tmp_path / "run",
                    num_train_epochs=12, learning_rate=rate)  # fmt: skip
    made["task"] = {"name": "relation-extraction", "representation": representation}
    run = peftlab.train(made, method=method)
    reported = run.metrics["test"]
    if method in ("lora", "full"):
        assert reported["f1_macro"] >= 0.9
    reopened = pipeline.open_run(run.folder)
    again = reopened.evaluate("test")
    for name in ("f1_macro", "f1_micro", "accuracy"):
        assert again[name] == pytest.approx(reported[name], abs=1e-4)
    texts = [row["text"] for row in made_rows(60, 4)]
    first, second = run.predict(texts), reopened.predict(texts)
    assert [a["label"] for a in first] == [a["label"] for a in second]
    assert first[1]["head"] in ANIMALS
    assert first[1]["tail"] in FOODS
    model: Any = reopened.loaded.model
    if method == "lora":
        trained = [n for n, _ in model.named_parameters() if "trainable_tokens_delta" in n]
        assert len(trained) == (1 if family == "bert" else 0)
        for name in trained:
            held = name.replace("trainable_tokens_delta", "trainable_tokens_original")
            moved = (model.get_parameter(name) - model.get_buffer(held)).abs().amax(dim=1)
            assert bool((moved > 0).all())
            assert len(moved) == 4
    merged = tmp_path / "merged"
    reopened.export(merged)
    kind = reopened.task.head().auto_class
    plain = getattr(transformers, kind).from_pretrained(merged).eval()
    task, tokenizer = reopened.task, reopened.loaded.tokenizer
    checked = pipeline.preparation.check(reopened.config)
    encoded = task.encode(checked.splits.get("test"), tokenizer, max_length=24).rows
    batch = task.collator(tokenizer)(list(encoded))
    with torch.no_grad():
        ours, theirs = task.logits(model.eval(), batch), task.logits(plain, batch)
    torch.testing.assert_close(theirs, ours, rtol=2e-2 if "arithmetic" in method else 2e-3,
                               atol=2e-2 if "arithmetic" in method else 2e-3)  # fmt: skip


@pytest.mark.parametrize("representation", ["pooled", "entity_start"])
def test_plain_peft_loads_the_adapter_on_the_plain_base(
    representation: str, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    base = tiny_checkpoint("bert")
    made = settings(base, source(tmp_path), tmp_path / "run", max_steps=6, learning_rate=1e-2)
    made["task"] = {"name": "relation-extraction", "representation": representation}
    run = peftlab.train(made, method={"name": "lora", "r": 4})
    kind = getattr(transformers, run.task.head().auto_class)
    plain = PeftModel.from_pretrained(
        kind.from_pretrained(base, num_labels=run.task.head().config["num_labels"]),
        run.folder / "adapter",
    ).eval()
    checked = pipeline.preparation.check(run.config)
    tokenizer = run.loaded.tokenizer
    rows = run.task.encode(checked.splits.get("test"), tokenizer, max_length=24).rows
    batch = run.task.collator(tokenizer)(list(rows))
    with torch.no_grad():
        ours = run.task.logits(run.loaded.model.eval(), batch)
        theirs = run.task.logits(plain, batch)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    written = (run.folder / "adapter" / "adapter_model.safetensors").stat().st_size
    table = plain.get_input_embeddings().token_adapter.base_layer.weight
    assert written < 200_000 + table.numel()


def test_the_other_verbs(
    tiny_checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = settings(tiny_checkpoint("bert"), source(tmp_path), tmp_path / "run", max_steps=2)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(made | {"method": "lora"}))
    assert main(["plan", str(file)]) == 0
    assert main(["data", str(file)]) == 0
    assert "[unused0] " in capfd.readouterr().out
    assert main(["train", str(file)]) == 0
    assert main(["train", str(file), "--resume", "auto"]) in (0, 2)
    assert main(["eval", str(tmp_path / "run")]) == 0
    capfd.readouterr()
    assert main(["predict", str(tmp_path / "run"), "the <e1>dog</e1> loved <e2>food</e2>"]) == 0
    assert "Love" in (shown := capfd.readouterr().out) or "Other" in shown
    assert main(["predict", str(tmp_path / "run"), "the dog loved food"]) == 3
    assert "<e1>" in capfd.readouterr().err
    long = "<e1>" + "dog " * 30 + "</e1> loved <e2>food</e2>"
    assert main(["predict", str(tmp_path / "run"), long]) == 3
    assert "its entities take 31 tokens" in capfd.readouterr().err


def test_decoders_are_not_read_at_entity_starts(
    tiny_checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = settings(tiny_checkpoint("llama"), source(tmp_path), tmp_path / "run", max_steps=2)
    made["task"] = {"name": "relation-extraction", "representation": "entity_start"}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(made | {"method": "lora"}))
    assert main(["train", str(file)]) == 2
    assert "is a decoder: at an entity" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_real_rows_with_a_real_model(minilm: Path, shared_data: Path, tmp_path: Path) -> None:
    made = settings(minilm, shared_data / "semeval2010_task8", tmp_path / "run", max_steps=12,
                    learning_rate=1e-3)  # fmt: skip
    made["data"] |= {"max_train_samples": 96, "max_eval_samples": 24, "max_length": 64}
    made["method"] = {"name": "lora", "r": 8}
    run = peftlab.train(made)
    assert run.task.none == "Other"
    assert run.task.markers.tokens == ("[unused0]", "[unused1]", "[unused2]", "[unused3]")
    assert len(run.task.problem.relations) == 19
    assert max(run.task.problem.relations) == 8
    answers = run.predict(["The <e1>fire</e1> was caused by <e2>lightning</e2>."])
    assert answers[0]["head"] == "fire"
    run.export(tmp_path / "merged")
