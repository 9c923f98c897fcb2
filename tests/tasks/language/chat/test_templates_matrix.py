"""Every form of row with every template: trained exactly, or refused for a cause that is listed."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import DataError
from peftlab.tasks.language.causal_lm import CausalLM
from peftlab.tasks.language.causal_rows import Chats
from tests.tasks.language.chat.checker import violations
from tests.tasks.language.chat.forms import rows
from tests.tasks.language.chat.templates import (
    end_of,
    headers_of,
    tokenizer_for,
    trl_templates,
    twins,
)

datasets = pytest.importorskip("datasets")

REFUSALS = Path(__file__).with_name("refusals.json")
FEWEST = {
    "plain": 41, "several turns": 41, "content parts": 41, "system": 40,
    "thoughts in the content": 39, "tool call": 27, "reasoning_content": 17,
}  # fmt: skip


class _OneRow(dict[Any, Any]):
    """As much of a data set as encoding reads, without the cost of a fingerprint."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, rows: slice) -> dict[str, list[Any]]:
        return {name: [value] for name, value in self.items()}


@cache
def results() -> dict[tuple[str, str], str | list[str]]:
    """Of each template and form the cause of its refusal, or the violations of its rows."""
    made: dict[tuple[str, str], str | list[str]] = {}
    for name, template in {**trl_templates(), **twins()}.items():
        tokenizer = tokenizer_for(template)
        task = CausalLM(Chats()).attach(tokenizer, None)
        headers = headers_of(template)
        for form, row in rows(end_of(template)).items():
            made[name, form] = _result(task, tokenizer, row, headers)
    return made


def _result(task: CausalLM, tokenizer: Any, row: Any, headers: set[str]) -> str | list[str]:
    data: Any = _OneRow({key: json.dumps(value) for key, value in row.items()})
    try:
        encoded = task.encode(data, tokenizer, max_length=20000)
    except DataError as error:
        return str(error).splitlines()[0].removeprefix("row 1: ")
    return violations(tokenizer, row, list(encoded.rows), headers)


def test_no_row_is_trained_wrong() -> None:
    wrong = {
        pair: found for pair, found in results().items() if found and not isinstance(found, str)
    }
    assert not wrong


@pytest.mark.parametrize("form", FEWEST)
def test_original_templates_train(form: str) -> None:
    originals = [name for name in trl_templates() if not name.endswith("_training")]
    assert len(originals) == 41
    assert sum(results()[name, form] == [] for name in originals) >= FEWEST[form]


def test_there_are_as_many_forms_and_twins_as_claimed() -> None:
    assert len(rows("")) == 23
    assert len(twins()) >= 20


def test_every_refusal_is_listed_with_its_cause() -> None:
    """Written anew by deleting the file: look at what changed before keeping it."""
    refused: dict[str, dict[str, str]] = {}
    for (name, form), found in results().items():
        if isinstance(found, str):
            refused.setdefault(form, {})[name] = found
    if not REFUSALS.exists():
        REFUSALS.write_text(
            json.dumps(refused, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        )
    assert refused == json.loads(REFUSALS.read_text(encoding="utf-8"))
    causes = Counter(cause for by_name in refused.values() for cause in by_name.values())
    said = ("refuses turns of", "omits", "does not render the tools", "does not start with")
    assert all(any(part in cause for part in said) for cause in causes)
