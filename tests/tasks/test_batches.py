"""Work on batches of rows, here and in forked processes."""

from __future__ import annotations

import json
import os
from typing import Any

import datasets
import pytest

from peftlab.errors import CheckFailed, DataError
from peftlab.tasks import batches
from peftlab.tasks.batches import of_batches
from peftlab.tasks.language.chat.encoding import encode_chats
from tests.tasks.language.chat.tokenizers import tokenizer_of


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH", 3)


ROWS = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(10)]})


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_order_with_their_first_index(processes: int) -> None:
    made = list(of_batches(ROWS, lambda rows, first: (first, rows["text"]), processes=processes))
    assert [first for first, _ in made] == [0, 3, 6, 9]
    assert [text for _, texts in made for text in texts] == ROWS["text"][:]


def test_two_processes_are_two_others() -> None:
    pids = set(of_batches(ROWS, lambda rows, first: os.getpid(), processes=2))
    assert os.getpid() not in pids
    assert {os.getpid()} == set(of_batches(ROWS, lambda rows, first: os.getpid(), processes=1))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_work_is_raised(processes: int) -> None:
    def work(rows: dict[str, list[Any]], first: int) -> None:
        if first == 6:
            raise DataError(f"row {first} is bad")

    with pytest.raises(DataError, match=r"^row 6 is bad$"):
        list(of_batches(ROWS, work, processes=processes))


def test_a_process_that_dies_is_a_sentence() -> None:
    def work(rows: dict[str, list[Any]], first: int) -> None:
        os._exit(9)

    with pytest.raises(CheckFailed, match="2 processes that encode the rows ended without"):
        list(of_batches(ROWS, work, processes=2))


def test_processes_are_as_many_as_rows_are_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    least = batches.ROWS_A_PROCESS
    wanted = {least - 1: 0, least: 1, 2 * least: 2, 100 * least: 4}
    assert {rows: batches._processes(rows) for rows in wanted} == wanted


def test_conversations_encoded_in_processes_are_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ids, labels, statistics and what is said, of rows that are whole, cut and dropped."""
    tokenizer = tokenizer_of("chatml")
    chats = [
        [{"role": "user", "content": "word " * (1 + 7 * (i % 4))},
         {"role": "assistant", "content": f"{i} is what it is"}]
        for i in range(20)
    ]  # fmt: skip
    rows = datasets.Dataset.from_dict({"messages": [json.dumps(turns) for turns in chats]})
    made, said = [], []
    for cores in (1, 2):
        monkeypatch.setattr(batches, "ROWS_A_PROCESS", len(rows) // cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        caplog.clear()
        made.append(encode_chats(rows, tokenizer, 60, loss_on="completion", system=None))
        said.append(caplog.messages)
    here, there = made
    assert here.rows[:] == there.rows[:]
    assert here.statistics == there.statistics
    assert said[0] == said[1]
    assert 0 < here.statistics.truncated < len(rows)
