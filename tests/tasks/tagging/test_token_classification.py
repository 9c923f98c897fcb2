from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from peftlab.data.loading import load_splits
from peftlab.errors import ConfigError, DataError
from peftlab.evaluation import evaluate
from peftlab.tasks.tagging.token_classification import TokenClassification

datasets = pytest.importorskip("datasets")

OPTIONS = TokenClassification.options(name="token-classification")
READS: dict[str, Any] = {"formats": OPTIONS.formats, "roles": OPTIONS.roles}
TASK = TokenClassification(("O", "B-who", "I-who", "B-what"), prefixed=True)
ROWS = [
    (["little", "girl", "loved", "the", "film"], ["B-who", "I-who", "O", "O", "B-what"]),
    (["dog"], ["B-who"]),
    (["it", "was", "a", "dull", "story", ",", "friend"], ["O"] * 4 + ["B-what", "O", "B-who"]),
]


def rows_of(rows: list[tuple[list[str], list[str]]] = ROWS) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"tokens": [t for t, _ in rows], "tags": [g for _, g in rows]}
    )


def ready(family: str, place: Path, task: TokenClassification = TASK) -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        place, **task.head().config
    )
    return model.eval(), tokenizer


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_a_batch_is_the_sum_of_its_words(family: str, tiny_checkpoint: Any) -> None:
    model, tokenizer = ready(family, tiny_checkpoint(family))
    encoded = TASK.encode(rows_of(), tokenizer, max_length=16).rows
    collate = TASK.collator(tokenizer)
    batch = collate(list(encoded))
    assert TASK.count_items(batch) == 13
    whole = TASK.loss_sum(model, batch)
    single = [TASK.loss_sum(model, collate([row])) for row in encoded]
    torch.testing.assert_close(whole, torch.stack(single).sum(), rtol=1e-4, atol=1e-4)
    own = model(**TASK.model_inputs(batch), labels=batch["labels"]).loss * 13
    torch.testing.assert_close(whole, own, rtol=1e-4, atol=1e-4)
    result = evaluate(model, TASK, encoded, collate, batch_size=2)
    assert result.metrics["loss"] == pytest.approx(float(whole.detach()) / 13, rel=1e-4)
    assert set(result.metrics) <= set(TASK.greater_is_better)
    for metric, value in result.metrics.items():
        low, high = TASK.interval(result.scores, metric)
        assert low <= value <= high


