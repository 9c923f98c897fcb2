from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from peftlab.data.loading import load_splits
from peftlab.errors import CheckFailed, ConfigError, DataError
from peftlab.evaluation import evaluate
from peftlab.tasks.answering.answer_spans import ranked_questions
from peftlab.tasks.answering.question_answering import QuestionAnswering
from peftlab.tasks.answering.question_windows import QuestionFrame

datasets = pytest.importorskip("datasets")

OPTIONS = QuestionAnswering.options(name="question-answering")
READS: dict[str, Any] = {"formats": OPTIONS.formats, "roles": OPTIONS.roles}
TASK = QuestionAnswering()


def row(question: str, context: str, *answers: str) -> dict[str, Any]:
    starts = [context.index(answer) for answer in answers]
    return {
        "id": question, "question": question, "context": context,
        "answers": {"text": list(answers), "answer_start": starts},
    }  # fmt: skip


ROWS = [
    row("it loved", "the little girl loved a cat", "little girl", "girl"),
    row("dog food", "it was a good story book", *()),
    row("place", "the film was dull , the phone cheap .", "phone"),
]


def rows_of(rows: list[dict[str, Any]] = ROWS) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


def ready(family: str, place: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(place)
    return model.eval(), tokenizer


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_a_batch_is_the_sum_of_its_windows(family: str, tiny_checkpoint: Any) -> None:
    model, tokenizer = ready(family, tiny_checkpoint(family))
    encoded = TASK.encode(rows_of(), tokenizer, max_length=32).rows
    collate = TASK.collator(tokenizer)
    batch = collate(list(encoded))
    assert TASK.count_items(batch) == 3
    whole = TASK.loss_sum(model, batch)
    single = [TASK.loss_sum(model, collate([one])) for one in encoded]
    torch.testing.assert_close(whole, torch.stack(single).sum(), rtol=1e-4, atol=1e-4)
    first = collate([encoded[0]])
    targets = {f"{end}_positions": first[f"{end}_positions"] for end in ("start", "end")}
    own = model(**TASK.model_inputs(first), **targets).loss
    torch.testing.assert_close(single[0], own, rtol=1e-4, atol=1e-4)
    result = evaluate(model, TASK, encoded, collate, batch_size=2)
    assert result.metrics["loss"] == pytest.approx(float(whole.detach()) / 3, rel=1e-4)
    assert set(result.metrics) == set(TASK.greater_is_better)
    for metric, value in result.metrics.items():
        low, high = TASK.interval(result.scores, metric)
        assert low <= value <= high


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_targets_are_the_answers_or_the_null_position(family: str, tiny_checkpoint: Any) -> None:
    _, tokenizer = ready(family, tiny_checkpoint(family))
    encoded = TASK.encode(rows_of(), tokenizer, max_length=32).rows
    shown = [TASK.preview(one, tokenizer)["answer"] for one in encoded]
    assert shown == ["little girl", "(none here)", "phone"]
    none = encoded[1]
    null = 0 if family == "bert" else len(none["input_ids"]) - 1
    assert none["null"] == none["start_positions"] == none["end_positions"] == null
    if family == "bert":
        assert none["input_ids"][0] == tokenizer.cls_token_id
        pair = tokenizer(ROWS[1]["question"], ROWS[1]["context"])
        assert none["input_ids"] == pair["input_ids"]
    else:
        assert none["input_ids"][-1] == tokenizer.eos_token_id
    for one in encoded:  # nothing but the context has characters
        characters = zip(one["char_starts"], one["char_ends"], strict=True)
        inside = [i for i, (start, end) in enumerate(characters) if end > start]
        assert inside == list(range(inside[0], inside[-1] + 1))
        assert one["null"] not in inside


def test_token_types_tell_question_and_context_apart(minilm: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    question, context = "Who came [SEP] first?", "Zoë's naïve dog."
    encoded = TASK.encode(rows_of([row(question, context, "naïve dog")]), tokenizer, max_length=32)
    pair = tokenizer(question, context, split_special_tokens=True)
    assert encoded.rows[0]["input_ids"] == pair["input_ids"]
    assert encoded.rows[0]["token_type_ids"] == pair["token_type_ids"]
    assert TASK.preview(encoded.rows[0], tokenizer)["answer"] == "naive dog"


def test_windows_of_a_long_context(tiny_checkpoint: Any) -> None:
    model, tokenizer = ready("bert", tiny_checkpoint("bert"))
    context = "it was a very good film . " * 8 + "the phone was cheap . " + "it was dull . " * 9
    long = row("the phone", context, "cheap")
    encoded = TASK.encode(rows_of([ROWS[0], long, ROWS[1]]), tokenizer, max_length=24)
    rows = list(encoded.rows)
    assert max(len(one["input_ids"]) for one in rows) == 24
    assert encoded.statistics.truncated == 0
    own = [one for one in rows if one["row"] == 1]
    assert len(own) > 5
    assert [one["context"] for one in own] == [context] + [""] * (len(own) - 1)
    owned = [
        place for one in own for place, mine in zip(one["char_starts"], one["owned"], strict=True)
        if mine
    ]  # fmt: skip
    assert owned == sorted(set(owned))  # each token once
    assert len(owned) == len(tokenizer(context, add_special_tokens=False)["input_ids"])
    answered = [TASK.preview(one, tokenizer)["answer"] for one in own]
    assert set(answered) == {"cheap", "(none here)"}
    scores = evaluate(model, TASK, encoded.rows, TASK.collator(tokenizer), batch_size=4).scores
    ranked, true = ranked_questions(scores, n_best=20)
    assert [question.context for question in ranked] == [
        r["context"] for r in (ROWS[0], long, ROWS[1])
    ]
    assert true == [["little girl", "girl"], ["cheap"], []]
    (answer,) = TASK.predict(
        model, tokenizer, [{"question": long["question"], "context": context}], max_length=24,
        batch_size=3,
    )  # fmt: skip
    assert [(a["start"], a["end"]) for a in answer["n_best"]] == [
        (start, end) for _, start, end in ranked[1].candidates
    ]
    for one in answer["n_best"]:
        assert context[one["start"] : one["end"]] == one["text"]
        assert len(one["text"].split()) <= 30
    assert json.loads(json.dumps(answer)) == answer


def test_a_long_question_is_cut_and_counted(tiny_checkpoint: Any) -> None:
    _, tokenizer = ready("bert", tiny_checkpoint("bert"))
    long = {**ROWS[0], "question": "the film was good " * 10}
    encoded = TASK.encode(rows_of([long, ROWS[1]]), tokenizer, max_length=24)
    assert encoded.statistics.truncated == 1
    assert max(map(len, encoded.rows["input_ids"])) <= 24


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
def test_twenty_steps_halve_the_loss(family: str, tiny_checkpoint: Any) -> None:
    model, tokenizer = ready(family, tiny_checkpoint(family))
    encoded = TASK.encode(rows_of((ROWS * 3)[:8]), tokenizer, max_length=32).rows
    batch = TASK.collator(tokenizer)(list(encoded))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        loss = TASK.loss_sum(model, batch) / TASK.count_items(batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_the_threshold_is_chosen_on_scores(tiny_checkpoint: Any) -> None:
    model, tokenizer = ready("bert", tiny_checkpoint("bert"))
    encoded = TASK.encode(rows_of(ROWS * 2), tokenizer, max_length=32).rows
    scores = evaluate(model, TASK, encoded, TASK.collator(tokenizer), batch_size=4).scores
    tuned = TASK.with_threshold(scores)
    assert tuned.chosen
    assert tuned.metrics(scores)["f1"] >= TASK.metrics(scores)["f1"]
    assert QuestionAnswering.from_state(json.loads(json.dumps(tuned.state()))) == tuned
    assert tuned.as_from_splits() == TASK
    fixed = QuestionAnswering(threshold=2.5)
    assert fixed.with_threshold(scores) == fixed == fixed.as_from_splits()
    never = QuestionAnswering(threshold=-1e9).metrics(scores)
    assert (never["no_answer_f1"], never["has_answer_f1"]) == (1, 0)
    answerable = TASK.encode(rows_of([ROWS[0], ROWS[2]]), tokenizer, max_length=32).rows
    scores = evaluate(model, TASK, answerable, TASK.collator(tokenizer), batch_size=4).scores
    assert TASK.with_threshold(scores) == TASK
    assert "no_answer_f1" not in TASK.metrics(scores)


def test_a_question_and_its_context_in_one_text() -> None:
    assert TASK.input_row("Who came? Rollo came.") == {
        "question": "Who came?",
        "context": "Rollo came.",
    }
    earlier = [({"question": "Who came?", "context": "Rollo came."}, {"answer": "Rollo"})]
    assert TASK.input_row("Did he go?", earlier)["context"] == "Rollo came."
    assert TASK.input_row("Did he go?") == {"question": "Did he go?"}
    assert TASK.answer_text({"answer": "Rollo", "score": 0.9123}) == "Rollo (0.912)"
    assert TASK.answer_text({"answer": "", "no_answer": 0.8}) == "(no answer, 0.8)"


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def test_what_the_data_says(tmp_path: Path) -> None:
    splits = load_splits(str(write(tmp_path, ROWS)), **READS, validation=0)
    task = QuestionAnswering.from_splits(splits, OPTIONS)
    assert task == TASK
    scores = task.untuned(splits)
    assert scores is not None
    result = task.metrics(scores)
    assert (result["f1"], result["has_answer_f1"], result["no_answer_f1"]) == (
        pytest.approx(1 / 3),
        0,
        1,
    )
    assert result["loss"] == pytest.approx(np.mean(np.log([7, 7, 10])))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an answer not in the context": (
        {**ROWS[0], "answers": {"text": ["Rollo"], "answer_start": [0]}}, "not in the context"),
    "a wrong start": (
        {**ROWS[0], "answers": {"text": ["girl"], "answer_start": [3]}}, "it is at 11"),
    "a start before the text": (
        {**ROWS[0], "answers": {"text": ["girl"], "answer_start": [-4]}}, "answer_start -4"),
    "texts without starts": (
        {**ROWS[0], "answers": {"text": ["girl"], "answer_start": []}}, "1 texts but 0 starts"),
    "an empty answer": (
        {**ROWS[0], "answers": {"text": [""], "answer_start": [0]}}, "answer without text"),
    "a start that is text": (
        {**ROWS[0], "answers": {"text": ["girl"], "answer_start": ["11"]}}, "not an integer"),
    "an empty question": ({**ROWS[0], "question": " "}, "question"),
    "an empty context": ({**ROWS[0], "context": ""}, "context"),
    "no context": ({k: v for k, v in ROWS[0].items() if k != "context"}, "context"),
    "impossible, but answered": ({**ROWS[0], "is_impossible": True}, "is_impossible, but has"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_refused(case: str, tmp_path: Path) -> None:
    bad, message = BAD[case]
    rows = [{**one, **({"is_impossible": False} if "is_impossible" in bad else {})} for one in ROWS]
    with pytest.raises(DataError, match=message):
        load_splits(str(write(tmp_path, [*rows, bad])), **READS, validation=0)


def test_other_refusals(tiny_checkpoint: Any, minilm: Path) -> None:
    model, tokenizer = ready("bert", tiny_checkpoint("bert"))
    for incomplete in ({"question": "it?"}, {"context": "it"}, {"question": " ", "context": "it"}):
        with pytest.raises(DataError, match=r"row 1 to predict has no '(context|question)'"):
            TASK.predict(model, tokenizer, [incomplete], max_length=32, batch_size=1)
    with pytest.raises(ConfigError, match=r"max_length is 10, .* raise it to 19"):
        TASK.encode(rows_of(), tokenizer, max_length=10)
    with pytest.raises(ConfigError, match=r"task\.stride is 200"):
        QuestionAnswering(stride=200).encode(rows_of(), tokenizer, max_length=32)
    with pytest.raises(ConfigError, match=r"data\.packing"):
        TASK.encode(rows_of(), tokenizer, max_length=32, packing=True)
    spoken = transformers.AutoTokenizer.from_pretrained(minilm)
    with pytest.raises(DataError, match="no token for the context"):
        TASK.encode(rows_of([{**ROWS[1], "context": "\u200b\u200b "}]), spoken, max_length=32)
    _, endless = ready("gpt2", tiny_checkpoint("gpt2"))
    endless.eos_token = None
    with pytest.raises(CheckFailed, match="neither a leading classification token"):
        QuestionFrame.of(endless)
