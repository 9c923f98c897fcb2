from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab.bench.lab import run_bench
from peftlab.bench.processes import JobServer
from peftlab.bench.report.quantities import findings, why_nothing_scored
from peftlab.bench.report.write import text_table
from peftlab.bench.results import BenchResult
from peftlab.config.schema import RunConfig
from peftlab.errors import ConfigError, DataError, Interrupted
from tests.hanging import HANGS_AFTER

MakeConfig = Callable[..., RunConfig]


def run(config: RunConfig, folder: Path, jobs: str, train: str = "train") -> BenchResult:
    return run_bench(
        config,
        folder=folder,
        train=f"{jobs}:{train}",
        untuned=f"{jobs}:untuned",
        preload=("decimal",),
    )


def failing(epochs: int, label: str) -> dict[str, Any]:
    return {"label": label, "method": {"name": "full"}, "train": {"num_train_epochs": epochs}}


def metrics_of(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / name / "metrics.json").read_text())[
        "train"
    ]
    return found


def test_every_run_has_a_fresh_process_with_imports_done(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a bench"
    result = run(config_of({"methods": ["lora", "full"], "seeds": 2}), folder, fake_jobs)
    found = [metrics_of(folder, n) for n in ("lora-1", "lora-2", "full-1", "full-2")]
    assert len({m["pid"] for m in found} | {os.getpid()}) == 5
    assert [m["calls"] for m in found] == [1, 1, 1, 1]
    assert all(m["loaded"] for m in found)
    assert result.complete
    assert (result.metric, result.split) == ("accuracy", "test")


def test_rows_hold_what_the_runs_measured(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    result = run(config_of({"methods": ["lora"], "seeds": 3}), tmp_path, fake_jobs)
    untuned, lora = result.rows
    assert (untuned.method, untuned.settings) == ("untuned", "majority class")
    assert untuned.interval("accuracy") == (0.4, 0.6)
    quality = lora.metric("accuracy")
    assert quality is not None
    assert quality.mean == pytest.approx(0.943)
    assert quality.sd == pytest.approx(0.001)
    assert lora.interval("accuracy") == pytest.approx((0.88, 0.97))
    assert lora.trained_share() == 0.01
    assert lora.good[0].peak_memory["optimizer"] == 20
    assert lora.good[0].curve == ((10.0, 0.7), (20.0, 0.5))
    assert "rate 0.002" in lora.settings
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    assert written["rows"][1]["summary"]["accuracy"]["mean"] == pytest.approx(0.943)


def test_a_method_that_fails_is_a_row_with_its_reason(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    rows = [
        failing(101, "check"),
        failing(102, "killed"),
        failing(103, "exit"),
        failing(104, "bug"),
        failing(106, "nothing"),
        "lora",
    ]
    result = run(config_of({"methods": rows, "untuned": False}), tmp_path, fake_jobs)
    reasons = {row.label: row.failure or "" for row in result.rows}
    assert reasons["check"] == "No module is named 'quary'; the nearest is 'query'."
    assert "out of memory" in reasons["killed"]
    assert "exit code 7" in reasons["exit"]
    assert reasons["bug"] == "ZeroDivisionError: not a user's mistake"
    assert "left no metrics" in reasons["nothing"]
    assert reasons["lora"] == ""
    best = result.best()
    assert best is not None
    assert best.label == "lora"
    assert "Traceback" in (tmp_path / "logs" / "bug.log").read_text()


def test_bad_data_stops_all_and_leaves_nothing(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "bench"
    with pytest.raises(DataError, match="label is null"):
        run(
            config_of({"methods": [failing(105, "x"), "lora"], "untuned": False}), folder, fake_jobs
        )
    assert not folder.parent.exists()


def test_a_finished_bench_is_not_replaced_unasked(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    folder = tmp_path / "bench"
    run(config_of({"methods": ["lora"]}), folder, fake_jobs)
    with pytest.raises(ConfigError, match="overwrite=true"):
        run(config_of({"methods": ["full"]}), folder, fake_jobs)
    again = run(config_of({"methods": ["full"]}, output={"overwrite": True}), folder, fake_jobs)
    assert [row.label for row in again.rows] == ["untuned", "full"]
    assert not (folder / "runs" / "lora").exists()


@pytest.mark.parametrize(
    "results",
    [None, "{", "[]", "3", '"rows complete"', "{}", '{"rows": {}, "complete": true}', "\udcff"],
)
@pytest.mark.parametrize("kept", ["letter.txt", "runs/mine/peftlab.json", "logs/of-the-ship.log"])
def test_a_folder_of_something_else_is_left_alone(
    kept: str, results: str | None, config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / kept).write_text("dear")
    if results is not None:
        (tmp_path / "results.json").write_bytes(results.encode(errors="surrogateescape"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="no bench"):
        run(config_of({"methods": ["lora"]}, output={"overwrite": True}), tmp_path, fake_jobs)
    assert sorted(tmp_path.rglob("*")) == before


def test_replacing_a_bench_deletes_its_own_runs_alone(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    folder = tmp_path / "bench"
    run(config_of({"methods": ["lora"]}), folder, fake_jobs, train="mark_seen")
    (folder / "runs" / "lora.unfinished").mkdir()
    mine = [folder / "runs" / "mine" / "peftlab.json", folder / "logs" / "mine.log"]
    for file in (*mine, folder / "notes.md"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("weeks of work")
    over = {"overwrite": True}
    run(config_of({"methods": ["full"]}, output=over), folder, fake_jobs, train="mark_seen")
    assert sorted(p.name for p in (folder / "runs").iterdir()) == ["full", "mine"]
    assert not (folder / "logs" / "lora.log").exists()
    # A run that the bench would replace, and that is not the bench's.
    with pytest.raises(ConfigError, match="mine is there and is not this bench's"):
        run(
            config_of({"methods": [{"label": "mine", "method": "full"}]}, output=over),
            folder,
            fake_jobs,
        )
    assert (folder / "runs" / "full" / "metrics.json").is_file()
    with pytest.raises(DataError):
        run(
            config_of({"methods": [failing(105, "x")], "untuned": False}, output=over),
            folder,
            fake_jobs,
        )
    left = sorted(p for p in folder.rglob("*") if p.is_file())
    assert left == sorted([*mine, folder / "notes.md"])


def test_names_in_a_marker_do_not_lead_out_of_the_folder(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    folder, victim = tmp_path / "bench", tmp_path / "victim"
    victim.mkdir()
    folder.mkdir()
    marker = {"rows": [], "complete": False, "runs": ["../../victim", "..", "", 3, str(victim)]}
    (folder / "results.json").write_text(json.dumps(marker))
    run(config_of({"methods": ["lora"]}), folder, fake_jobs)
    assert victim.is_dir()


def test_bad_data_after_a_good_row_is_that_rows_failure(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    rows = ["lora", failing(105, "late"), "full"]
    result = run(config_of({"methods": rows}), tmp_path / "bench", fake_jobs)
    assert [row.failure for row in result.rows] == [
        None,
        None,
        "train.jsonl:3: label is null",
        None,
    ]
    assert result.complete
    assert (tmp_path / "bench" / "runs" / "lora" / "metrics.json").is_file()


def test_without_anything_to_score_on_no_job_runs(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    data = {"source": "rows.csv", "splits": {"validation": None, "test": None}}
    with pytest.raises(ConfigError, match="bench needs a validation or a test split"):
        run(config_of({"methods": ["lora"]}, data=data), tmp_path / "bench", fake_jobs)
    assert not (tmp_path / "bench").exists()


def test_rows_without_a_metric_are_no_failures_and_no_scores(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    rows = [failing(107, "unscored")]
    result = run(config_of({"methods": rows, "untuned": False}), tmp_path / "bench", fake_jobs)
    assert (len(result.trained), result.scored, result.best()) == (1, (), None)
    assert "none was scored" in findings(result)[0]
    assert "no metric" in text_table(result)
    both = run(config_of({"methods": [*rows, "lora"]}), tmp_path / "both", fake_jobs)
    best = both.best()
    assert best is not None
    assert best.label == "lora"
    assert why_nothing_scored(both) is None


def test_ctrl_c_stops_the_running_job(
    config_of: MakeConfig, fake_jobs: str, tmp_path: Path
) -> None:
    witness = tmp_path / "pid"
    config = config_of({"methods": ["full"]}, data={"source": str(witness)})

    def interrupt() -> None:
        while not (witness.is_file() and witness.read_text()):
            time.sleep(0.02)
        # A terminal's Ctrl-C: the signal itself, so that a blocked read wakes up.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    folder = tmp_path / "bench"
    with pytest.raises(Interrupted, match="Stopped after 1 rows"):
        run(config, folder, fake_jobs, train="sleep")
    pid = int(witness.read_text())
    deadline = time.monotonic() + HANGS_AFTER
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert list((folder / "runs").iterdir()) == []
    assert json.loads((folder / "results.json").read_text())["complete"] is False


def test_a_worker_that_cannot_start_says_so(
    config_of: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with JobServer(()) as server:
        outcome = server.run("x:y", config_of({}), log=tmp_path / "x.log")
    assert outcome.error is not None
    assert "before it began" in outcome.error
