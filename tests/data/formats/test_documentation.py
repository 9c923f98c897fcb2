"""The table of formats in docs/data.md is what the registry has, and each has a test case."""

from __future__ import annotations

import json
from pathlib import Path

from peftlab.config.formats import FORMATS, format_names
from peftlab.config.tasks.options import TASKS
from peftlab.data.loading import load_splits
from tests.data.formats.test_row_formats import CASES
from tests.data.test_formats import FOUND

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "data.md"


def rows() -> list[list[str]]:
    section = DOCUMENT.read_text(encoding="utf-8").split("## Formats of rows")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_is_the_registry() -> None:
    assert [row[0].strip("`") for row in rows()] == list(format_names())
    for name, _, tasks, roles in rows():
        kind = FORMATS[name.strip("`")]
        assert tasks.split(", ") == list(kind.tasks), name
        written = {role.strip("[]"): not role.startswith("[") for role in roles.split(", ")}
        assert written == dict(kind.roles), name


def test_every_format_has_a_case() -> None:
    cases = {form for form, *_ in CASES.values()} | {form for _, form, _ in FOUND.values()}
    assert cases | {"pair"} == set(FORMATS)


def test_a_pair(tmp_path: Path) -> None:
    rows = [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": "ab"[i % 2]} for i in range(4)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = TASKS["text-classification"]
    splits = load_splits(str(file), formats=kind.formats, roles=kind.roles, validation=0.0)
    assert splits.format == "pair"
    assert list(splits.train)[1] == {"text": "p1", "text_pair": "h1", "label": "b"}
