"""Relations: positions of markers, truncation, and F1 against its definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.errors import CheckFailed, ConfigError, DataError
from peftlab.tasks.classification.entity_markers import Markers
from peftlab.tasks.classification.relation_metrics import RelationLabels, none_of

LABELS = ("Other", "Cause(e1,e2)", "Cause(e2,e1)", "Part(e1,e2)", "Part(e2,e1)", "Near")


class Vocabulary:
    """The part of a tokenizer that the choice of markers needs."""

    name_or_path = "made"
    unk_token_id = 0

    def __init__(self, *tokens: str) -> None:
        self._ids = {token: index for index, token in enumerate(("?", *tokens))}

    def get_vocab(self) -> dict[str, int]:
        return self._ids

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        names = {index: token for token, index in self._ids.items()}
        return [names.get(index) for index in ids]


def vocabulary(*tokens: str) -> Any:
    return Vocabulary(*tokens)


SPARE = Markers(("[1]", "[/1]", "[2]", "[/2]"), (1, 2, 3, 4), True)


def by_letters(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    return [ord(c) for c in text], [(at, at + 1) for at in range(len(text))]


def shown(row: list[int]) -> str:
    return "".join({1: "<", 2: ">", 3: "{", 4: "}"}.get(i) or chr(i) for i in row)


@pytest.mark.parametrize(
    ("tokens", "kind", "chosen", "spare"),
    [
        (["a", *(f"[unused{i}]" for i in range(6))], "auto", ["[unused0]", "[unused1]"], True),
        (
            [f"<extra_id_{i}>" for i in (3, 1, 0, 2)],
            "auto",
            ["<extra_id_0>", "<extra_id_1>"],
            False,
        ),
        (["[unused0]", "[unused1]", "@", "#"], "auto", ["@", "@"], False),
        (["[unused0]", "#", "*"], "auto", ["#", "#"], False),
        (["@", "#", *(f"[unused{i}]" for i in range(4))], "punctuation", ["@", "@"], False),
    ],
)
def test_markers_are_chosen(tokens: list[str], kind: Any, chosen: list[str], spare: bool) -> None:
    tokenizer = vocabulary(*tokens)
    result = Markers.of(tokenizer, kind)
    assert list(result.tokens[:2]) == chosen
    assert result.trained is spare
    assert len(result.ids) == 4
    result.check(tokenizer)
    assert Markers.from_state(result.state()) == result
    with pytest.raises(CheckFailed, match="for these ids"):
        result.check(vocabulary("moved", *tokens))


def test_no_markers_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"has 1 spare tokens.*set it to punctuation"):
        Markers.of(vocabulary("[unused0]", "@", "#"), "spare")
    with pytest.raises(ConfigError, match="choose another model"):
        Markers.of(vocabulary("a", "@"), "auto")


@pytest.mark.parametrize(
    ("text", "head", "tail", "room", "expected"),
    [
        ("abcdefgh", (1, 3), (5, 6), 99, "a<bc>de{f}gh"),
        ("abcdefgh", (5, 6), (1, 3), 99, "a{bc}de<f>gh"),
        ("abcdefgh", (1, 3), (3, 4), 99, "a<bc>{d}efgh"),
        ("abcdefgh", (0, 1), (7, 8), 99, "<a>bcdefg{h}"),
        ("abcdefgh", (2, 3), (5, 6), 8, "<c>de{f}"),
        ("abcdefgh", (2, 3), (5, 6), 10, "b<c>de{f}g"),
        ("abcdefgh", (0, 1), (7, 8), 8, "<a>bg{h}"),
        ("abcdefgh", (0, 1), (7, 8), 6, "<a>{h}"),
    ],
)  # fmt: skip
def test_markers_enclose_entities_in_any_room(
    text: str, head: Any, tail: Any, room: int, expected: str
) -> None:
    row, starts = SPARE.around(*by_letters(text), (head, tail), room)
    assert shown(row) == expected
    assert len(row) <= room
    assert [row[at] for at in starts] == [1, 3]


def test_a_token_of_both_entities_gets_both_markers() -> None:
    row, starts = SPARE.around([7, 8, 9], [(0, 3), (3, 9), (9, 12)], ((3, 5), (6, 8)), 20)
    assert sorted(row[1:4]) == [1, 3, 8]
    assert [row[at] for at in starts] == [1, 3]
    assert row[0], row[-1] == (7, 9)


def test_entities_without_room_or_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="entities take 6 tokens"):
        SPARE.around(*by_letters("abcdefgh"), ((0, 3), (5, 8)), 9)
    with pytest.raises(DataError, match="no token for an entity"):
        SPARE.around([1], [(0, 1)], ((0, 1), (2, 3)), 9)


def scores(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "label": np.array([LABELS.index(a) for a, _ in pairs]),
        "prediction": np.array([LABELS.index(b) for _, b in pairs]),
        "loss": np.zeros(len(pairs)),
    }


def by_the_scorer(pairs: list[tuple[str, str]]) -> tuple[float, float]:
    """Macro and micro F1 as the task's scorer defines them, relation by relation."""
    relations = ("Cause", "Part", "Near")
    f1, sums = [], [0, 0, 0]
    for relation in relations:
        right = sum(a == b and a.startswith(relation) for a, b in pairs)
        answered = sum(b.startswith(relation) for _, b in pairs)
        there = sum(a.startswith(relation) for a, _ in pairs)
        precision = right / answered if answered else 0.0
        recall = right / there if there else 0.0
        total = precision + recall
        f1.append(2 * precision * recall / total if total else 0.0)
        sums = [s + n for s, n in zip(sums, (right, answered, there), strict=True)]
    either = sums[1] + sums[2]
    return sum(f1) / len(f1), 2 * sums[0] / either if either else 0.0


