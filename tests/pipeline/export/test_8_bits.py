"""Runs over 8 bits, exported into each form of their base, and the form that is nearest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftlab.pipeline.run import Run

pytestmark = pytest.mark.poison_empty(False)

Train = Callable[..., Any]
Cli = Callable[..., Any]


@pytest.fixture
def eight_bits(trained: Train) -> Run:
    """A run trained over a base in 8 bits."""
    return trained("llama", name="qlora", bits=8, r=4)


def divergence(model: Any, run: Run) -> float:
    """The mean KL from the trained model's next-token distribution to another model's, nats."""
    ready = run.loaded
    ids = ready.tokenizer("name number 7 a little dog", return_tensors="pt").input_ids
    with torch.no_grad():
        p, q = (
            m.eval()(input_ids=ids).logits.float().log_softmax(-1) for m in (ready.model, model)
        )
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_an_8_bit_run_is_merged_into_each_form_of_its_base(
    eight_bits: Run, cli: Cli, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    divergences: dict[str, float] = {}
    states: dict[str, Any] = {}
    for form in ("original", "dequant", "requant"):
        out = tmp_path / form
        ran = cli("export", eight_bits.folder, "-o", out, "--merge-base", form)
        assert ran.code == 0, ran.err
        model = AutoModelForCausalLM.from_pretrained(out)
        divergences[form] = divergence(model, eight_bits)
        states[form] = load_file(out / "model.safetensors")
        assert divergences[form] < 5e-3
    assert 0 < divergences["dequant"] < divergences["original"]

    name = "model.layers.0.self_attn.q_proj.weight"
    base = load_file(Path(eight_bits.record["model"]["name"]) / "model.safetensors")
    assert states["original"].keys() == states["dequant"].keys() == base.keys()
    assert not torch.equal(states["original"][name], states["dequant"][name])
    assert states["requant"][name].dtype is torch.int8
    assert states["requant"]["model.embed_tokens.weight"].dtype is torch.float32
    row_by_row = states["requant"][name] * states["requant"][name[:-6] + "SCB"][:, None] / 127
    torch.testing.assert_close(row_by_row, states["dequant"][name], rtol=0, atol=5e-3)


def test_requantised_models_load_in_transformers_with_bitsandbytes(
    eight_bits: Run, tmp_path: Path
) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    report = eight_bits.export(out, merge_base="requant")
    assert report.counts["scales"] == report.counts["format"] == 14
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    kinds = {type(m).__name__ for m in model.modules() if isinstance(m, torch.nn.Linear)}
    assert kinds == {"Linear", "Linear8bitLt"}
    layer = model.model.layers[1].mlp.down_proj
    assert isinstance(layer, bnb.nn.Linear8bitLt)
    stored = load_file(out / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(layer.weight.data, stored)
    assert type(model.lm_head) is torch.nn.Linear


def test_auto_measures_the_forms_shows_them_and_takes_the_nearest(
    eight_bits: Run, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = cli("export", eight_bits.folder, "-o", out, "--json")
    assert ran.code == 0, ran.err
    lines = [line for line in ran.err.splitlines() if "KL" in line]
    assert [line.split()[0] for line in lines if "nats" in line] == [
        "original", "dequant", "requant",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines if "chosen" in line] == ["dequant"]
    report = json.loads(ran.out)
    assert report["verified"]["logits"]["error"] < 1e-5
    compared = json.loads((out / "merge_report.json").read_text())["compared"]
    assert compared == report["compared"]
    assert (compared["chosen"], compared["metric"]) == ("dequant", "perplexity")
    # Of eight rows all were compared: the run's own evaluation, and a merged model's.
    known = eight_bits.metrics["validation"]["perplexity"]
    assert compared["trained"]["perplexity"] == pytest.approx(known, rel=1e-4)
    assert f"which has perplexity {known:.4g} on these rows" in ran.err
    merged = [compared[form]["perplexity"] for form in ("original", "dequant", "requant")]
    assert merged == pytest.approx([known] * 3, rel=1e-2)
    assert len({*merged, known}) == 4
    assert [
        f"perplexity {compared[name]['perplexity']:.4g}" in line
        for name, line in zip(("original", "dequant", "requant"), lines[-3:], strict=True)
    ] == [True] * 3
    assert "the dequant base" in (out / "README.md").read_text()
    again = tmp_path / "again"
    assert cli("export", eight_bits.folder, "-o", again, "--merge-base", "dequant").code == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_over_a_checkpoint_that_is_in_8_bits_auto_compares_the_forms_that_are_there(
    eight_bits: Run, cli: Cli, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from peftlab import pipeline
    from peftlab.config import load_config

    eight = tmp_path / "eight"
    assert cli("export", eight_bits.folder, "-o", eight, "--merge-base", "requant").code == 0
    changed = {"model.name": str(eight), "output.dir": str(tmp_path / "again")}
    overrides = [f"{key}={value}" for key, value in changed.items()]
    again = pipeline.train(load_config(eight_bits.folder / "config.yaml", overrides).config)
    ran = cli("export", again.folder, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["verified"]["logits"]["error"] <= report["verified"]["logits"]["tolerance"]
    shown = ran.out + ran.err + caplog.text
    assert "dequant " in shown
    assert "original " not in shown
    refused = cli("export", again.folder, "-o", tmp_path / "no", "--merge-base", "original")
    assert refused.code == 3
    assert "is stored in 8 bits" in refused.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_classifier_that_finds_the_end_of_a_row_by_padding(
    family: str, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    """No padding token in the base: the run's is the merged model's, so that it takes batches."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    import peftlab

    rows = tmp_path / "rows.jsonl"
    texts = ["a good film, and long", "bad"] * 8
    rows.write_text("".join(json.dumps({"text": t, "label": t[:3]}) + "\n" for t in texts))
    run = peftlab.train(
        {
            "model": {"name": str(tiny_checkpoint(family)), "dtype": "float32"},
            "task": "text-classification",
            "data": {"source": str(rows)},
            "train": {"max_steps": 4, "global_batch_size": 8},
            "eval": {"every": "never"},
            "output": {"dir": str(tmp_path / "run"), "plots": False},
        },
        method="qlora",
    )
    run.export(tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        together = model(**tokenizer(texts[:2], padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(t, return_tensors="pt")).logits for t in texts[:2]])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    ("task", "family", "rows", "metric"),
    [
        ("token-classification", "bert", {"tokens": ["the", "dog"], "tags": ["O", "B-who"]}, "f1"),
        ("question-answering", "bert", {
            "question": "who", "context": "the dog was good",
            "answers": {"text": ["dog"], "answer_start": [4]},
        }, "f1"),
        ("seq2seq", "t5", {"prompt": "the dog", "completion": "was good"}, "loss"),
    ],
)  # fmt: skip
def test_the_table_has_the_metric_of_the_task(
    task: str, family: str, rows: dict[str, Any], metric: str, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    """By forward passes alone: of a seq2seq task the loss."""
    import peftlab

    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps(rows) + "\n") * 24)
    base = tiny_checkpoint(family, "seq2seq") if task == "seq2seq" else tiny_checkpoint(family)
    run = peftlab.train(
        {
            "model": {"name": str(base), "dtype": "float32"},
            "task": task,
            "data": {"source": str(file)},
            "train": {"max_steps": 4, "global_batch_size": 8},
            "eval": {"every": "never"},
            "output": {"dir": str(tmp_path / "run"), "plots": False},
        },
        method="qlora",
    )
    compared = run.export(tmp_path / "merged").compared
    assert compared["metric"] == metric
    known = run.metrics["validation"][metric]
    # The run's validation is fewer rows than a batch, and they are alike.
    assert compared["trained"][metric] == pytest.approx(known, rel=1e-4)
    for form in ("original", "dequant", "requant"):
        assert compared[form][metric] == pytest.approx(known, rel=5e-2, abs=5e-2)
