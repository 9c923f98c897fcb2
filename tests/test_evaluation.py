"""Evaluation: the same scores for any batches, in the rows' order, with no side effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from peftlab.errors import DataError
from peftlab.evaluation import evaluate
from peftlab.tasks.classification.label_problems import SingleLabel
from peftlab.tasks.classification.text_classification import TextClassification
from peftlab.tasks.collate import PaddingCollator
from peftlab.tasks.encoding import Gathered

datasets = pytest.importorskip("datasets")

COLLATE = PaddingCollator(0)


def classifier(dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, num_labels=3, hidden_dropout_prob=dropout,
        )
    )  # fmt: skip


def task() -> TextClassification:
    return TextClassification(SingleLabel(("a", "b", "c")))


@pytest.fixture
def rows() -> datasets.Dataset:
    generator = torch.Generator().manual_seed(0)
    return datasets.Dataset.from_list(
        [
            {
                "input_ids": torch.randint(2, 50, (2 + 5 * i % 17,), generator=generator).tolist(),
                "labels": i % 3,
            }
            for i in range(23)
        ]
    )


def test_scores_are_those_of_each_row_alone(rows: datasets.Dataset) -> None:
    model = classifier()
    result = evaluate(model, task(), rows, COLLATE, batch_size=7)
    model.eval()
    for index, row in enumerate(rows):
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0]
        assert result.scores["prediction"][index] == logits.argmax()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"])).item()
        assert result.scores["loss"][index] == pytest.approx(loss, rel=1e-5)
    assert result.scores["label"].tolist() == rows["labels"]
    assert result.metrics["loss"] == pytest.approx(result.scores["loss"].mean())


def test_batches_do_not_matter_and_neither_does_the_container(rows: datasets.Dataset) -> None:
    model = classifier()
    whole = evaluate(model, task(), rows, COLLATE, batch_size=100)
    for part in (rows, list(rows), rows.select(range(23))):
        other = evaluate(model, task(), part, COLLATE, batch_size=4)
        np.testing.assert_allclose(other.scores["loss"], whole.scores["loss"], rtol=1e-5)
    again = evaluate(model, task(), rows, COLLATE, batch_size=100)
    assert again.metrics == whole.metrics
    assert all(np.array_equal(again.scores[name], whole.scores[name]) for name in whole.scores)


def test_rows_of_equal_length_share_batches(rows: datasets.Dataset) -> None:
    """Longest first: fewer padded tokens than in the order given, and the worst batch at once."""
    sizes = []

    def collate(part: Any) -> Any:
        batch = COLLATE(part)
        sizes.append(tuple(batch["input_ids"].shape))
        return batch

    evaluate(classifier(), task(), rows, collate, batch_size=5)
    widths = [width for _, width in sizes]
    assert widths == sorted(widths, reverse=True)
    assert [count for count, _ in sizes] == [5, 5, 5, 5, 3]


def test_modes_and_random_state_stay(rows: datasets.Dataset) -> None:
    model = classifier().train()
    model.bert.eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    evaluate(model, task(), rows, COLLATE, batch_size=8)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError):
        evaluate(model, task(), rows, lambda rows: 1 / 0, batch_size=8)  # type: ignore[arg-type]
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_training_continues_after_evaluation(family: str, rows: datasets.Dataset) -> None:
    """Nothing that a model keeps from inference mode gets in the way of the next backward."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "bert": lambda: classifier(0.0),
        "gpt2": lambda: transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(
                vocab_size=50, n_embd=16, n_layer=1, n_head=2, pad_token_id=0, num_labels=3,
                bos_token_id=1, eos_token_id=1,
            )
        ),
        "t5": lambda: transformers.T5ForSequenceClassification(
            transformers.T5Config(
                vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                num_labels=3, decoder_start_token_id=0,
            )
        ),
        "llama": lambda: transformers.LlamaForSequenceClassification(
            transformers.LlamaConfig(
                vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=16, pad_token_id=0, num_labels=3, bos_token_id=1,
                eos_token_id=1, rope_parameters={"rope_type": "dynamic", "factor": 2.0,
                                                 "rope_theta": 10000.0},
                max_position_embeddings=8,
            )
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    model = makers[family]()
    ended = rows.map(lambda row: {"input_ids": [*row["input_ids"], 1]})
    evaluate(model, task(), ended, COLLATE, batch_size=8)
    model.train()
    loss = task().loss_sum(model, COLLATE(list(ended.select(range(4)))))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_cached_features_and_bf16() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, features: torch.Tensor) -> Any:
            seen.append(self.linear(features).dtype)
            return transformers.modeling_outputs.SequenceClassifierOutput(
                logits=self.linear(features)
            )

    seen: list[torch.dtype] = []
    rows = datasets.Dataset.from_dict(
        {"features": torch.randn(5, 4).tolist(), "labels": [0, 1, 2, 0, 1], "tokens": [9] * 5}
    )

    def collate(part: Any) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([row[name] for row in part]) for name in part[0]}

    for dtype in (torch.float32, torch.bfloat16):
        result = evaluate(Head(), task(), rows, collate, batch_size=2, compute_dtype=dtype)
        assert result.scores["label"].tolist() == [0, 1, 2, 0, 1]
    assert seen == [torch.float32] * 3 + [torch.bfloat16] * 3


