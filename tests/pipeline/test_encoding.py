"""Rows that the encoding refuses: named by file and line, or left out, through every command."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import peftlab
from peftlab.errors import DataError
from tests.checkpoints import write_checkpoint
from tests.tasks.language.chat.tokenizers import tokenizer_of

ASK, SAY = {"role": "user", "content": "name"}, {"role": "assistant", "content": "a dog"}
SYSTEM = {"role": "system", "content": "Be brief."}


def talk(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


GOOD, ALTERNATES, REFUSED = talk(ASK, SAY), talk(ASK, ASK, SAY), talk(SYSTEM, ASK, SAY)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose chat template refuses system turns, and roles that do not alternate."""
    folder = tmp_path_factory.mktemp("gemma")
    write_checkpoint(folder, "llama", "causal", vocab_size=400, max_position_embeddings=256)
    tokenizer_of("gemma").save_pretrained(folder)
    return folder


Configure = Callable[..., dict[str, Any]]


@pytest.fixture
def config_of(gemma: Path, tmp_path: Path) -> Configure:
    def configure(rows: list[Any], **data: Any) -> dict[str, Any]:
        lines = "\n\n".join(json.dumps(row) for row in rows)  # rows stand on every other line
        (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
        return {
            "model": {"name": str(gemma)}, "task": "causal-lm",
            "data": {"source": str(tmp_path / "rows.jsonl"), **data},
            "method": {"name": "lora", "r": 2},
            "train": {"max_steps": 1, "global_batch_size": 4, "save_every": "never"},
            "output": {"dir": str(tmp_path / "run"), "plots": False},
        }  # fmt: skip

    return configure


ROWS = [GOOD, GOOD, REFUSED, GOOD, ALTERNATES, *[GOOD] * 6, REFUSED]


def test_rows_are_named_by_the_line_of_the_file_with_advice(
    config_of: Configure, tmp_path: Path
) -> None:
    config = config_of(ROWS, splits={"validation": None})
    with pytest.raises(DataError) as stopped:
        peftlab.plan(config)
    first, second, last = str(stopped.value).splitlines()
    file = tmp_path / "rows.jsonl"
    assert first.startswith(f"{file}:5, {file}:23: the chat template refuses turns of system")
    assert "System role not supported; put the instruction into the first user turn" in first
    assert second.startswith(f"{file}:9: the chat template refuses turns of user, user")
    assert second.endswith("or give another template (task.chat_template=FILE).")
    assert last.startswith("data.on_bad_rows=drop leaves such rows out")


def test_a_drawn_split_names_the_lines_of_its_source(config_of: Configure, tmp_path: Path) -> None:
    config = config_of([GOOD] * 8 + [REFUSED], splits={"validation": 0.3})
    with pytest.raises(DataError, match=rf"{tmp_path}/rows\.jsonl:17: the chat template"):
        peftlab.plan(config)


def test_they_are_left_out_counted_and_listed(
    config_of: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(ROWS, on_bad_rows="drop", splits={"validation": None})
    with caplog.at_level(logging.WARNING, "peftlab"):
        planned = peftlab.plan(config)
    assert "train: 3 of 12 rows are left out (data.on_bad_rows=drop): 2 x the chat" in caplog.text
    assert planned.data["train"].rows == 9
    (counts,) = planned.dropped.values()
    assert sorted(counts.values()) == [1, 2]
    assert planned.to_json()["dropped"] == planned.dropped

    run = peftlab.train(config)
    lines = (run.folder / "dropped_rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["location"].rsplit(":")[-1] for row in rows] == ["5", "9", "23"]
    assert {row["split"] for row in rows} == {"train"}
    assert rows[0]["row"]["messages"] == json.dumps(REFUSED["messages"])
    assert run.record["dropped"] == planned.dropped
    assert run.config.data.on_bad_rows == "drop"
    assert peftlab.load_run(run.folder).evaluate("train").keys() > {"loss"}


def test_where_none_would_be_left(config_of: Configure) -> None:
    config = config_of([REFUSED] * 4, on_bad_rows="drop", splits={"validation": None})
    with pytest.raises(DataError, match=r"train: every row is bad, and none would be left:\n.*:1"):
        peftlab.plan(config)


def test_the_commands_show_what_is_left_out(config_of: Configure, tmp_path: Path, cli: Any) -> None:
    config = config_of(ROWS, on_bad_rows="drop", splits={"validation": None})
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    for command in ("plan", "data"):
        shown = cli(command, tmp_path / "run.yaml").out
        assert "Rows left out" in shown
        assert "Conversation roles must alternate" in shown
