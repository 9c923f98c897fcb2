"""`peftlab inspect` on adapters, runs and merged models, and their bases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.pipeline.inspection import inspect

pytestmark = pytest.mark.poison_empty(False)

Train = Callable[..., Any]
Cli = Callable[..., Any]
QUERY = "encoder.layer.{}.attention.self.query.weight"


@pytest.fixture
def run(trained: Train) -> Any:
    """A run of LoRA on BERT's queries."""
    return trained("bert", name="lora", r=4, target_modules=["query"])


def moved(run: Any, tmp_path: Path, *, changed: tuple[int, ...] = ()) -> tuple[Path, Path]:
    """The run's adapter and its base in folders of this test's own, its base's queries changed."""
    base = shutil.copytree(run.record["model"]["name"], tmp_path / "base")
    adapter = shutil.copytree(run.folder / "adapter", tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}
    file.write_text(json.dumps(config))
    state = load_file(base / "model.safetensors")
    for layer in changed:
        state[QUERY.format(layer)].view(-1)[0] += 1
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    return adapter, base


def test_an_adapter_of_ours_and_whether_its_base_is_the_same(
    run: Any, cli: Cli, tmp_path: Path
) -> None:
    adapter, base = moved(run, tmp_path)
    ran = cli("inspect", adapter)
    assert ran.code == 0, ran.err
    assert "kind: adapter" in ran.out
    assert "fingerprint:\n  state: matches\n  tensors: 4" in ran.out
    described = json.loads(cli("inspect", adapter, "--json").out)
    assert described["fingerprint"] == {"state": "matches", "tensors": 4}
    assert all(name.endswith(".self.query") for name in described["target_modules"])
    assert described["peft_type"] == "LORA"

    shutil.rmtree(base)
    gone = inspect(adapter)["fingerprint"]
    assert gone["state"] == "unknown"
    assert str(base) in gone["why"]


def test_what_differs_is_named(run: Any, cli: Cli, tmp_path: Path) -> None:
    adapter, _ = moved(run, tmp_path, changed=(0, 1))
    ran = cli("inspect", adapter, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["fingerprint"] == {
        "state": "differs",
        "tensors": 4,
        "differences": [f"{QUERY.format(layer)} has other values" for layer in (0, 1)],
    }
    assert f"{QUERY.format(1)} has other values" in cli("inspect", adapter).out


def test_an_adapter_of_plain_peft_has_no_fingerprint(
    tiny_checkpoint: Any, tmp_path: Path, cli: Cli
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama", "causal"))
    config = LoraConfig(
        r=3, target_modules=["q_proj"], rank_pattern={"layers.1.self_attn.q_proj": 2}
    )
    get_peft_model(model, config).save_pretrained(tmp_path)
    described = json.loads(cli("inspect", tmp_path, "--json").out)
    assert described["kind"] == "adapter"
    assert described["fingerprint"] == {"state": "none"}
    assert described["rank_pattern"] == {"layers.1.self_attn.q_proj": 2}
    assert described["tensors"]["count"] == 4
    assert "fingerprint:\n  state: none" in cli("inspect", tmp_path).out


def test_a_broken_fingerprint_is_an_error(run: Any, cli: Cli, tmp_path: Path) -> None:
    adapter, _ = moved(run, tmp_path)
    for text in ("{", "[]", '{"format": 1}'):
        (adapter / "peftlab.json").write_text(text)
        ran = cli("inspect", adapter)
        assert ran.code == 3
        assert str(adapter / "peftlab.json") in ran.err


@pytest.mark.parametrize("method", ["lora", "last_n"])
def test_a_run_shows_the_state_of_its_base(
    method: str, trained: Train, run: Any, cli: Cli, tmp_path: Path
) -> None:
    run = run if method == "lora" else trained("bert", name="last_n", n=1)
    part = "adapter" if method == "lora" else "trained"
    described = json.loads(cli("inspect", run.folder, "--json").out)
    assert described["kind"] == "run"
    assert described["fingerprint"]["state"] == "matches"
    assert described["fingerprint"]["tensors"] == (4 if method == "lora" else 18)
    assert part in described

    copy = shutil.copytree(run.folder, tmp_path / "run")
    (copy / part / "peftlab.json").unlink()
    assert inspect(copy)["fingerprint"] == {"state": "none"}
    (copy / "peftlab.json").write_text(
        json.dumps(dict(run.record) | {"model": {"name": str(tmp_path / "gone")}})
    )
    shutil.copy(run.folder / part / "peftlab.json", copy / part)
    assert inspect(copy)["fingerprint"]["state"] == "unknown"


def test_a_merged_model_shows_how_it_was_merged_and_proved(
    run: Any, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert cli("export", run.folder, "-o", out, "--max-shard-size", "40KB").code == 0
    report = json.loads((out / "merge_report.json").read_text())
    described = json.loads(cli("inspect", out, "--json").out)
    assert described["kind"] == "merged model"
    assert described["architectures"] == ["BertForSequenceClassification"]
    merge = described["merge"]
    assert merge["counts"] == report["counts"]
    assert merge["counts"]["merged"] == 2
    assert merge["counts"]["replaced"] == 2
    assert merge["verified"]["logits"] == report["verified"]["logits"]
    assert set(merge["peak_anonymous_bytes"]) == {"merge", "verify"}
    assert set(merge["seconds"]) == {"merge", "verify"}
    assert described["as_reported"] is True
    shown = cli("inspect", out).out
    for line in ("kind: merged model", "  merged: 2", "tolerance: ", "peak_anonymous_bytes:"):
        assert line in shown
    assert "sha" not in shown.lower()

    first = report["files"][0]
    state = load_file(out / first)
    save_file(state | {"more": torch.zeros(1)}, out / first, metadata={"format": "pt"})
    assert "tensors, and" in inspect(out)["as_reported"]
    (out / first).unlink()
    assert inspect(out)["as_reported"] == f"no: {first} is missing"
    (out / "merge_report.json").write_text("{")
    with pytest.raises(CheckFailed, match=r"merge_report\.json is not JSON"):
        inspect(out)


def test_what_is_none_of_them_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert cli("inspect", tmp_path).code == 3
    assert cli("inspect", tmp_path / "nowhere").code == 3
