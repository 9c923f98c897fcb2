from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.metrics import f1_score

from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from peftlab.errors import CheckFailed, ConfigError, DataError
from peftlab.tasks.classification.label_problems import SingleLabel
from peftlab.tasks.classification.text_classification import TextClassification
from peftlab.tasks.encoding import check_truncation
from peftlab.tasks.registry import task_class
from peftlab.tasks.statistics import intervals

datasets = pytest.importorskip("datasets")

OPTIONS = TextClassification.options(name="text-classification")
READS: dict[str, Any] = {"formats": OPTIONS.formats, "roles": OPTIONS.roles}
TASK = TextClassification(SingleLabel(("neg", "pos", "so-so")))
NAMES = TASK.problem.label_names
WORDS = ["a", "good", "bad", "film", "very", "and", "long"]


def tokenizer_of(kind: str) -> Any:
    """A word tokeniser with the special tokens of BERT, T5 or GPT."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<pad>", "[UNK]", "[CLS]", "[SEP]", "</s>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS, "<", "/", "s", ">"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    if kind == "bert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )  # fmt: skip
    if kind == "t5":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 4)]
        )
    named = ["input_ids", "token_type_ids", "attention_mask"]
    ends: dict[str, Any] = {"model_input_names": named} if kind == "bert" else {"eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="[UNK]", **ends
    )


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    common = {"vocab_size": 40, **TASK.head().config}
    configs: dict[str, Any] = {
        "bert": lambda: transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            **common,
        ),
        "t5": lambda: transformers.T5Config(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=4,
            decoder_start_token_id=0, **common,
        ),
        "llama": lambda: transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            pad_token_id=0, **common,
        ),
    }  # fmt: skip
    config = configs[kind]()
    return transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)


def rows_of(texts: list[str], pairs: list[str] | None = None) -> datasets.Dataset:
    labels = [NAMES[index % 3] for index in range(len(texts))]
    columns = {"text": texts, "label": labels}
    return datasets.Dataset.from_dict(columns | ({} if pairs is None else {"text_pair": pairs}))


TEXTS = ["a good film", "bad", "very very long and bad film"]


@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_a_batch_is_the_sum_of_its_rows(kind: str) -> None:
    model, tokenizer = model_of(kind).eval(), tokenizer_of(kind)
    encoded = TASK.encode(rows_of(TEXTS), tokenizer, max_length=16).rows
    collate = TASK.collator(tokenizer)
    assert "token_type_ids" not in encoded.column_names
    batch = collate(list(encoded))
    assert TASK.count_items(batch) == 3
    whole = TASK.loss_sum(model, batch)
    single = [TASK.loss_sum(model, collate([row])) for row in encoded]
    torch.testing.assert_close(whole, torch.stack(single).sum(), rtol=1e-5, atol=1e-5)
    own = model(**batch).loss * 3
    torch.testing.assert_close(whole, own)
    scores = TASK.score(model, batch)
    np.testing.assert_allclose(scores["loss"], [float(x.detach()) for x in single], rtol=1e-4)
    assert scores["label"].tolist() == [0, 1, 2]


def test_sentence_pairs_keep_their_token_types() -> None:
    task = TextClassification(TASK.problem, pairs=True)
    rows = rows_of(["a good film", "bad", "a"], ["long", "very long film", "film"])
    encoded = task.encode(rows, tokenizer_of("bert"), max_length=16).rows
    assert encoded[0]["input_ids"] == [2, 5, 6, 8, 3, 11, 3]
    assert encoded[0]["token_type_ids"] == [0, 0, 0, 0, 0, 1, 1]
    cut = task.encode(rows, tokenizer_of("bert"), max_length=6)
    assert max(map(len, cut.rows["input_ids"])) == 6
    assert cut.statistics.truncated == 2


def test_t5_reads_its_answer_at_one_end_in_every_row() -> None:
    """A text that spells </s> out, and one that is cut, still end in the one </s>."""
    tokenizer, model = tokenizer_of("t5"), model_of("t5").eval()
    texts = ["a good film", "bad </s> film </s>", "very " * 30, "</s> " * 20]
    encoded = TASK.encode(rows_of(texts), tokenizer, max_length=8).rows
    for row in encoded:
        assert row["input_ids"].count(4) == 1
        assert row["input_ids"][-1] == 4
        assert len(row["input_ids"]) <= 8
    loss = TASK.loss_sum(model, TASK.collator(tokenizer)(list(encoded)))
    assert torch.isfinite(loss)
    pairs = TextClassification(TASK.problem, pairs=True)
    encoded = pairs.encode(rows_of(texts, texts[::-1]), tokenizer, max_length=12).rows
    assert [row["input_ids"].count(4) for row in encoded] == [2] * 4


def test_token_statistics(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["a"] * 18 + ["a " * 10, "a " * 40]
    encoded = TASK.encode(rows_of(texts), tokenizer_of("bert"), max_length=12)
    statistics = encoded.statistics
    assert (statistics.rows, statistics.truncated, statistics.trained_tokens) == (20, 1, 20)
    assert (statistics.p50, statistics.p95, statistics.longest) == (3, 42, 42)
    assert statistics.tokens == 18 * 3 + 12 + 12
    check_truncation(statistics, split="train", max_length=12, policy="warn")
    assert "train: 1 rows (5.0%) are longer than data.max_length=12" in caplog.text
    with pytest.raises(DataError, match=r"raise data\.max_length"):
        check_truncation(statistics, split="train", max_length=12, policy="error")
    caplog.clear()
    check_truncation(statistics, split="train", max_length=12, policy="silent")
    assert not caplog.text


def test_refusals() -> None:
    tokenizer = tokenizer_of("bert")
    with pytest.raises(ConfigError, match="packing"):
        TASK.encode(rows_of(TEXTS), tokenizer, max_length=8, packing=True)
    strange = datasets.Dataset.from_dict({"text": ["a"], "label": ["unheard of"]})
    with pytest.raises(DataError, match="'unheard of'"):
        TASK.encode(strange, tokenizer, max_length=8)
    with pytest.raises(DataError, match=r"row 2 .* no 'text'"):
        TASK.predict(model_of("bert"), tokenizer, [{"text": "a"}, {"txt": "b"}], max_length=8,
                     batch_size=2)  # fmt: skip
    tokenizer.pad_token = None
    with pytest.raises(CheckFailed, match="no padding token"):
        TASK.collator(tokenizer)


@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_predictions_are_what_the_model_says(kind: str) -> None:
    model, tokenizer = model_of(kind).train(), tokenizer_of(kind)
    rows = [{"text": text} for text in [*TEXTS, "very " * 30]]
    answers = TASK.predict(model, tokenizer, rows, max_length=8, batch_size=3)
    assert model.training
    again = TASK.predict(model, tokenizer, rows[2:], max_length=8, batch_size=1)
    assert [answer["label"] for answer in answers[2:]] == [answer["label"] for answer in again]
    for answer in answers:
        assert list(answer["probabilities"]) == ["neg", "pos", "so-so"]
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert answer["probability"] == max(answer["probabilities"].values())
    assert json.loads(json.dumps(answers)) == answers


def splits_of(tmp_path: Path) -> Splits:
    for name, counts in (("train", (6, 3, 1)), ("test", (2, 1, 1))):
        body = [f"t,{label}\n" for label, n in zip("abc", counts, strict=True) for _ in range(n)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(body))
    return load_splits(str(tmp_path), **READS, validation=0)


def test_untuned_is_the_majority_class(tmp_path: Path) -> None:
    splits = splits_of(tmp_path)
    task = TextClassification.from_splits(splits, OPTIONS)
    assert task.problem.label_names == ("a", "b", "c")
    assert TextClassification.from_state(json.loads(json.dumps(task.state()))) == task
    scores = task.untuned(splits)
    assert scores is not None
    known = task.metrics(scores)
    low, high = task.interval(scores, "accuracy")
    assert 0 < low < 0.5 < high < 1
    assert known["accuracy"] == 0.5
    assert known["f1_macro"] == pytest.approx(2 / 3 / 3)
    assert known["loss"] == pytest.approx(-(2 * np.log(0.6) + np.log(0.3) + np.log(0.1)) / 4)
    assert set(known) == set(task.greater_is_better)


def test_registry() -> None:
    assert task_class("text-classification") is TextClassification
    assert task_class("causal-lm").options.tag() == "causal-lm"
    with pytest.raises(ConfigError, match="text-clasification"):
        task_class("text-clasification")


def scores_of(rows: int, classes: int, right: float) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    label = generator.integers(classes, size=rows)
    other = generator.integers(classes, size=rows)
    prediction = np.where(generator.random(rows) < right, label, other)
    return {"label": label, "prediction": prediction, "loss": generator.random(rows)}


def test_intervals_are_right() -> None:
    scores = scores_of(2000, 4, 0.7)
    bounds = {metric: TASK.interval(scores, metric) for metric in TASK.greater_is_better}
    point = TASK.metrics(scores)
    for metric, (low, high) in bounds.items():
        assert low < point[metric] < high, metric
        assert TASK.interval(scores, metric) == (low, high)
    normal = 1.96 * np.sqrt(point["accuracy"] * (1 - point["accuracy"]) / 2000)
    low, high = bounds["accuracy"]
    assert high - low == pytest.approx(2 * normal, rel=0.1)
    with pytest.raises(ConfigError, match="bleu"):
        TASK.interval(scores, "bleu")


def test_wilsons_interval_keeps_its_width_where_all_is_right() -> None:
    # Newcombe 1998, table I: 81/263 gives 0.2553 to 0.3662; no failures in 20 gives 0.8389 to 1.
    assert intervals.share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert intervals.share_interval(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert intervals.share_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_macro_f1_of_resamples_is_scikit_learns() -> None:
    for scores in (scores_of(50, 3, 0.5), scores_of(7, 5, 0.2)):
        classes = int(1 + max(scores["label"].max(), scores["prediction"].max()))
        counts = intervals.confusion_counts(scores["label"], scores["prediction"], classes)
        expected = f1_score(scores["label"], scores["prediction"], average="macro", zero_division=0)
        assert intervals.f1_macro(*counts)[0] == pytest.approx(expected)


def test_row_bootstrap_agrees_with_wilsons_interval() -> None:
    scores = scores_of(400, 3, 0.6)
    right = (scores["label"] == scores["prediction"]).astype(float)
    by_rows = intervals.ratio_interval(right, np.ones(400))
    wilson = TASK.interval(scores, "accuracy")
    assert by_rows == pytest.approx(wilson, abs=0.01)


def test_real_sentences(minilm: Path, shared_data: Path) -> None:
    splits = load_splits(str(shared_data / "sst2"), **READS, max_eval_samples=48)
    task = TextClassification.from_splits(splits, OPTIONS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    encoded = task.encode(splits.get("validation"), tokenizer, max_length=64)
    assert encoded.statistics.truncated == 0
    assert 15 < encoded.statistics.p50 < 35
    text = tokenizer.decode(encoded.rows[0]["input_ids"], skip_special_tokens=True)
    assert text.split()[:2] == splits.get("validation")[0]["text"].split()[:2]
    known = task.untuned(splits)
    assert known is not None
    assert task.metrics(known)["accuracy"] == pytest.approx(0.5, abs=0.2)
