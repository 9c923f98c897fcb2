"""Runs of every method, exported: what any tool loads computes what the run computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab import pipeline
from peftlab.cli import main
from peftlab.config import config_from_mapping
from peftlab.errors import CheckFailed, VerificationError
from peftlab.pipeline.run import Run

pytestmark = pytest.mark.poison_empty(False)

WORDS = ("good", "bad")
TEXTS = ["a good film , number 3", "the bad story", "not very great"]
METHODS: dict[str, dict[str, Any]] = {
    "head": {"name": "head", "pooling": "model"},
    "last_n": {"name": "last_n", "n": 1},
    "full": {"name": "full"},
    "lora": {"name": "lora", "r": 4},
}
Train = Callable[..., Run]


class Said(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`cli("export", folder, "-o", out)`: runs a command line in this process."""

    def run(*words: object) -> Said:
        capfd.readouterr()
        code = main([str(word) for word in words])
        found = Said(code, *capfd.readouterr())
        assert "Traceback" not in found.err
        return found

    return run


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`trained(family, method, **settings)`: a run, trained once for all tests of this file."""
    folder = tmp_path_factory.mktemp("runs")
    for split, count in (("train", 24), ("validation", 8)):
        for name, row in (
            ("labels", lambda i: {"text": f"a {WORDS[i % 2]} film {i}", "label": WORDS[i % 2]}),
            ("answers", lambda i: {"prompt": f"name number {i}", "completion": f"a {i % 2} dog"}),
        ):
            (folder / name).mkdir(exist_ok=True)
            lines = "".join(json.dumps(row(i)) + "\n" for i in range(count))
            (folder / name / f"{split}.jsonl").write_text(lines)
    made: dict[str, Run] = {}

    def run(family: str, **method: Any) -> Run:
        key = json.dumps([family, method], sort_keys=True)
        if key not in made:
            causal = method["name"] == "qlora" or family == "llama"
            base = tiny_checkpoint(family, "causal") if causal else tiny_checkpoint(family)
            made[key] = pipeline.train(
                config_from_mapping(
                    {
                        "model": {"name": str(base), "dtype": "float32"},
                        "task": "causal-lm" if causal else "text-classification",
                        "data": {"source": str(folder / ("answers" if causal else "labels"))},
                        "method": method,
                        "train": {"max_steps": 6, "global_batch_size": 8, "learning_rate": 2e-2},
                        "eval": {"every": "never"},
                        "output": {"dir": str(folder / f"run-{len(made)}"), "plots": False},
                    }
                )
            )
        return made[key]

    return run


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


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_any_method_is_exported_and_answers_alike_in_plain_transformers(
    method: str, family: str, trained: Train, cli: Callable[..., Said], tmp_path: Path
) -> None:
    run = trained(family, **METHODS[method])
    out = tmp_path / "some where" / "merged"
    said = cli("export", run.folder, "-o", out)
    assert said.code == 0, said.err
    assert "Load it: transformers.AutoModelForSequenceClassification" in said.out
    expected = [[p["probabilities"][w] for w in ("bad", "good")] for p in run.predict(TEXTS)]
    for found, wanted in zip(probabilities(out), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert set(config["label2id"]) == set(WORDS)


def test_a_head_on_features_that_no_class_computes_is_refused(
    trained: Train, cli: Callable[..., Said], tmp_path: Path
) -> None:
    run = trained("bert", name="head", pooling="mean")
    said = cli("export", run.folder, "-o", tmp_path / "out")
    assert said.code == 3
    assert "pooled by mean" in said.err
    assert "method.pooling=model" in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def eight_bits(trained: Train) -> Run:
    """A run trained over a base in 8 bits."""
    return trained("llama", name="qlora", bits=8, r=4)


def divergence(model: Any, run: Run) -> float:
    """The mean KL from the trained model's next-token distribution to another model's, nats."""
    ready = run.answering
    ids = ready.tokenizer("name number 7 a little dog", return_tensors="pt").input_ids
    with torch.no_grad():
        p, q = (m.eval()(input_ids=ids).logits.float().log_softmax(-1) for m in (ready.model, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_an_8_bit_run_is_merged_into_each_form_of_its_base(
    eight_bits: Run, cli: Callable[..., Said], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    found: dict[str, float] = {}
    states: dict[str, Any] = {}
    for form in ("original", "dequant", "requant"):
        out = tmp_path / form
        said = cli("export", eight_bits.folder, "-o", out, "--merge-base", form)
        assert said.code == 0, said.err
        model = AutoModelForCausalLM.from_pretrained(out)
        found[form] = divergence(model, eight_bits)
        states[form] = load_file(out / "model.safetensors")
        assert found[form] < 5e-3
    assert 0 < found["dequant"] < found["original"]

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
    eight_bits: Run, cli: Callable[..., Said], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = cli("export", eight_bits.folder, "-o", out, "--json")
    assert said.code == 0, said.err
    lines = [line for line in said.err.splitlines() if "KL" in line]
    assert [line.split()[0] for line in lines if "nats" in line] == [
        "original", "dequant", "requant",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines if "chosen" in line] == ["dequant"]
    assert json.loads(said.out)["verified"]["logits"]["error"] < 1e-5
    assert "the dequant base" in (out / "README.md").read_text()
    again = tmp_path / "again"
    assert cli("export", eight_bits.folder, "-o", again, "--merge-base", "dequant").code == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
