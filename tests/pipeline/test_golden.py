"""What a run was trained as is what answers, or nothing does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab import pipeline
from peftlab.config import config_from_mapping
from peftlab.errors import CheckFailed

torch = pytest.importorskip("torch")

TASKS = {"bert": "text-classification", "llama": "causal-lm"}


@pytest.fixture(scope="module", params=TASKS)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Any
) -> tuple[Path, Path]:
    """A run and the folder of its base, made once for a family."""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    kind = "classification" if family == "bert" else "causal"
    base = shutil.copytree(tiny_checkpoint(family, kind), folder / "base")
    rows = [
        {"text": f"a {'good' if i % 2 else 'bad'} film number {i}", "label": i % 2}
        if family == "bert"
        else {"prompt": f"number {i} is", "completion": f"a good film , {i} ."}
        for i in range(40)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_from_mapping({
        "model": {"name": str(base), "dtype": "float32"},
        "task": TASKS[family],
        "data": {"source": str(folder / "train.jsonl")},
        "method": {"name": "lora", "r": 4},
        "train": {"max_steps": 6, "global_batch_size": 8, "learning_rate": 2e-2,
                  "save_every": "never"},
        "eval": {} if family == "bert" else {"generation": {"max_new_tokens": 4}},
        "output": {"dir": str(folder / "run"), "plots": False},
    })  # fmt: skip
    return pipeline.train(config).folder, base


@pytest.fixture
def copied(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of both to tamper with; the run's base is the copy's path."""
    run, base = (shutil.copytree(folder, tmp_path / folder.name) for folder in trained)
    for name in ("peftlab.json", "config.yaml", "adapter/adapter_config.json"):
        file = run / name
        file.write_text(file.read_text().replace(str(trained[1]), str(base)))
    return run, base


def swap_words(folder: Path) -> None:
    """Two words of the tokenizer change their ids."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    words["number"], words["cat"] = words["cat"], words["number"]
    file.write_text(json.dumps(content))


def change_settings(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))


def change_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")


def scale_adapter(run: Path, by: float = 1.5) -> None:
    from safetensors.torch import load_file, save_file

    file = run / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    save_file({n: t * (by if "lora_B" in n else 1) for n, t in state.items()}, file,
              metadata={"format": "pt"})  # fmt: skip


def predicted(run: pipeline.Run) -> Any:
    return run.predict(["a good film"])


USES: dict[str, Callable[[pipeline.Run, Path], Any]] = {
    "eval": lambda run, _: run.evaluate("validation"),
    "predict": lambda run, _: predicted(run),
    "export": lambda run, out: run.export(out),
}


@pytest.mark.parametrize("use", USES)
def test_an_untouched_run_is_used(use: str, copied: tuple[Path, Path], tmp_path: Path) -> None:
    run = pipeline.open_run(copied[0])
    golden = run.record["golden"]
    assert len(golden["examples"]) == 3
    assert golden["examples"][0]["encoded"]["input_ids"]
    assert USES[use](run, tmp_path / "out")


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            swap_words,
            r"encodes the golden example '.*' differently .*: input_ids at position \d+ was",
        ),
        (change_settings, "its padding_side was 'right' and is 'left'"),
        (change_template, "its chat_template was None and is '"),
    ],
)
@pytest.mark.parametrize("use", USES)
def test_the_runs_tokenizer_has_changed(
    use: str, tamper: Any, message: str, copied: tuple[Path, Path], tmp_path: Path
) -> None:
    tamper(copied[0] / "tokenizer")
    out = tmp_path / "out"
    with pytest.raises(CheckFailed, match=rf"the tokenizer in .*tokenizer .*{message}") as refused:
        USES[use](pipeline.open_run(copied[0]), out)
    assert refused.value.exit_code == 3
    assert not out.exists()


@pytest.mark.parametrize("use", ["eval", "predict"])
def test_the_bases_tokenizer_has_changed(use: str, copied: tuple[Path, Path]) -> None:
    swap_words(copied[1])
    with pytest.raises(CheckFailed, match=rf"the tokenizer of {copied[1]} encodes the golden"):
        USES[use](pipeline.open_run(copied[0]), Path())


@pytest.mark.parametrize("use", USES)
def test_the_trained_part_has_changed(use: str, copied: tuple[Path, Path], tmp_path: Path) -> None:
    scale_adapter(copied[0])
    out = tmp_path / "out"
    with pytest.raises(
        CheckFailed, match=r"computes the golden example '.*' differently .*: logit"
    ):
        USES[use](pipeline.open_run(copied[0]), out)
    assert not out.exists()


def test_other_devices_round_otherwise(copied: tuple[Path, Path]) -> None:
    """A difference that is an error on the training device is rounding on another one."""
    scale_adapter(copied[0], by=1.05)
    with pytest.raises(CheckFailed, match="differently than after training"):
        predicted(pipeline.open_run(copied[0]))
    file = copied[0] / "peftlab.json"
    record = json.loads(file.read_text())
    assert record["golden"]["computed"] == {"device": "cpu", "compute": "float32"}
    record["golden"]["computed"]["device"] = "cuda"
    file.write_text(json.dumps(record))
    assert predicted(pipeline.open_run(copied[0]))


def test_a_base_that_was_rounded_is_allowed_its_rounding(copied: tuple[Path, Path]) -> None:
    scale_adapter(copied[0], by=1.05)
    file = copied[0] / "peftlab.json"
    record = json.loads(file.read_text())
    record["golden"]["computed"]["rounded"] = False
    file.write_text(json.dumps(record))
    with pytest.raises(CheckFailed, match="differently than after training"):
        predicted(pipeline.open_run(copied[0]))
    record["golden"]["computed"]["rounded"] = True
    file.write_text(json.dumps(record))
    assert predicted(pipeline.open_run(copied[0]))


def test_the_command_line_reports_it_and_stops(
    copied: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    from peftlab.cli import main

    scale_adapter(copied[0])
    assert main(["predict", str(copied[0]), "a film"]) == 3
    message = capfd.readouterr()
    assert message.out == ""
    assert "differently than after training" in message.err
    assert "Traceback" not in message.err


def test_a_run_from_before_golden_examples_opens(copied: tuple[Path, Path]) -> None:
    file = copied[0] / "peftlab.json"
    record = json.loads(file.read_text())
    for name in ("golden", "data_format"):
        del record[name]
    state = record["task"]["state"]
    state.pop("problem", None)
    if state.pop("rows", None) is not None:
        record["task"]["state"] = {"paired": True, "separator": state["separator"]}
    file.write_text(json.dumps(record))
    config = copied[0] / "config.yaml"
    name = record["task"]["name"]
    config.write_text(
        re.sub(r"^task:\n(  .*\n)+", f"task: {name}\n", config.read_text(), flags=re.M)
    )
    assert f"\ntask: {name}\n" in config.read_text()
    run = pipeline.open_run(copied[0])
    assert predicted(run)
    assert run.evaluate("validation")["loss"] == pytest.approx(
        run.metrics["validation"]["loss"], rel=1e-5
    )
