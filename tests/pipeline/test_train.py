"""Every method through the whole pipeline on tiny models: what a run holds and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab import pipeline
from peftlab.config import config_from_mapping, load_config
from peftlab.errors import CheckFailed, ConfigError, DataError

METHODS: dict[str, dict[str, Any]] = {
    "head": {"name": "head"},
    "last_n": {"name": "last_n", "n": 1},
    "lora": {"name": "lora", "r": 4},
    "full": {"name": "full"},
}
WORDS = ("good", "bad")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "rows with space"
    folder.mkdir()
    for split, count in (("train", 48), ("validation", 12), ("test", 20)):
        lines = [
            json.dumps({"text": f"a {WORDS[i % 2]} film , number {i}", "label": WORDS[i % 2]})
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def configure(model: Path, rows: Path, out: Path, **sections: Any) -> Any:
    base: dict[str, Any] = {
        "model": {"name": str(model), "dtype": "float32"},
        "task": "text-classification",
        "data": {"source": str(rows)},
        "method": {"name": "lora", "r": 4},
        "train": {"num_train_epochs": 2, "global_batch_size": 8, "learning_rate": 5e-3},
        "output": {"dir": str(out)},
    }
    return config_from_mapping(base | sections)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_folder_is_complete_and_predicts_as_trained(
    method: str, family: str, tiny_checkpoint: Any, rows: Path, tmp_path: Path
) -> None:
    config = configure(tiny_checkpoint(family), rows, tmp_path / "run", method=METHODS[method])
    run = pipeline.train(config)
    names = {p.name for p in run.folder.iterdir()}
    part = "adapter" if method == "lora" else "trained"
    assert names == {
        "config.yaml", "peftlab.json", "metrics.json", "environment.json", "log.csv",
        "kernel_choices.json", "plots", "tokenizer", part,
    }  # fmt: skip
    assert not list(tmp_path.glob("run.unfinished*"))

    train = run.metrics["train"]
    assert train["steps"] == 12
    assert train["tokens"] > 0
    assert 0 < train["trained_parameters"] <= train["total_parameters"]
    memory = train["peak_memory"]
    assert memory["weights"] >= 4 * train["total_parameters"]
    assert memory["activations"] > 0
    assert memory["total"] == sum(value for part, value in memory.items() if part != "total")
    assert memory["total"] < 400 << 20  # a model of a few hundred kilobytes
    assert set(run.metrics) == {"train", "validation", "test"}

    reopened = pipeline.open_run(run.folder)
    again = reopened.evaluate("test")
    assert again["loss"] == pytest.approx(run.metrics["test"]["loss"], rel=1e-5)
    assert again["f1_macro"] == run.metrics["test"]["f1_macro"]
    texts = ["a good film", "a bad film", "number"]
    for first, second in zip(run.predict(texts), reopened.predict(texts), strict=True):
        assert first["label"] == second["label"]
        assert first["probability"] == pytest.approx(second["probability"], abs=1e-5)


def test_the_saved_configuration_runs_again_to_the_same_weights(
    tiny_checkpoint: Any, rows: Path, tmp_path: Path
) -> None:
    first = pipeline.train(configure(tiny_checkpoint("bert"), rows, tmp_path / "one"))
    again = load_config(first.folder / "config.yaml", [f"output.dir={tmp_path / 'two'}"]).config
    second = pipeline.train(again)
    from safetensors.torch import load_file

    name = "adapter/adapter_model.safetensors"
    a, b = load_file(first.folder / name), load_file(second.folder / name)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_adapter_loads_in_plain_peft(tiny_checkpoint: Any, rows: Path, tmp_path: Path) -> None:
    import peft
    import transformers

    model = tiny_checkpoint("bert")
    run = pipeline.train(configure(model, rows, tmp_path / "run"))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    plain = peft.PeftModel.from_pretrained(base, run.folder / "adapter").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.folder / "tokenizer")
    text = "a good film , number 3"
    with torch.no_grad():
        logits = plain(**tokenizer(text, return_tensors="pt")).logits
    probabilities = run.predict([text])[0]["probabilities"]
    assert logits.softmax(-1)[0].tolist() == pytest.approx(list(probabilities.values()), abs=1e-5)


def test_no_validation_and_no_test_split(tiny_checkpoint: Any, rows: Path, tmp_path: Path) -> None:
    config = configure(
        tiny_checkpoint("bert"), rows, tmp_path / "run",
        data={"source": str(rows / "train.jsonl"), "splits": {"validation": None}},
    )  # fmt: skip
    run = pipeline.train(config)
    assert set(run.metrics) == {"train"}
    with pytest.raises(DataError, match="no test split"):
        run.evaluate("test")


def test_a_run_that_fails_midway_leaves_no_folder(
    tiny_checkpoint: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftlab.training import curves

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(curves, "write_log", fail)
    config = configure(
        tiny_checkpoint("bert"), rows, tmp_path / "run",
        train={"max_steps": 1, "save_every": "never"},
    )  # fmt: skip
    with pytest.raises(OSError, match="disk full"):
        pipeline.train(config)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("run")] == []


def test_resuming_reaches_the_weights_of_an_uninterrupted_run(
    tiny_checkpoint: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from peftlab.tasks.classification.text_classification import TextClassification

    model = tiny_checkpoint("llama")
    whole = pipeline.train(configure(model, rows, tmp_path / "whole"))

    train = {"num_train_epochs": 2, "global_batch_size": 8, "learning_rate": 5e-3, "save_every": 5}
    config = configure(model, rows, tmp_path / "cut", train=train)
    seen = 0
    count_items = TextClassification.count_items

    def killed(self: TextClassification, batch: Any) -> int:
        nonlocal seen
        seen += 1
        if seen == 8:
            raise MemoryError("killed in step 8 of 12")
        return count_items(self, batch)

    with monkeypatch.context() as broken:
        broken.setattr(TextClassification, "count_items", killed)
        with pytest.raises(MemoryError):
            pipeline.train(config)
    unfinished = tmp_path / "cut.unfinished"
    assert [p.name for p in unfinished.glob("checkpoint-*")] == ["checkpoint-5"]
    with pytest.raises(ConfigError, match="--resume auto"):
        pipeline.train(config)
    resumed = pipeline.train(config, resume="auto")
    assert not unfinished.exists()
    name = "adapter/adapter_model.safetensors"
    a, b = load_file(whole.folder / name), load_file(resumed.folder / name)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_resuming_another_configuration_is_refused_by_key(
    tiny_checkpoint: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftlab.training import curves

    model = tiny_checkpoint("bert")
    with monkeypatch.context() as broken:
        broken.setattr(curves, "write_log", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.train(configure(model, rows, tmp_path / "run"))
    changed = configure(model, rows, tmp_path / "run", method={"name": "lora", "r": 8})
    with pytest.raises((ConfigError, CheckFailed), match=r"method\.r"):
        pipeline.train(changed, resume="auto")
    assert (tmp_path / "run.unfinished").is_dir()


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="not a folder"):
        pipeline.open_run(tmp_path / "nowhere")
    with pytest.raises(CheckFailed, match="not a finished run"):
        pipeline.open_run(tmp_path)


def test_what_the_weights_do_not_depend_on_may_change_on_resume(
    tiny_checkpoint: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftlab.training import curves

    train = {"num_train_epochs": 2, "global_batch_size": 8, "learning_rate": 5e-3, "save_every": 5}
    model = tiny_checkpoint("bert")
    with monkeypatch.context() as broken:
        broken.setattr(curves, "write_log", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.train(configure(model, rows, tmp_path / "run", train=train))
    smaller = train | {"micro_batch_size": 4, "gradient_checkpointing": True}
    run = pipeline.train(configure(model, rows, tmp_path / "run", train=smaller), resume="auto")
    assert run.metrics["train"]["steps"] == 12
    faster = train | {"learning_rate": 1e-2}
    with monkeypatch.context() as broken:
        broken.setattr(curves, "write_log", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.train(configure(model, rows, tmp_path / "two", train=train))
    with pytest.raises(ConfigError, match=r"learning_rate"):
        pipeline.train(configure(model, rows, tmp_path / "two", train=faster), resume="auto")


def test_planning_refuses_what_training_would(
    tiny_checkpoint: Any, rows: Path, tmp_path: Path
) -> None:
    config = configure(
        tiny_checkpoint("bert"), rows, tmp_path / "run", train={"optim": "adamw_torhc"}
    )
    for verb in (pipeline.plan, pipeline.train):
        with pytest.raises(ConfigError, match="adamw_torch"):
            verb(config)


def test_overwriting_with_a_broken_configuration_keeps_the_checkpoints(
    tiny_checkpoint: Any, rows: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "run.unfinished" / "checkpoint-9"
    kept.mkdir(parents=True)
    config = configure(
        tiny_checkpoint("bert"), rows, tmp_path / "run",
        method={"name": "lora", "target_modules": ["qurey"]},
        output={"dir": str(tmp_path / "run"), "overwrite": True},
    )  # fmt: skip
    with pytest.raises(CheckFailed, match="query"):
        pipeline.train(config)
    assert kept.is_dir()


def test_the_working_directory_is_no_output(
    tiny_checkpoint: Any, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".", "..", str(tmp_path)):
        config = configure(tiny_checkpoint("bert"), rows, Path(folder))
        with pytest.raises(ConfigError, match="working directory"):
            pipeline.train(config)
