"""Formats of rows: adding one is a file and a line in a table, here an entry point."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.config import config_from_mapping, json_schema
from peftlab.config.formats import FORMATS, format_names
from peftlab.config.tasks.options import TASKS
from peftlab.data.loading import load_splits
from peftlab.errors import ConfigError

# Two fields in one: "label|text".
ROWS = """
from peftlab.data.formats.row_format import RowFormat


class Barred(RowFormat):
    name = "barred"
    tasks = ("text-classification",)
    roles = {"barred": True, "label": False}
    usual = {"barred": ("barred", "text"), "label": ("label",)}
    gives = {"text": "text"}
    labels = "label"
    before = ("text-label",)

    def fits(self, first):
        return str(first.get("barred")).startswith("|")

    def read(self, cells):
        return {"text": cells.text("barred").strip("|")}


class Nameless(RowFormat):
    name = "other"
    tasks, roles, usual, gives = (), {}, {}, {}

    def read(self, cells):
        return {}


class Unreadable(RowFormat):
    name = "unreadable"
    tasks, roles, usual, gives = (), {}, {}, {}
"""


@pytest.fixture
def barred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that brings formats along, installed as pip would."""
    site = tmp_path / "site"
    (site / "barred-1.0.dist-info").mkdir(parents=True)
    (site / "barred_rows.py").write_text(ROWS)
    (site / "barred-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: barred\n")
    (site / "barred-1.0.dist-info" / "entry_points.txt").write_text(
        "[peftlab.formats]\nbarred = barred_rows:Barred\nnameless = barred_rows:Nameless\n"
        "unreadable = barred_rows:Unreadable\nnone = builtins:dict\n"
    )
    monkeypatch.syspath_prepend(str(site))


def config(form: str, **columns: str) -> Any:
    return config_from_mapping(
        {
            "model": {"name": "m"},
            "task": "text-classification",
            "data": {"source": "d", "format": form, "columns": columns},
            "method": "lora",
        }
    )


@pytest.mark.usefixtures("barred")
def test_another_packages_format_is_read_and_configured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = config("barred", barred="text")
    assert made.data.format == "barred"
    formats = made.task.formats
    assert formats.index("barred") == formats.index("text-label") - 1
    assert "barred" in made.task.roles
    assert "barred" in json_schema()["$defs"]["DataConfig"]["properties"]["format"]["enum"]
    for left_out in ("its `name` is not 'nameless'", "it has no read", "no subclass of RowFormat"):
        assert left_out in caplog.text
    with pytest.raises(ConfigError, match="did you mean barred"):
        config("bared")
    rows = [{"text": f"|row {i}|", "label": "ab"[i % 2]} for i in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reads: dict[str, Any] = {"formats": made.task.formats, "roles": made.task.roles}
    splits = load_splits(str(file), validation=0.0, **reads)
    assert splits.format == "barred"
    assert splits.train["text"][:2] == ["row 0", "row 1"]
    assert splits.train["label"][:2] == ["a", "b"]
    file.write_text("".join(json.dumps({**row, "text": "plain"}) + "\n" for row in rows))
    assert load_splits(str(file), validation=0.0, **reads).format == "text-label"


def test_without_the_package_the_format_is_unknown() -> None:
    with pytest.raises(ConfigError, match=r"data\.format is 'barred'; allowed: auto, .*text-label"):
        config("barred")


def test_formats_say_which_tasks_they_serve() -> None:
    assert set(format_names()) == set(FORMATS)
    for name, kind in FORMATS.items():
        assert kind.tasks, name
        for task in kind.tasks:
            assert name in TASKS[task].formats
            assert {r for r, needed in kind.roles.items() if needed} <= set(TASKS[task].roles)
    assert "references" in TASKS["seq2seq"].roles
    assert "references" not in TASKS["causal-lm"].roles
