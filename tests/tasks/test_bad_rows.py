"""Rows that a task cannot learn from, and settings that contradict it: one readable message each.

Every mistake is one spoilt row among good ones, or one key; `plan` and `train` say the same, and
nothing is left behind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from peftlab.config.tasks.options import TASKS

DATA, CONFIG = 3, 2
"""Exit codes: data that cannot be used, and a configuration that cannot be met."""


@dataclass(frozen=True)
class Good:
    """A task, the tiny checkpoint that it would train, and rows that it can learn from."""

    task: Any
    family: str
    kind: str
    rows: list[dict[str, Any]]
    data: dict[str, Any] = field(default_factory=dict)


def squad(number: int) -> dict[str, Any]:
    context = f"the dog number {number} was happy . the cat was sad ."
    answers = {"text": ["the cat"], "answer_start": [context.index("the cat")]}
    return {"id": str(number), "question": "who was sad", "context": context, "answers": answers}


def chat(number: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"name a dog , number {number}"},
            {"role": "assistant", "content": "a happy dog"},
        ]
    }


def tagged(number: int) -> dict[str, Any]:
    return {"tokens": ["the", "dog", "was", str(number)], "ner_tags": ["O", "B-pet", "O", "O"]}


def related(number: int) -> dict[str, Any]:
    return {
        "text": f"the <e1>dog</e1> and the <e2>cat</e2> , number {number}",
        "label": ("friends", "Other")[number % 2],
    }


GOOD = {
    "text-classification": Good(
        "text-classification", "bert", "classification",
        [{"text": f"a film {i}", "label": ("good", "bad")[i % 2]} for i in range(12)],
    ),
    "causal-lm": Good(
        "causal-lm", "llama", "causal",
        [{"prompt": f"number {i}", "completion": " a dog"} for i in range(12)],
    ),
    "chat": Good("causal-lm", "llama", "causal", [chat(i) for i in range(12)]),
    "token-classification": Good(
        "token-classification", "bert", "classification", [tagged(i) for i in range(12)]
    ),
    "question-answering": Good(
        "question-answering", "bert", "classification", [squad(i) for i in range(12)]
    ),
    "relation-extraction": Good(
        "relation-extraction", "bert", "classification", [related(i) for i in range(12)]
    ),
    "seq2seq": Good(
        "seq2seq", "t5", "seq2seq",
        [{"input": f"number {i}", "output": "a dog"} for i in range(12)],
    ),
}  # fmt: skip

SPOILT = 7
"""The row, counted from 0, that is replaced: line 8 of the file."""


@dataclass(frozen=True)
class Mistake:
    """A bad row or configuration, and the expected message."""

    task: str
    says: tuple[str, ...]
    row: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    labels: list[str] | None = None
    code: int = DATA


def row(task: str, *says: str, labels: list[str] | None = None, **values: Any) -> Mistake:
    """One row spoilt; the message must name its line."""
    return Mistake(task, ("rows.jsonl:8", *says), values, labels=labels)


def messages(*turns: Any) -> list[Any]:
    return [dict(zip(("role", "content"), t, strict=True)) if isinstance(t, tuple) else t
            for t in turns]  # fmt: skip


def answers(text: Any, start: Any) -> dict[str, Any]:
    return squad(7) | {"answers": {"text": text, "answer_start": start}}


MISTAKES = {
    "a number for a text": row(
        "text-classification", "column 'text' holds 3 (an integer)", text=3, label="good"
    ),
    "an object for a text": row(
        "text-classification", "flatten nested values", text={"a": "b"}, label="good"
    ),
    "an empty text": row("text-classification", "column 'text' is empty", text=" ", label="good"),
    "a label outside the map": row(
        "text-classification", "ugly", "labels.json", text="a film", label="ugly",
        labels=["good", "bad"],
    ),
    "a tag outside the map": row(
        "token-classification", "B-car", "labels.json", tokens=["a", "car"],
        ner_tags=["O", "B-car"], labels=["O", "B-pet", "I-pet"],
    ),
    "ragged tags": row(
        "token-classification", "2 tokens", "3 tags", tokens=["a", "dog"],
        ner_tags=["O", "B-pet", "O"],
    ),
    "a text for tokens": row(
        "token-classification", "not a list", tokens="a dog", ner_tags=["O", "B-pet"]
    ),
    "an empty token": row(
        "token-classification", "empty text in its list", tokens=["a", ""], ner_tags=["O", "O"]
    ),
    "no token at all": row("token-classification", "empty list", tokens=[], ner_tags=[]),
    "a null tag": row("token-classification", "ner_tags", tokens=["a"], ner_tags=[None]),
    "an answer that is not in the context": row(
        "question-answering", "the answer 'a horse'", "not in the context",
        **answers(["a horse"], [4]),
    ),
    "an answer that stands elsewhere": row(
        "question-answering", "not at answer_start 3", "it is at", **answers(["the cat"], [3])
    ),
    "more answers than starts": row(
        "question-answering", "2 texts but 1 starts", **answers(["the cat", "a"], [27])
    ),
    "an answer without text": row(
        "question-answering", "an answer without text", **answers([""], [3])
    ),
    "an answer to what has none": row(
        "question-answering", "is_impossible, but has the answer",
        **squad(7), is_impossible=True,
    ),
    "a question that is null": row(
        "question-answering", "column 'question' is null", **squad(7) | {"question": None}
    ),
    "spans that overlap": row(
        "relation-extraction", "overlap",
        text="the <e1>dog <e2>and</e1> the cat</e2>", label="friends",
    ),
    "a mark that is missing": row(
        "relation-extraction", "exactly once", text="the <e1>dog</e1> and the cat", label="Other"
    ),
    "a mark twice": row(
        "relation-extraction", "exactly once",
        text="<e1>a</e1> <e1>dog</e1> and <e2>cats</e2>", label="Other",
    ),
    "an empty entity": row(
        "relation-extraction", "the span of e1 is empty",
        text="the <e1></e1> and the <e2>cat</e2>", label="Other",
    ),
    "an unknown role": row(
        "chat", "turn 2", "unknown role 'robot'", "assistant",
        messages=messages(("user", "hello"), ("robot", "beep")),
    ),
    "an empty turn": row(
        "chat", "turn 1", "is empty", messages=messages(("user", " "), ("assistant", "a"))
    ),
    "a turn that is no object": row(
        "chat", "turn 1", "not an object with role and content",
        messages=messages("hello", ("assistant", "a")),
    ),
    "nobody answers": row("chat", "no assistant turn", messages=messages(("user", "hi"))),
    "a late system turn": row(
        "chat", "system turn", messages=messages(("user", "a"), ("system", "b"), ("assistant", "c"))
    ),
    "a tool": row(
        "chat", "tool_calls",
        messages=messages(
            ("user", "a"), {"role": "assistant", "content": "b", "tool_calls": [{"name": "c"}]}
        ),
    ),
    "no turn": row("chat", "no turn", messages=[]),
    "a completion that is null": row(
        "causal-lm", "column 'completion' is null", prompt="a", completion=None
    ),
    "a target that is empty": row("seq2seq", "column 'output' is empty", input="a", output=""),
    "a source that is a number": row("seq2seq", "column 'input' holds 3", input=3, output="a"),
    "another task's format": Mistake(
        "text-classification", ("data.format is 'squad'",), config={"data.format": "squad"},
        code=CONFIG,
    ),
    "another task's role": Mistake(
        "question-answering", ("data.columns.label is no role",),
        config={"data.columns": {"label": "x"}}, code=CONFIG,
    ),
    "another task's metric": Mistake(
        "token-classification", ("eval.best is 'rougeL'",), config={"eval.best": "rougeL"},
        code=CONFIG,
    ),
    "another task's key": Mistake(
        "relation-extraction", ("packing is read by task",), config={"data.packing": True},
        code=CONFIG,
    ),
    "an unknown option": Mistake(
        "question-answering", ("task.strid", "stride"),
        config={"task": {"name": "question-answering", "strid": 8}}, code=CONFIG,
    ),
    "columns of another kind of rows": Mistake(
        "token-classification", ("question",), config={"task": "question-answering"}
    ),
}  # fmt: skip


def spoil(mistake: Mistake, folder: Path, make: Any) -> tuple[Path, set[Path]]:
    good = GOOD[mistake.task]
    rows = [*good.rows]
    if mistake.row is not None:
        rows[SPOILT] = mistake.row
    (folder / "data").mkdir()
    file = folder / "data" / "rows.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    if mistake.labels is not None:
        (folder / "data" / "labels.json").write_text(json.dumps(mistake.labels))
    config: dict[str, Any] = {
        "model": {"name": str(make(good.family, good.kind))},
        "task": good.task,
        "data": {"source": str(file), **good.data},
        "method": {"name": "lora", "r": 2},
        "train": {"max_steps": 1},
        "output": {"dir": str(folder / "out" / "run")},
    }
    for path, value in mistake.config.items():
        *parents, last = path.split(".")
        section = config
        for key in parents:
            section = section.setdefault(key, {})
        section[last] = value
    written = folder / "run.yaml"
    written.write_text(json.dumps(config))
    return written, set(folder.rglob("*"))


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize("name", [n for n, m in MISTAKES.items() if m.task in TASKS])
def test_a_mistake_is_explained_and_leaves_nothing(
    name: str, command: str, tiny_checkpoint: Any, tmp_path: Path, capfd: Any
) -> None:
    from peftlab.cli import main

    mistake = MISTAKES[name]
    file, before = spoil(mistake, tmp_path, tiny_checkpoint)
    capfd.readouterr()
    code = main([command, str(file)])
    out, err = capfd.readouterr()
    assert code == mistake.code, err
    for words in mistake.says:
        assert words in err, err
    assert "Traceback" not in out + err
    assert 0 < len(err.strip().splitlines()) <= 12, err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("task", [task for task in GOOD if task in TASKS])
def test_the_good_rows_are_good(task: str, tiny_checkpoint: Any, tmp_path: Path) -> None:
    from peftlab.cli import main

    file, _ = spoil(Mistake(task, ()), tmp_path, tiny_checkpoint)
    assert main(["plan", str(file)]) == 0


def test_there_are_at_least_twenty_five() -> None:
    assert len(MISTAKES) >= 25
    assert {mistake.task for mistake in MISTAKES.values()} == GOOD.keys()
