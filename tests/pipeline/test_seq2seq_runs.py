"""Encoder-decoders through every verb, on real pairs: translations, and texts out of data."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
import transformers

import peftlab
from peftlab import pipeline
from peftlab.cli import main
from peftlab.errors import CheckFailed, ConfigError, PeftlabError
from tests.tasks.language.seq2seq_models import write_model

pytestmark = pytest.mark.slow

MODELS: dict[str, dict[str, Any]] = {
    "t5": {},
    # As T5 1.1 and FLAN-T5: a head of its own, which nothing scales, and a gated FFN.
    "flan": {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu", "own_head": True},
    "bart": {},
}


def read(file: Path, count: int) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def pairs(shared_data: Path) -> list[dict[str, Any]]:
    rows = read(shared_data / "tatoeba_en_sv" / "train.jsonl", 64)
    return [{"input": row["input"], "output": row["output"]} for row in rows]


@pytest.fixture(scope="module")
def source(pairs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, rows in (("train", pairs), ("validation", pairs[:8]), ("test", pairs[8:16])):
        write(folder, name, rows)
    return folder


@pytest.fixture(scope="module")
def model_of(pairs: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    texts = [text for row in pairs for text in row.values()]
    made: dict[str, Path] = {}

    def make(kind: str, dtype: str = "float32") -> Path:
        if f"{kind}-{dtype}" not in made:
            folder = tmp_path_factory.mktemp(f"{kind}-{dtype}")
            family = "bart" if kind == "bart" else "t5"
            made[f"{kind}-{dtype}"] = write_model(
                folder, texts, family, dtype=dtype, **MODELS[kind]
            )
        return made[f"{kind}-{dtype}"]

    return make


def config_of(model: Path, source: Path, out: Path, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model": {"name": str(model), "dtype": "float32"},
        "task": {
            "name": "seq2seq", "text_metrics": ["bleu"], "prefix": "translate: ",
            "max_target_length": 48,
        },
        "data": {"source": str(source), "truncation": "error"},
        "method": {"name": "lora", "r": 4},
        "train": {
            "max_steps": 4, "global_batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 0,
            "save_every": "never",
        },
        "eval": {"every": "never", "generation": {"max_new_tokens": 16}},
        "output": {"dir": str(out), "plots": False},
    }  # fmt: skip
    for path, value in changes.items():
        section, key = path.split("__")
        config[section][key] = value
    return config


def test_sixty_four_translations_are_learnt_by_heart(
    pairs: list[dict[str, Any]], source: Path, model_of: Any, tmp_path: Path
) -> None:
    config = config_of(
        model_of("t5"), source, tmp_path / "run",
        data__splits={"validation": None}
    )  # fmt: skip
    config["method"] = {"name": "full"}
    config["train"] = {
        "num_train_epochs": 40, "global_batch_size": 16, "learning_rate": 3e-3,
        "warmup_steps": 10, "save_every": "never",
    }  # fmt: skip
    config["eval"]["generation"] = {"max_new_tokens": 48}
    run = peftlab.train(config)
    answers = peftlab.load_run(run.folder).predict([row["input"] for row in pairs])
    assert all(answer["finished"] for answer in answers)
    bleu = sacrebleu.corpus_bleu(
        [answer["text"] for answer in answers], [[row["output"] for row in pairs]]
    )
    assert bleu.score >= 90
    assert run.metrics["test"]["bleu"] >= 90
    run.export(tmp_path / "merged")
    sources = [row["input"] for row in pairs[:16]]
    assert written_by(tmp_path / "merged", sources, 48) == [a["text"] for a in answers[:16]]
    low, high = run.metrics["test"]["interval"]["bleu"]
    assert low <= run.metrics["test"]["bleu"] <= high + 1e-9


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "r": 4},
    "qlora": {"name": "qlora", "bits": 8, "r": 4},
    "last_n": {"name": "last_n", "n": 1},
    "full": {"name": "full"},
}


@pytest.mark.parametrize(
    ("kind", "method", "kernels", "dtype"),
    [
        ("t5", "lora", "off", "float32"),
        ("t5", "lora", "auto", "bfloat16"),
        ("t5", "qlora", "auto", "bfloat16"),
        ("t5", "qlora", "off", "float32"),
        ("t5", "last_n", "auto", "bfloat16"),
        ("t5", "full", "auto", "float32"),
        ("flan", "lora", "auto", "bfloat16"),
        ("flan", "full", "auto", "float32"),
        ("flan", "head", "auto", "float32"),
        ("bart", "lora", "auto", "float32"),
        ("bart", "qlora", "auto", "bfloat16"),
    ],
)
def test_every_method(
    kind: str, method: str, kernels: str, dtype: str, source: Path, model_of: Any, tmp_path: Path,
    pairs: list[dict[str, Any]],
) -> None:  # fmt: skip
    config = config_of(model_of(kind, dtype), source, tmp_path / "run", train__kernels=kernels)
    config["model"]["dtype"] = "float32" if dtype == "float32" else "auto"
    config["method"] = METHODS.get(method, {"name": method})
    plan = pipeline.plan(peftlab.load_config(config))
    run = peftlab.train(config)
    figures = run.metrics["train"]
    assert figures["trained_parameters"] == plan.trained_parameters
    assert figures["total_parameters"] == plan.total_parameters
    again = peftlab.load_run(run.folder)
    result, before = again.evaluate("test"), run.metrics["test"]
    assert result["loss"] == pytest.approx(before["loss"], rel=1e-3)
    assert result["bleu"] == pytest.approx(before["bleu"], abs=1e-3)
    sources = [row["input"] for row in pairs[:5]]
    answers = again.predict(sources)
    assert answers == run.predict(sources)
    out = tmp_path / "merged"
    # Golden examples and logits on samples are compared as it is written; else it raises.
    assert again.export(out).verified
    if dtype == "float32" and method != "qlora":
        assert written_by(out, sources, 16) == [answer["text"] for answer in answers]


def written_by(folder: Path, sources: list[str], most: int) -> list[str]:
    """What Transformers alone makes of a merged model, one text at a time."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = []
    for text in sources:
        inputs = tokenizer(f"translate: {text}", return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=most, do_sample=False)
        texts.append(tokenizer.decode(made[0], skip_special_tokens=True))
    return texts