def test_no_rows() -> None:
    with pytest.raises(DataError, match="no rows"):
        evaluate(classifier(), task(), [], COLLATE, batch_size=2)


def test_quiet_where_nobody_watches(rows: datasets.Dataset, capfd: Any) -> None:
    evaluate(classifier(), task(), rows, COLLATE, batch_size=8)
    assert capfd.readouterr() == ("", "")


class Reader(TextClassification):
    """Answers in text, and with as many numbers as its batch is wide."""

    def score(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        ids = batch["input_ids"]
        assert isinstance(batch["spelt"], list)
        return {
            "answer": np.array([f"{name}!" for name in batch["spelt"]], dtype=object),
            "offsets": np.array([len(spans) for spans in batch["spans"]]),
            "logits": ids.double().numpy(),
            "loss": np.zeros(len(ids)),
        }

    def metrics(self, scores: dict[str, Any]) -> dict[str, float]:
        return {"loss": float(scores["loss"].mean())}


def test_scores_may_be_texts_and_rows_of_any_width() -> None:
    gathered = Gathered()
    for start in (0, 4, 8):
        numbers = range(start, start + 4)
        ids = [[7] * (1 + (5 * n) % 9) for n in numbers]
        gathered.add(
            {
                "input_ids": ids,
                "spelt": [f"row {n}" for n in numbers],
                "spans": [[{"start": n}] * (n // 4) for n in numbers],
                "notes": [["a"] * (n // 4) for n in numbers],
            },
            whole_lengths=map(len, ids), truncated=0, trained=4,
        )  # fmt: skip
    rows = gathered.encoded().rows
    assert rows["notes"][3:5] == [[], ["a"]]
    result = evaluate(
        classifier(), Reader(SingleLabel(("a", "b"))), rows, COLLATE, batch_size=3
    ).scores
    assert result["answer"].tolist() == [f"row {n}!" for n in range(12)]
    assert result["offsets"].tolist() == [n // 4 for n in range(12)]
    assert result["logits"].dtype == object
    for n, row in enumerate(result["logits"]):
        assert row.sum() == 7 * (1 + (5 * n) % 9)


def test_a_batch_of_several_kinds_of_columns() -> None:
    batch = COLLATE(
        [
            {"input_ids": [1, 2], "labels": [0.0, 1.0], "start": 3, "name": "a", "score": 0.5},
            {"input_ids": [1], "labels": [1.0, 0.0], "start": 4, "name": "b", "score": 1.5},
        ]
    )
    assert batch["labels"].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert batch["labels"].dtype == torch.float32
    assert batch["start"].tolist() == [3, 4]
    assert batch["name"] == ["a", "b"]
    assert batch["score"].tolist() == [0.5, 1.5]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
