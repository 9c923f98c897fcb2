"""Every task on every architecture that it fits, once of them not fused: it learns, moves only what
trains, and answers after it was saved as it did before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab import pipeline
from peftlab.config import config_from_mapping
from peftlab.pipeline import preparation

pytestmark = pytest.mark.slow

EIGHT = range(8)
WORDS = ("good", "bad")
NAMES = ("dog", "cat", "girl", "phone", "movie", "book", "story", "battery")


@dataclass(frozen=True)
class Case:
    """A task with eight rows to overfit, and inputs to predict afterwards.

    `families` maps an architecture to the kind of checkpoint that the task starts from.
    """

    task: Any
    families: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    inputs: Sequence[Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    eval: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


ENCODERS = dict.fromkeys(("bert", "gpt2", "t5", "llama"), "classification")
DECODERS = dict.fromkeys(("gpt2", "llama"), "causal")
SHORT = {"generation": {"max_new_tokens": 6}}

CASES = {
    "text-classification": Case(
        task="text-classification",
        families=ENCODERS,
        rows=[{"text": f"a {WORDS[i % 2]} film {i}", "label": WORDS[i % 2]} for i in EIGHT],
        inputs=["a good film 3", "a bad book"],
    ),
    "sentence pairs": Case(
        task="text-classification",
        families=ENCODERS,
        rows=[
            {"text": f"a {WORDS[i % 2]} film", "text_pair": f"the {WORDS[i // 4]} story",
             "label": ["no", "yes"][(i % 2) == (i // 4)]}
            for i in EIGHT
        ],
        inputs=[{"text": "a good film", "text_pair": "the bad story"}],
    ),
    "plain text": Case(
        task="causal-lm",
        families=DECODERS,
        rows=[{"text": f"once upon a time the {name} was {WORDS[i % 2]}"}
              for i, name in enumerate(NAMES)],
        inputs=["once upon a time", "the movie"],
        eval=SHORT,
    ),
    "packed text": Case(
        task="causal-lm",
        families=DECODERS,
        rows=[{"text": f"once upon a time the {name} was {WORDS[i % 2]}"}
              for i, name in enumerate(NAMES)],
        inputs=["once upon a time"],
        data={"packing": True, "max_length": 16},
        eval=SHORT,
    ),
    "prompt and completion": Case(
        task="causal-lm",
        families=DECODERS,
        rows=[{"prompt": f"name number {i}", "completion": f" a {name} was {WORDS[i % 2]}"}
              for i, name in enumerate(NAMES)],
        inputs=[{"prompt": "name number 3"}],
        eval=SHORT,
    ),
    "chat": Case(
        task="causal-lm",
        families=DECODERS,
        rows=[{"messages": [{"role": "user", "content": f"name number {i}"},
                            {"role": "assistant", "content": f"a {name} was {WORDS[i % 2]}"}]}
              for i, name in enumerate(NAMES)],
        inputs=["name number 3"],
        eval=SHORT,
    ),
    "tags": Case(
        task="token-classification",
        families=ENCODERS,
        rows=[{"tokens": ["the", name, "was", WORDS[i % 2]], "tags": ["O", "B-who", "O", "B-how"]}
              for i, name in enumerate(NAMES)],
        inputs=["the dog was good", {"tokens": ["a", "book"]}],
    ),
    "answers": Case(
        task="question-answering",
        families=ENCODERS,
        rows=[{"id": str(i), "question": "name", "context": f"the {name} was {WORDS[i % 2]}",
               "answers": {"text": [name], "answer_start": [4]}} for i, name in enumerate(NAMES)],
        inputs=[{"question": "name", "context": "the book was bad"}],
        data={"max_length": 24},
    ),
    "relations": Case(
        task="relation-extraction",
        families=ENCODERS,
        rows=[{"text": f"the <e1>{name}</e1> was <e2>{WORDS[i % 2]}</e2>", "label": WORDS[i % 2]}
              for i, name in enumerate(NAMES)],
        inputs=["the <e1>dog</e1> was <e2>bad</e2>"],
    ),
    "relations by entity starts": Case(
        task={"name": "relation-extraction", "representation": "entity_start"},
        families=dict.fromkeys(("bert", "t5"), "classification"),
        rows=[{"text": f"the <e1>{name}</e1> was <e2>{WORDS[i % 2]}</e2>", "label": WORDS[i % 2]}
              for i, name in enumerate(NAMES)],
        inputs=["the <e1>dog</e1> was <e2>bad</e2>"],
    ),
    "a text out of a text": Case(
        task="seq2seq",
        families={"t5": "seq2seq"},
        rows=[{"prompt": f"name number {i}", "completion": f"a {name} was {WORDS[i % 2]}"}
              for i, name in enumerate(NAMES)],
        inputs=["name number 3"],
        eval=SHORT,
        # Tied, logits of 32 frozen random features are too small to tell words apart.
        model={"tie_word_embeddings": False},
    ),
}  # fmt: skip

# No dropout: the loss of the first and the last step are of the same function.
STILL: dict[str, dict[str, float]] = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    "t5": {"dropout_rate": 0.0},
    "llama": {},
}
GRID = [
    pytest.param(name, family, kernels, id=f"{name}-{family}-{kernels}".replace(" ", "_"))
    for number, (name, case) in enumerate(CASES.items())
    for place, family in enumerate(case.families)
    # Without our kernels it is PEFT's own computation: once for each task, by turns.
    for kernels in (("auto", "off") if place == number % len(case.families) else ("auto",))
]


def configure(case: Case, family: str, kernels: str, make: Any, folder: Path) -> Any:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in case.rows))
    model = make(family, case.families[family], **STILL[family], **case.model)
    return config_from_mapping(
        {
            "model": {"name": str(model), "dtype": "float32"},
            "task": case.task,
            "data": {
                "source": str(rows), "splits": {"validation": None, "test": None}, **case.data,
            },
            "method": {"name": "lora", "r": 16, "alpha": 32, "dropout": 0.0},
            "train": {
                "max_steps": 20, "global_batch_size": 8, "learning_rate": 1e-2,
                "warmup_steps": 0.1, "logging_steps": 1, "save_every": "never", "kernels": kernels,
            },
            "eval": {"every": "never", **case.eval},
            "output": {"dir": str(folder / "run"), "plots": False},
        }
    )  # fmt: skip


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("name", "family", "kernels"), GRID)
def test_twenty_steps(
    name: str, family: str, kernels: str, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    case = CASES[name]
    config = configure(case, family, kernels, tiny_checkpoint, tmp_path)
    prepared = preparation.prepare(preparation.check(config))
    before, trainable = tensors(prepared.applied.model), prepared.applied.trainable

    run = pipeline.train(config)
    assert run.trained is not None
    after = tensors(run.trained.model)
    assert after.keys() == before.keys()
    still = {n for n, tensor in after.items() if torch.equal(tensor, before[n])}
    assert still == before.keys() - trainable
    fusion = run.record["fusion"]
    assert (fusion is not None and len(fusion["fused"]) > 0) == (kernels == "auto")

    lines = [line.split(",") for line in (run.folder / "log.csv").read_text().splitlines()]
    losses = [float(line[lines[0].index("loss")]) for line in lines[1:]]
    assert len(losses) == 20
    assert losses[-1] < losses[0] / 2, losses

    reopened = pipeline.open_run(run.folder)
    first, second = run.predict(case.inputs), reopened.predict(case.inputs)
    assert alike(first, second), (first, second)
    assert len(first) == len(case.inputs)


def alike(left: Any, right: Any) -> bool:
    """Equal, numbers within rounding."""
    if isinstance(left, float):
        return bool(left == pytest.approx(right, rel=1e-4, abs=1e-5))
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(alike, left, right))
    return bool(left == right)