def test_real_data_to_text_with_several_references(
    shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = shared_data / "e2e_nlg"
    texts = [row[k] for row in read(data / "train.jsonl", 300) for k in ("input", "output")]
    model = write_model(tmp_path / "model", texts)
    rows = read(data / "test.jsonl", 6)
    for name, some in (("train", read(data / "train.jsonl", 64)), ("test", rows)):
        write(tmp_path / "rows", name, some)
    write(tmp_path / "rows", "validation", read(data / "validation.jsonl", 6))
    config = config_of(model, tmp_path / "rows", tmp_path / "run")
    config["task"] = {"name": "seq2seq", "max_target_length": 40}
    config["data"] |= {
        "max_length": 48, "truncation": "warn"
    }  # fmt: skip
    config["eval"] = {"every": 3, "generation": {"max_new_tokens": 8, "num_beams": 2}}
    with caplog.at_level("WARNING", "peftlab"):
        run = peftlab.train(config)
    assert "train targets: " in caplog.text
    assert "longer than task.max_target_length=40" in caplog.text
    test = run.metrics["test"]
    assert {"chrf", "bleu", "rouge1", "rouge2", "rougeL", "token_accuracy", "loss"} < test.keys()
    assert list(test["interval"]) == ["chrf"]
    # Input by the data's own columns, with or without the references.
    answers = peftlab.load_run(run.folder).predict(rows)
    references = [row["references"] for row in rows]
    most = max(map(len, references))
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    assert most > 1
    direct = sacrebleu.corpus_chrf([answer["text"] for answer in answers], streams)
    assert test["chrf"] == pytest.approx(direct.score)


def test_an_interrupted_run_is_resumed(source: Path, model_of: Any, tmp_path: Path) -> None:
    whole = peftlab.train(config_of(model_of("t5"), source, tmp_path / "whole"))
    from peftlab.training import checkpoint

    config = config_of(model_of("t5"), source, tmp_path / "cut", train__save_every=3)
    write_checkpoint = checkpoint.write_checkpoint

    def die(*args: Any) -> None:
        write_checkpoint(*args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_checkpoint", die)
        with pytest.raises(BaseException):  # noqa: B017, PT011
            peftlab.train(config)
    resumed = peftlab.train(config, resume="auto")
    assert resumed.metrics["test"] == whole.metrics["test"]


def test_through_the_command_line(
    source: Path, model_of: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, pairs: list[dict[str, Any]],
) -> None:  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config_of(model_of("t5"), source, tmp_path / "run")))

    def output_of(*words: str) -> str:
        assert main(list(words)) == 0
        return capfd.readouterr().out

    shown = output_of("data", str(file), "-n", "1")
    assert f"translate: {pairs[0]['input']}</s>" in shown
    assert f"target: ⟦{pairs[0]['output']}</s>⟧" in shown
    assert "train targets" in shown
    plan = json.loads(output_of("plan", str(file), "--json"))
    assert plan["data"]["train targets"]["rows"] == 64
    assert plan["data"]["train targets"]["truncated"] == 0
    shown = output_of("train", str(file))
    assert "bleu" in shown
    run = str(tmp_path / "run")
    assert "bleu" in output_of("eval", run, "--split", "validation")
    first, second = (row["input"] for row in pairs[:2])
    result = json.loads(output_of("predict", run, first, second, "--json"))
    assert [answer["input"] for answer in result] == [first, second]
    assert {"text", "finished"} < result[0].keys()
    assert result[1]["text"] in output_of("predict", run, second)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{first}\n{second}\n"))
    talk = output_of("predict", run, "-i")
    assert talk.splitlines()[-1].strip() == result[1]["text"].strip().splitlines()[-1]
    assert "merged" in output_of("export", run, "-o", str(tmp_path / "merged"))


