"""The methods on real pretrained weights: sizes known beforehand, and training that learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from peftlab.errors import CheckFailed
from peftlab.methods.apply import apply_method, load_trained, method_of, save_trained
from peftlab.model.loading import LoadedModel
from tests.methods.common import (
    CAUSAL,
    CLASSIFICATION,
    batch,
    cached,
    collate,
    load,
    loss,
    method,
)

datasets = pytest.importorskip("datasets")


@pytest.mark.parametrize(
    ("name", "settings", "trained"),
    [
        ("head", {}, 770),
        ("last_n", {"n": 2}, 2 * 1_774_464 + 147_840 + 770),
        # Four 384x384 and two 384x1536 linears a block: r times their two sides.
        ("lora", {"r": 8}, 6 * 8 * (4 * 768 + 2 * 1920) + 770),
        ("qlora", {"r": 8}, 6 * 8 * (4 * 768 + 2 * 1920) + 770),
        ("full", {}, 22_713_216 + 770),
    ],
)
def test_minilm_by_the_numbers(
    minilm: Path, name: str, settings: dict[str, Any], trained: int
) -> None:
    chosen = method(name, **settings)
    model = load(minilm, CLASSIFICATION, chosen, empty=True).model
    assert apply_method(model, chosen, task=CLASSIFICATION).coverage.trained == trained


def test_default_rates_are_those_that_worked_at_minilms_width() -> None:
    rates = {"head": 5e-3, "last_n": 5e-4, "lora": 5e-4, "qlora": 5e-4, "full": 1e-4}
    for name, rate in rates.items():
        assert method_of(method(name)).default_learning_rate(384) == pytest.approx(rate)
        assert method_of(method(name)).default_learning_rate(4096) <= rate


@pytest.mark.slow
@pytest.mark.parametrize("name", ["head", pytest.param("lora", marks=pytest.mark.campaign)])
def test_minilm_learns_from_real_sentences(
    minilm: Path, shared_data: Path, tmp_path: Path, name: str
) -> None:
    chosen = method(name) if name == "head" else method(name, r=4, dropout=0.0)
    loaded = load(minilm, CLASSIFICATION, chosen)
    applied = apply_method(loaded.model, chosen, task=CLASSIFICATION)
    rows = {
        split: encoded(shared_data / "sentences_3domains" / f"{split}.jsonl", loaded, count)
        for split, count in (("train", 192), ("validation", 96))
    }
    whole = collate([rows["validation"][i] for i in range(96)])
    labels = whole.pop("labels")
    if name == "head":
        rate = method_of(chosen).default_learning_rate(loaded.hidden_size)
        with cached(applied, rows["train"]) or pytest.fail("not cached") as cache:
            descend(cache.head, cache.rows["train"], cache.collator, rate, epochs=10)
    else:
        # The default is for hundreds of steps; these are few.
        descend(applied.model, rows["train"], collate, 1e-3, epochs=3)
    applied.model.eval()
    with torch.no_grad():
        answers = applied.model(**whole).logits
    assert (answers.argmax(-1) == labels).float().mean() > 0.75
    save_trained(applied, tmp_path)
    again = load_trained(
        load(minilm, CLASSIFICATION, chosen, seed=5).model, chosen, tmp_path, task=CLASSIFICATION
    )
    with torch.no_grad():
        assert torch.equal(again.model.eval()(**whole).logits, answers)


def encoded(file: Path, loaded: LoadedModel, count: int) -> datasets.Dataset:
    lines = [json.loads(line) for line in file.read_text().splitlines()[:count]]
    found = loaded.tokenizer([r["text"] for r in lines], truncation=True, max_length=32)
    return datasets.Dataset.from_dict(
        {
            "input_ids": found["input_ids"],
            "attention_mask": found["attention_mask"],
            "labels": [int(row["label"]) for row in lines],
        }
    )


def descend(model: Any, rows: Any, collator: Any, rate: float, *, epochs: int) -> None:
    """AdamW with a rate that rises over a tenth of the steps and falls linearly to zero."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    starts = [start for _ in range(epochs) for start in range(0, len(rows), 16)]
    warm = len(starts) / 10
    model.train()
    for number, start in enumerate(starts):
        factor = min((number + 1) / warm, (len(starts) - number) / (len(starts) - warm))
        optimiser.param_groups[0]["lr"] = rate * factor
        given = collator([rows[i] for i in range(start, min(start + 16, len(rows)))])
        given.pop("tokens", None)
        labels = given.pop("labels")
        F.cross_entropy(model(**given).logits, labels).backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("folder", ["model_stories260k", "model_tinystories656k"])
@pytest.mark.parametrize("name", ["last_n", "lora", "qlora", "full"])
def test_small_llamas_train(shared_data: Path, folder: str, name: str) -> None:
    chosen = method(name, **({"n": 1} if name == "last_n" else {}))
    loaded = load(shared_data / folder, CAUSAL, chosen)
    applied = apply_method(loaded.model, chosen, task=CAUSAL)
    text = "Once upon a time there was a little dog. He liked to play in the rain."
    given = batch(loaded, [text])
    tokens = given["input_ids"].shape[1] - 1
    applied.model.eval()
    with torch.no_grad():
        before = loss(applied.model, given, CAUSAL) / tokens
    # Models that have read such stories: far below the log of their vocabularies, 6.2 and 7.6.
    assert before < (2.5 if folder == "model_stories260k" else 4.5)
    optimiser = torch.optim.AdamW(
        [p for p in applied.model.parameters() if p.requires_grad],
        lr=method_of(chosen).default_learning_rate(loaded.hidden_size),
    )
    for _ in range(10):
        (loss(applied.model, given, CAUSAL) / tokens).backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        assert loss(applied.model, given, CAUSAL) / tokens < before - 0.1


def test_a_tied_llama_has_no_head_to_train(shared_data: Path) -> None:
    chosen = method("head")
    model = load(shared_data / "model_stories260k", CAUSAL, chosen).model
    with pytest.raises(CheckFailed, match="lm_head of LlamaForCausalLM is tied"):
        apply_method(model, chosen, task=CAUSAL)
