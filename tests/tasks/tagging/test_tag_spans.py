from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from peftlab.errors import ConfigError, DataError
from peftlab.tasks.statistics import intervals
from peftlab.tasks.tagging.tag_spans import SpanCounts, has_spans, span_types, spans_of
from peftlab.tasks.tagging.word_pieces import Words, pieces_of_words, tagged_pieces
from peftlab.tasks.windows import owners, shared_tokens, windows

CASES: dict[str, tuple[list[list[str]], list[list[str]]]] = {
    "all right": ([["B-x", "I-x", "O"]], [["B-x", "I-x", "O"]]),
    "all O": ([["O", "O"]], [["O", "O"]]),
    "empty prediction": ([["B-x", "I-x", "O", "B-y"]], [["O", "O", "O", "O"]]),
    "nothing true": ([["O", "O", "O"]], [["B-x", "O", "I-y"]]),
    "a span cut short": ([["B-x", "I-x", "I-x"]], [["B-x", "I-x", "O"]]),
    "of another type": ([["B-x", "I-x", "O"]], [["B-y", "I-y", "O"]]),
    "a span within a span": ([["B-x", "I-x", "I-x", "I-x"]], [["O", "B-x", "I-x", "O"]]),
    "neighbours": ([["B-x", "B-x", "I-x"]], [["B-x", "I-x", "I-x"]]),
    "IOB1": ([["I-x", "I-x", "B-x", "O", "I-y"]], [["I-x", "I-x", "I-x", "O", "I-y"]]),
    "a type changes inside": ([["B-x", "I-x", "I-y"]], [["B-x", "I-y", "I-y"]]),
    "BIOES": ([["B-x", "I-x", "E-x", "S-y"]], [["B-x", "E-x", "O", "S-y"]]),
    "several rows": (
        [["B-x"], ["O", "B-y"], ["B-x", "I-x"]],
        [["B-x"], ["B-y", "O"], ["B-x", "O"]],
    ),
    "names with hyphens and letters of any kind": (
        [["B-creative-work", "I-creative-work", "B-größe"]],
        [["B-creative-work", "O", "B-größe"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_spans_count_as_in_seqeval(case: str) -> None:
    from seqeval.metrics import classification_report

    true, predicted = CASES[case]
    types = span_types([tag for row in true + predicted for tag in row], prefixed=True)
    result = SpanCounts.of(true, predicted, types, prefixed=True).metrics()
    if not types:
        assert result == {"f1": 0, "precision": 0, "recall": 0, "f1_macro": 0}
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(true, predicted, output_dict=True, zero_division=0)
    for name, key in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
        assert result[name] == pytest.approx(report["micro avg"][key]), name
    assert result["f1_macro"] == pytest.approx(report["macro avg"]["f1-score"])
    for kind in types:
        assert result[f"f1/{kind}"] == pytest.approx(report[kind]["f1-score"])


def test_bilou_reads_as_bioes_and_plain_tags_are_words() -> None:
    assert spans_of(["B-x", "L-x", "U-y", "O"], prefixed=True) == [("x", 0, 1), ("y", 2, 2)]
    assert spans_of(["N", "O", "N", "V"], prefixed=False) == [("N", 0, 0), ("N", 2, 2), ("V", 3, 3)]
    counts = SpanCounts.of([["N", "V", "O"]], [["N", "N", "V"]], ("N", "V"), prefixed=False)
    result = counts.metrics()
    assert (result["precision"], result["recall"]) == (pytest.approx(1 / 3), 0.5)


def test_schemes_are_told_apart() -> None:
    assert has_spans(["O", "B-x", "I-x"], "auto", "file")
    assert not has_spans(["DET", "NOUN"], "auto", "file")
    assert not has_spans(["B-x", "PER"], "plain", "file")
    with pytest.raises(DataError, match=r"file: tag 'PER' has no prefix .* as 'B-x' has"):
        has_spans(["O", "B-x", "PER"], "auto", "file")
    with pytest.raises(DataError, match="tag 'NOUN' has no prefix"):
        has_spans(["NOUN"], "spans", "file")
    with pytest.raises(DataError, match="tag 'B-' has no prefix"):
        has_spans(["B-", "B-x"], "auto", "file")


def test_resampled_metrics_with_every_row_once_are_the_metrics() -> None:
    true, predicted = CASES["several rows"]
    counts = SpanCounts.of(true, predicted, ("x", "y"), prefixed=True)
    once = np.ones((1, len(true)))
    for name, value in counts.metrics().items():
        assert counts.resampled(name, once)[0] == pytest.approx(value), name
    low, high = intervals.weighted_interval(3, lambda weights: counts.resampled("f1", weights))
    assert low <= counts.metrics()["f1"] <= high


def test_windows_cover_all_and_each_token_has_one_owner() -> None:
    assert windows(5, 8, 2) == [(0, 5)]
    assert windows(0, 8, 2) == [(0, 0)]
    spans = windows(20, 8, 3)
    assert spans == [(0, 8), (5, 13), (10, 18), (15, 20)]
    owner = owners(20, spans)
    assert len(owner) == 20
    for token, index in enumerate(owner.tolist()):
        start, end = spans[index]
        assert start <= token < end
    assert owner.tolist() == sorted(owner.tolist())
    assert owner[6] == 0  # one token to its right there; in the next one to its left
    assert shared_tokens("auto", 40, auto=4) == 10
    with pytest.raises(ConfigError, match=r"task\.stride is 8, .* room for 8"):
        shared_tokens(8, 8, auto=4)


def test_words_keep_their_places() -> None:
    words = Words.split("  Émile\tZola ,  Paris ")
    assert words.words == ("Émile", "Zola", ",", "Paris")
    assert [words.text[a:b] for a, b in words.places] == list(words.words)
    assert Words.joined(["a", "bc"]).places == ((0, 1), (2, 4))
    located = Words.located("O'Neil, O.", ["O", "'", "Neil", ",", "O", "."])
    assert located.places == ((0, 1), (1, 2), (2, 6), (6, 7), (8, 9), (9, 10))
    with pytest.raises(ValueError, match="substring not found"):
        Words.located("a b", ["b", "a"])


def test_the_piece_that_bears_a_tag() -> None:
    assert tagged_pieces([0, 0, 1, 3], 5, "first") == [0, 2, None, 3, None]
    assert tagged_pieces([0, 0, 1, 3], 5, "last") == [1, 2, None, 3, None]


@pytest.mark.parametrize("kind", ["minilm", "model_tinystories656k", "model_stories260k"])
def test_pieces_of_real_tokenizers(kind: str, shared_data: Any, request: Any) -> None:
    import transformers

    from peftlab.tasks.windows import frame_of

    place = request.getfixturevalue("minilm") if kind == "minilm" else shared_data / kind
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    words = ["Don't", "stop", "@Zoë", ":-)", "naïve", "[SEP]", "https://t.co/x"]
    ((ids, result), (empty, _)) = pieces_of_words(tokenizer, [words, []])
    assert (set(result), empty) == (set(range(len(words))), [])
    assert result == sorted(result)
    if kind == "minilm":
        whole = tokenizer(words, is_split_into_words=True, split_special_tokens=True)
        assert frame_of(tokenizer, pair=False).around(ids)["input_ids"] == whole["input_ids"]
        assert result == [word for word in whole.word_ids() if word is not None]
    if kind == "model_stories260k":
        plain = ["Once", "upon", "a", "time"]
        ((ids, _),) = pieces_of_words(tokenizer, [plain])
        assert ids == tokenizer(" ".join(plain), add_special_tokens=False)["input_ids"]


def test_a_byte_tokenizer_reads_words_as_in_running_text() -> None:
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["it is a film , is it"] * 9, vocab_size=300, show_progress=False)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer)
    ((ids, result),) = pieces_of_words(tokenizer, [["it", "is", "a", "日", "film"]])
    assert ids == tokenizer("it is a 日 film")["input_ids"]
    assert result[0] == 0
    assert result[1] == 1
    assert result[-1] == 4


@pytest.mark.parametrize("tag", ["0", "none", "Outside", "_"])
def test_another_word_for_no_entity_is_asked_about(tag: str) -> None:
    for others in (["PER", "LOC"], ["B-PER", "I-PER"]):
        with pytest.raises(
            DataError, match=rf"does the tag '{tag}' mean no entity\? Write it as O"
        ):
            has_spans([tag, *others], "auto", "file")
    assert not has_spans([tag, "PER"], "plain", "file")
    assert not has_spans(["O", "PER", "none"], "auto", "file")