def test_one_piece_of_a_word_bears_its_tag(minilm: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    row = (["Unfathomable", "Zoë", "\u200b", "naps"], ["B-who", "I-who", "B-what", "O"])
    encoded = TASK.encode(rows_of([row]), tokenizer, max_length=32).rows[0]
    pieces = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    labels = dict(zip(pieces, encoded["labels"], strict=True))
    assert labels["un"] == 1
    assert labels["zoe"] == 2
    assert [labels[p] for p in pieces if p.startswith("##")] == [-100] * (len(pieces) - 5)
    assert labels["[CLS]"] == labels["[SEP]"] == -100
    assert encoded["words"] == [0, 1, 3]
    assert json.loads(encoded["unread"]) == [[2, 3]]
    last = TokenClassification(TASK.tags, True, "last").encode(
        rows_of([row]), tokenizer, max_length=32
    )
    assert [i for i, label in enumerate(last.rows[0]["labels"]) if label == 1] == [
        pieces.index("zoe") - 1
    ]
    shown = TASK.preview(encoded, tokenizer)
    assert shown["trained"] == "un/B-who zoe/I-who nap/O"


def test_a_word_without_a_piece_counts_as_missed(minilm: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        minilm, **TASK.head().config
    )
    rows = rows_of([(["\u200b"], ["B-what"]), (["dog", "\u200b"], ["O", "O"])])
    encoded = TASK.encode(rows, tokenizer, max_length=8).rows
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
    result = evaluate(model, TASK, encoded, TASK.collator(tokenizer), batch_size=4).metrics
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["recall"] == 0
    (answer,) = TASK.predict(model, tokenizer, [{"tokens": ["\u200b"]}], max_length=8, batch_size=1)
    assert answer == {"entities": [], "tokens": ["\u200b"], "tags": ["O"]}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_no_word_of_a_long_row_is_lost(family: str, tiny_checkpoint: Any) -> None:
    model, tokenizer = ready(family, tiny_checkpoint(family))
    words = [word for tokens, _ in ROWS for word in tokens] * 3
    tags = [tag for _, tags in ROWS for tag in tags] * 3
    encoded = TASK.encode(rows_of([(words, tags), ROWS[0]]), tokenizer, max_length=10)
    rows = encoded.rows
    assert encoded.statistics.truncated == 0
    assert encoded.statistics.trained_tokens == len(words) + 5
    assert max(map(len, rows["input_ids"])) <= 10
    assert sum(row["row"] == 0 for row in rows) > 4
    read = [word for row in rows if row["row"] == 0 for word in row["words"]]
    assert sorted(read) == list(range(len(words)))
    scores = evaluate(model, TASK, rows, TASK.collator(tokenizer), batch_size=3).scores
    from peftlab.tasks.tagging.tag_rows import TagRows

    joined = TagRows.joined(scores)
    assert [TASK.tags[i] for i in joined.labels[0]] == tags
    (answer,) = TASK.predict(model, tokenizer, [{"tokens": words}], max_length=10, batch_size=2)
    assert answer["tags"] == [TASK.tags[i] for i in joined.predictions[0]]


def test_answers_stand_in_the_text(tiny_checkpoint: Any) -> None:
    model, tokenizer = ready("bert", tiny_checkpoint("bert"))
    text = " little  girl\tloved the film "
    answer, same = TASK.predict(
        model, tokenizer, [{"tokens": text}, {"tokens": text.split()}], max_length=16, batch_size=2
    )
    assert answer["tags"] == same["tags"]
    assert json.loads(json.dumps(answer)) == answer
    for entity in answer["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert 0 < entity["score"] <= 1
    made = {"entities": [{"text": "Ada", "type": "who", "score": 0.9123}]}
    assert TASK.answer_text(made) == "Ada (who 0.912)"
    assert TASK.answer_text({"entities": []}) == "no entities"


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_twenty_steps_halve_the_loss(family: str, tiny_checkpoint: Any) -> None:
    model, tokenizer = ready(family, tiny_checkpoint(family))
    eight = (ROWS * 3)[:8]
    batch = TASK.collator(tokenizer)(
        list(TASK.encode(rows_of(eight), tokenizer, max_length=16).rows)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        loss = TASK.loss_sum(model, batch) / TASK.count_items(batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def write(
    folder: Path, rows: list[dict[str, Any]], names: tuple[str, ...] = ("train", "test")
) -> Path:
    for name in names:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


GOOD = [{"tokens": t, "tags": g} for t, g in ROWS]


def test_what_the_data_says(tmp_path: Path) -> None:
    splits = load_splits(str(write(tmp_path, GOOD)), **READS, validation=0)
    task = TokenClassification.from_splits(splits, OPTIONS)
    assert task.prefixed
    assert set(task.tags) == set(TASK.tags)
    assert TokenClassification.from_state(json.loads(json.dumps(task.state()))) == task
    scores = task.untuned(splits)
    assert scores is not None
    result = task.metrics(scores)
    assert (result["f1"], result["recall"]) == (0, 0)
    assert result["accuracy"] == pytest.approx(7 / 13)
    shares = {"O": 7, "B-who": 3, "I-who": 1, "B-what": 2}
    expected = -sum(n * np.log(n / 13) for n in shares.values()) / 13
    assert result["loss"] == pytest.approx(expected)
    weighted = TokenClassification.options(
        name="token-classification", class_weights="balanced", scheme="plain"
    )
    heavy = TokenClassification.from_splits(splits, weighted)
    assert not heavy.prefixed
    assert heavy.weights is not None
    assert heavy.weights[heavy.tags.index("I-who")] == pytest.approx(13 / 4)
    assert "f1/B-who" in heavy.greater_is_better


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "ragged": ([*GOOD, {"tokens": ["a", "b"], "tags": ["O"]}], r"2 tokens .* but 1 tags"),
    "an empty word": ([*GOOD, {"tokens": ["a", ""], "tags": ["O", "O"]}], "empty text"),
    "no words": ([*GOOD, {"tokens": [], "tags": []}], "empty list"),
    "a word that is a number": ([*GOOD, {"tokens": [3], "tags": ["O"]}], "list of text"),
    "no tags": ([*GOOD, {"tokens": ["a"], "tags": None}], "tags"),
    "one tag throughout": ([{"tokens": ["a"], "tags": ["O"]}] * 3, "two different"),
    "prefixes in part": ([*GOOD, {"tokens": ["a"], "tags": ["WHO"]}], "'WHO' has no prefix"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_refused(case: str, tmp_path: Path) -> None:
    rows, message = BAD[case]
    with pytest.raises(DataError, match=message) as error:
        TokenClassification.from_splits(
            load_splits(str(write(tmp_path, rows)), **READS, validation=0), OPTIONS
        )
    assert len(str(error.value).splitlines()) <= 3


def test_other_refusals(tiny_checkpoint: Any, tmp_path: Path) -> None:
    model, tokenizer = ready("bert", tiny_checkpoint("bert"))
    with pytest.raises(DataError, match=r"tag 'B-when' is unknown; the task has O, B-who"):
        TASK.encode(rows_of([(["a"], ["B-when"])]), tokenizer, max_length=8)
    with pytest.raises(ConfigError, match="max_length is 2, but each row has 2 special tokens"):
        TASK.encode(rows_of(), tokenizer, max_length=2)
    with pytest.raises(ConfigError, match=r"task\.stride is 8"):
        TokenClassification(TASK.tags, True, stride=8).encode(rows_of(), tokenizer, max_length=10)
    with pytest.raises(ConfigError, match=r"data\.packing"):
        TASK.encode(rows_of(), tokenizer, max_length=8, packing=True)
    for row in ({"text": " "}, {"tokens": []}, {"tokens": ["a", " "]}, {"words": "a"}):
        with pytest.raises(DataError, match="row 1 to predict has no 'tokens'"):
            TASK.predict(model, tokenizer, [row], max_length=8, batch_size=1)
    with pytest.raises(ConfigError, match=r"metric 'bleu' is unknown.*f1, precision"):
        TASK.interval(evaluate(model, TASK, TASK.encode(rows_of(), tokenizer, max_length=16).rows,
                               TASK.collator(tokenizer), batch_size=4).scores, "bleu")  # fmt: skip
    splits = load_splits(str(write(tmp_path, GOOD)), **READS, validation=0)
    weights = TokenClassification.options(
        name="token-classification", class_weights={"B-whoo": 2.0}
    )
    with pytest.raises(ConfigError, match="did you mean B-who"):
        TokenClassification.from_splits(splits, weights)
