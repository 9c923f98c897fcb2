"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.errors import CheckFailed, ConfigError
from peftlab.files import (
    check_new_folder,
    link_or_copy,
    new_folder,
    read_json,
    replacing,
    write_json,
)


def test_json_is_written_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"b": 1, "a": ["é"]})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": [\n    "é"\n  ]\n}\n'
    assert read_json(path) == {"b": 1, "a": ["é"]}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path)["b"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_broken_json_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(CheckFailed, match=r"metrics\.json"):
        read_json(path)


def test_missing_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"metrics\.json is missing"):
        read_json(tmp_path / "metrics.json")


def test_a_failed_replacement_keeps_the_old_file(tmp_path: Path) -> None:
    path, link = tmp_path / "best", tmp_path / "link"
    path.write_text("old")
    link_or_copy(path, link)

    def stopped() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert path.read_text() == "old"
    with replacing(path) as partial:
        partial.write_text("new")
    assert (path.read_text(), link.read_text()) == ("new", "old")
    assert sorted(tmp_path.iterdir()) == [path, link]


def test_a_file_is_copied_where_it_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    (tmp_path / "a").write_text("1")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "1"


def test_folders_that_cannot_be_written_are_refused_first(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("x")
    file = tmp_path / "file"
    file.write_text("x")
    for path, said in (
        (taken, "is not empty"),
        (file, "is a file"),
        (file / "below", "is not writable"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_new_folder(path)
    check_new_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_an_empty_folder_is_taken_over_and_permissions_are_the_users(tmp_path: Path) -> None:
    final = tmp_path / "out"
    final.mkdir()
    with new_folder(final) as folder:
        assert folder.parent == tmp_path
        (folder / "a").write_text("1")
        assert list(final.iterdir()) == []
    assert [path.name for path in final.iterdir()] == ["a"]
    mask = os.umask(0)
    os.umask(mask)
    assert final.stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_failure_removes_what_it_made_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()

    def stopped() -> None:
        with new_folder(tmp_path / "old" / "x" / "out") as folder:
            (folder / "a").write_text("1")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_only_the_dead_are_cleared_away(tmp_path: Path) -> None:
    """A sibling of a process that still runs is another export's."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        "dead": f".out.unfinished-{dead.pid}-a",
        "alive": f".out.unfinished-{os.getppid()}-b",
        "other": f".other.unfinished-{dead.pid}-c",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"out", names["alive"], names["other"]}
