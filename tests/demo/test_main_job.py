from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from peftlab.bench.results import BenchResult, Row, SeedRun
from peftlab.bench.rows import plan_rows
from peftlab.config import load_config
from peftlab.config.schema import RunConfig
from peftlab.demo import main_job
from peftlab.demo.main_job import DATA, Answer, next_command, run_demo
from peftlab.errors import CheckFailed, ConfigError
from peftlab.export.report import MergeReport

CHECKSUMS = {
    "train.jsonl": "b6fe0631e6816a1e",
    "validation.jsonl": "be8cd3e8820ddbc2",
    "test.jsonl": "9a9bccd392175406",
}


def test_the_bundled_data_is_whole_and_attributed() -> None:
    for name, checksum in CHECKSUMS.items():
        content = (DATA / name).read_bytes()
        assert hashlib.sha256(content).hexdigest().startswith(checksum)
        assert {json.loads(line)["label"] for line in content.splitlines()} == {0, 1}
    attribution = (DATA / "ATTRIBUTION").read_text()
    assert "CC BY 4.0" in attribution
    assert "Kotzias" in attribution


def test_the_bundled_configuration_compares_all_methods(tmp_path: Path) -> None:
    config = load_config(main_job.HERE / "demo.yaml", ()).config
    rows = plan_rows(config, tmp_path)
    assert [row.method.name for row in rows] == ["head", "last_n", "lora", "qlora", "full"]
    lora, qlora = rows[2].method.model_dump(), rows[3].method.model_dump()
    assert all(qlora[key] == lora[key] for key in ("r", "alpha", "dropout", "target_modules"))


def bench_of(rows: tuple[Row, ...]) -> BenchResult:
    return BenchResult("m", "text-classification", "d", "accuracy", "test", 1, 1.0, True, {}, rows)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """The calls of the demo to stand-ins for bench and model."""
    seen: dict[str, object] = {}

    def run_bench(config: RunConfig, *, folder: Path) -> BenchResult:
        seen["config"] = config
        good = SeedRun(42, folder=str(folder / "runs" / "lora"), quality={"accuracy": 0.9})
        poor = replace(good, folder=str(folder / "runs" / "full"), quality={"accuracy": 0.8})
        return bench_of(
            (Row("full", "full", "", {}, (poor,)), Row("lora", "lora", "", {}, (good,)))
        )

    def classify(run: Path, sentences: list[str]) -> tuple[Answer, ...]:
        seen["run"] = run
        return tuple(Answer(s, "positive", 0.75) for s in sentences)

    monkeypatch.setattr(main_job, "locate_model", lambda: tmp_path / "all MiniLM")
    monkeypatch.setattr(main_job, "run_bench", run_bench)

    def export_best(bench: BenchResult, out: Path) -> MergeReport:
        seen["merged"] = out
        return MergeReport(
            folder=out, base="m", source="adapter", counts={}, files=(), dtype="F32",
            total_bytes=1, untied=False, dropped=(), added=(),
            auto_class="AutoModelForSequenceClassification", verified={"logits": {"error": 1e-7}},
        )  # fmt: skip

    monkeypatch.setattr(main_job, "classify", classify)
    monkeypatch.setattr(main_job, "export_best", export_best)
    return seen


def test_the_best_run_answers_three_sentences(calls: dict[str, object], tmp_path: Path) -> None:
    result = run_demo("So so.", tmp_path / "demo")
    config = calls["config"]
    assert isinstance(config, RunConfig)
    assert Path(config.data.source) == DATA
    assert config.model.name == str(tmp_path / "all MiniLM")
    assert calls["run"] == tmp_path / "demo" / "runs" / "lora"
    assert [a.sentence for a in result.answers][2] == "So so."
    assert len(result.answers) == 3
    text = result.text()
    assert "So so." in text
    assert "75.0%" in text
    assert result.next_command in text
    assert calls["merged"] == tmp_path / "demo" / "merged"
    assert f"AutoModelForSequenceClassification.from_pretrained('{calls['merged']}')" in text
    assert result.report.is_file()
    assert json.loads(json.dumps(result.to_json()))["answers"][2]["text"] == "So so."


def test_the_best_run_that_transformers_has_a_class_for_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[tuple[str, Path]] = []
    monkeypatch.setattr(
        "peftlab.pipeline.export.runs.export", lambda run, out: exported.append((run, out))
    )
    head = Row("head", "head", "", {}, (SeedRun(1, folder="h", quality={"accuracy": 0.9}),))
    lora = Row("lora", "lora", "", {}, (SeedRun(1, folder="l", quality={"accuracy": 0.8}),))
    (tmp_path / "merge_report.json").write_text("{}")
    main_job.export_best(bench_of((head, lora)), tmp_path)
    assert exported == [("l", tmp_path)]
    assert not tmp_path.exists(), "an earlier demo's model is in the way"
    with pytest.raises(CheckFailed, match="can be exported"):
        main_job.export_best(bench_of((head,)), tmp_path)


def test_without_a_finished_method_the_error_names_reasons(
    calls: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Row("full", "full", "", {}, (SeedRun(1, error="out of luck"),))
    monkeypatch.setattr(main_job, "run_bench", lambda *_, **__: bench_of((broken,)))
    with pytest.raises(CheckFailed, match="full: out of luck"):
        run_demo(None, tmp_path)


def test_a_folder_with_other_runs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "lora" / "peftlab.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    (tmp_path / "logs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main_job, "locate_model", lambda: tmp_path / "model")
    with pytest.raises(ConfigError, match="no bench"):
        run_demo(None, Path())
    assert list(tmp_path.rglob("*.json")) == [run]


def test_the_next_command_can_be_pasted() -> None:
    words = shlex.split(next_command(Path("/a folder/model")))
    assert words[1:4] == ["init", "--model", "/a folder/model"]
