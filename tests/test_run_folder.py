"""A run appears under its final name whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.errors import ConfigError, Interrupted
from peftlab.files import read_json
from peftlab.run_folder import RECORD, check_free, stage, staging_folder


def finish(final: Path, text: str = "{}", **flags: object) -> None:
    with stage(final, overwrite=bool(flags.get("overwrite")), resume="never") as staging:
        (staging.folder / RECORD).write_text(text)
        (staging.folder / "checkpoint-3").mkdir()


def test_a_finished_run_gets_its_name_and_loses_its_checkpoints(tmp_path: Path) -> None:
    final = tmp_path / "runs" / "one"
    finish(final)
    assert [p.name for p in final.iterdir()] == [RECORD]
    assert [p.name for p in final.parent.iterdir()] == ["one"]


def break_off(final: Path, error: BaseException, *, overwrite: bool = False) -> None:
    """A run that wrote something and, unless it failed, two checkpoints."""
    with stage(final, overwrite=overwrite, resume="never") as staging:
        (staging.folder / "half.bin").write_bytes(b"x")
        if isinstance(error, Interrupted):
            (staging.folder / "checkpoint-12").mkdir()
            (staging.folder / "checkpoint-9").mkdir()
        raise error


def test_a_failed_run_leaves_nothing_not_even_the_parents_it_made(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        break_off(tmp_path / "new" / "deeper" / "one", ZeroDivisionError())
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_keeps_its_checkpoint_and_is_resumed(tmp_path: Path) -> None:
    final = tmp_path / "one"
    with pytest.raises(Interrupted, match=r"--resume auto.*checkpoint-12"):
        break_off(final, Interrupted("Stopped."))
    assert not final.exists()
    with pytest.raises(ConfigError, match="unfinished run"):
        check_free(final, overwrite=False, resume="never")
    with stage(final, overwrite=False, resume="auto") as staging:
        assert staging.resume == staging.folder / "checkpoint-12"
    assert final.is_dir()
    assert not staging_folder(final).exists()


def test_resume_auto_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    final = tmp_path / "one"
    staging_folder(final).mkdir()
    (staging_folder(final) / "junk").write_text("left by a kill")
    with stage(final, overwrite=False, resume="auto") as staging:
        assert staging.resume is None
        assert list(staging.folder.iterdir()) == []


def test_a_taken_folder_is_refused_and_replaced_only_on_demand(tmp_path: Path) -> None:
    final = tmp_path / "one"
    finish(final, '{"run": 1}')
    with pytest.raises(ConfigError, match=r"output\.overwrite=true"):
        check_free(final, overwrite=False, resume="never")
    with pytest.raises(ZeroDivisionError):
        break_off(final, ZeroDivisionError(), overwrite=True)
    assert read_json(final / RECORD) == {"run": 1}
    finish(final, '{"run": 2}', overwrite=True)
    assert read_json(final / RECORD) == {"run": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_folder_that_is_no_run_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not a run"):
        check_free(tmp_path, overwrite=True, resume="never")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        check_free(tmp_path / "file", overwrite=False, resume="never")
    with pytest.raises(ConfigError, match="is a file"):
        check_free(tmp_path / "file" / "run", overwrite=False, resume="never")


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "two.unfinished" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(ConfigError, match="another run"):
        check_free(tmp_path / "one", overwrite=False, resume=tmp_path / "two.unfinished")
    with pytest.raises(ConfigError, match="no checkpoint"):
        check_free(tmp_path / "one", overwrite=False, resume=tmp_path / "three")


def test_two_runs_into_one_folder_at_once_are_refused(tmp_path: Path) -> None:
    final = tmp_path / "one"
    with stage(final, overwrite=False, resume="never") as staging:
        (staging.folder / RECORD).write_text("{}")
        with (
            pytest.raises(ConfigError, match="Another process"),
            stage(final, overwrite=True, resume="never"),
        ):
            pass
    assert final.is_dir()


def test_a_kill_while_overwriting_loses_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "one"
    finish(final, '{"run": 1}')
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self == staging_folder(final):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(final, '{"run": 2}', overwrite=True)
    assert not final.exists()
    # What it could be resumed from is still there, and the next start puts the old run back.
    assert (staging_folder(final) / "checkpoint-3").is_dir()
    with pytest.raises(ConfigError, match="finished run"):
        check_free(final, overwrite=False, resume="never")
    assert read_json(final / RECORD) == {"run": 1}