CASES: dict[str, list[tuple[str, str]]] = {
    "all right": [(name, name) for name in LABELS],
    "directions swapped": [("Cause(e1,e2)", "Cause(e2,e1)"), ("Part(e1,e2)", "Part(e1,e2)")],
    "all Other": [("Other", "Other")] * 3,
    "Other answered by a relation": [("Other", "Near"), ("Near", "Near")],
    "a relation answered by Other": [("Near", "Other"), ("Near", "Near")],
    "one relation for another": [("Cause(e1,e2)", "Part(e1,e2)"), ("Near", "Cause(e2,e1)")],
}


@pytest.mark.parametrize("case", [*CASES, *range(5)])
def test_f1_is_the_official_scorers(case: Any) -> None:
    if isinstance(case, int):
        draw = np.random.default_rng(case).integers(len(LABELS), size=(37, 2))
        pairs = [(LABELS[a], LABELS[b]) for a, b in draw]
    else:
        pairs = CASES[case]
    problem = RelationLabels(LABELS, None, "Other")
    result = problem.metrics(scores(pairs))
    macro, micro = by_the_scorer(pairs)
    assert result["f1_macro"] == pytest.approx(macro)
    assert result["f1_micro"] == pytest.approx(micro)
    assert result["accuracy"] == pytest.approx(np.mean([a == b for a, b in pairs]))
    for metric in ("f1_macro", "f1_micro", "accuracy"):
        low, high = problem.interval(scores(pairs), metric)
        assert low - 1e-9 <= result[metric] <= high + 1e-9
        assert 0 <= low <= high <= 1


def test_without_directions_micro_f1_is_scikit_learns() -> None:
    from sklearn.metrics import f1_score

    names = ("no_relation", "a", "b")
    draw = np.random.default_rng(3).integers(3, size=(50, 2))
    given = {"label": draw[:, 0], "prediction": draw[:, 1], "loss": np.zeros(50)}
    result = RelationLabels(names, None, none_of("auto", names)).metrics(given)
    micro = f1_score(draw[:, 0], draw[:, 1], labels=[1, 2], average="micro")
    macro = f1_score(draw[:, 0], draw[:, 1], labels=[1, 2], average="macro")
    assert result["f1_micro"] == pytest.approx(micro)
    assert result["f1_macro"] == pytest.approx(macro)


def test_the_label_of_no_relation() -> None:
    assert none_of("auto", LABELS) == "Other"
    assert none_of("auto", ("x", "y")) is None
    assert none_of(None, LABELS) is None
    assert none_of("Near", LABELS) == "Near"
    with pytest.raises(ConfigError, match="'Far', which is not a label"):
        none_of("Far", LABELS)


def test_rows_from_tokens_and_from_tags_are_encoded_alike(
    tmp_path: Path, tiny_checkpoint: Any
) -> None:
    import json

    from peftlab.data.loading import load_splits
    from peftlab.model.loading import load_tokenizer
    from peftlab.tasks.classification.relation_extraction import RelationExtraction

    options = RelationExtraction.options(name="relation-extraction")
    tagged = [{"text": "the <e1>dog</e1> loved <e2>food</e2>", "label": "a"}] * 2
    tagged += [{"text": "the <e2>dog</e2> loved <e1>food</e1>", "label": "b"}] * 2
    tokens = ["the", "dog", "loved", "food"]
    spans = [{"tokens": tokens, "head": [1, 2], "tail": [3, 4], "label": "a"}] * 2
    spans += [{"tokens": tokens, "head": [3, 4], "tail": [1, 2], "label": "b"}] * 2
    result = []
    tokenizer = load_tokenizer(str(tiny_checkpoint("bert")))
    for name, rows in (("tagged", tagged), ("spans", spans)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        splits = load_splits(
            str(file), formats=options.formats, roles=options.roles, validation=0.0
        )
        task = RelationExtraction.from_splits(splits, options)
        task = task.attach(tokenizer, None)
        result.append(list(task.encode(splits.train, tokenizer, max_length=24).rows))
        assert task.from_state(task.state()).state() == task.state()
    assert result[0] == result[1]