def test_the_model_before_training(source: Path, model_of: Any, tmp_path: Path) -> None:
    from peftlab.pipeline.untuned import evaluate_untuned

    config = config_of(model_of("t5"), source, tmp_path / "run")
    result = evaluate_untuned(peftlab.load_config(config))
    assert result["what"] == "base model"
    assert 0 <= result["test"]["bleu"] < 5
    assert result["test"]["loss"] > 1
    assert peftlab.train(config).metrics["test"]["loss"] < result["test"]["loss"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "head, tied": ({"method": {"name": "head"}}, "tied to the input embeddings"),
    "packing": ({"data": {"packing": True}}, "data.packing is read by task causal-lm only"),
    "drawn texts": ({"eval": {"generation": {"do_sample": True}}}, "do_sample is true"),
    "no such metric": ({"eval": {"best": "rougeL"}}, "reports bleu, token_accuracy, loss"),
    "penalty without beams": (
        {"eval": {"generation": {"length_penalty": 2.0}}}, "read only with num_beams > 1"
    ),
    "source too long": ({"data": {"max_length": 8}}, "longer than data.max_length=8"),
    "target too long": (
        {"task": {"max_target_length": 5}}, "raise task.max_target_length"
    ),
    "unknown metric": ({"task": {"text_metrics": ["meteor"]}}, "text_metrics"),
    "labels": ({"data": {"columns": {"prompt": "input", "label": "output"}}}, "label"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, source: Path, model_of: Any, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    config = config_of(model_of("t5"), source, tmp_path / "run")
    for section, values in changes.items():
        config[section] = values if section == "method" else {**config[section], **values}
    with pytest.raises(PeftlabError) as refusal:
        peftlab.train(config)
    assert message in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "family", "message"),
    [
        ("seq2seq", "gpt2", "a decoder only"),
        ("seq2seq", "bert", "an encoder only"),
        ("causal-lm", "t5", "task=seq2seq"),
    ],
)
def test_models_of_another_kind(
    task: str, family: str, message: str, source: Path, model_of: Any, tiny_checkpoint: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    model = model_of("t5") if family == "t5" else tiny_checkpoint(family)
    config = config_of(model, source, tmp_path / "run")
    config["task"] = {"name": task}
    for act in (peftlab.train, lambda c: pipeline.plan(peftlab.load_config(c))):
        with pytest.raises(CheckFailed, match=message):
            act(config)
    assert torch.is_grad_enabled()
    with pytest.raises(ConfigError, match=r"eval\.generation"):
        peftlab.load_config(config | {"task": "text-classification"})
