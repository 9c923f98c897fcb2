"""Runs over 8 bits keep to their codes as well as to the base that these were made of."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab import pipeline
from peftlab.config import config_from_mapping
from peftlab.errors import CheckFailed
from peftlab.pipeline.fingerprints import FINGERPRINT
from peftlab.pipeline.inspection import inspect
from peftlab.pipeline.run import Run
from peftlab_kernels.int8_format import int8_dequantize
from peftlab_kernels.int8_linear import Int8Linear

WEIGHT = "model.layers.1.self_attn.q_proj.weight"
Train = Callable[..., Run]


@pytest.fixture
def base(tiny_checkpoint: Any, tmp_path: Path) -> Path:
    """A checkpoint of this test's own."""
    folder: Path = shutil.copytree(tiny_checkpoint("llama", "causal"), tmp_path / "base")
    return folder


@pytest.fixture
def train(base: Path, tmp_path: Path) -> Train:
    """`train(model=folder, dtype=...)`: a short run over 8 bits."""
    rows = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"prompt": f"number {i}", "completion": f"a {i % 2} dog"}) for i in range(32)
    ]
    rows.write_text("\n".join(lines) + "\n")

    def run(name: str = "run", *, model: Path | None = None, **of_model: Any) -> Run:
        return pipeline.train(
            config_from_mapping(
                {
                    "model": {"name": str(model or base), **of_model},
                    "task": "causal-lm",
                    "data": {"source": str(rows)},
                    "method": {"name": "qlora", "r": 2, "target_modules": ["q_proj", "down_proj"]},
                    "train": {"max_steps": 2, "global_batch_size": 8, "learning_rate": 1e-2},
                    "eval": {"every": "never", "generation": {"max_new_tokens": 2}},
                    "output": {"dir": str(tmp_path / name), "plots": False},
                }
            )
        )

    return run


def change(folder: Path, how: Callable[[torch.Tensor], None]) -> None:
    """Overwrite a weight of a checkpoint."""
    file = folder / "model.safetensors"
    state = load_file(file)
    how(state[WEIGHT])
    save_file(state, file, metadata={"format": "pt"})


def doubled(weight: torch.Tensor) -> None:
    weight.mul_(2)


def by_a_hair(weight: torch.Tensor) -> None:
    """Other bytes, of which fp16, and so the codes, know nothing."""
    half = weight.half()
    weight.mul_(1 + 2e-7)
    assert torch.equal(weight.half(), half)


def known_of(run: Run) -> dict[str, Any]:
    return dict(json.loads((run.folder / "adapter" / FINGERPRINT).read_text())["fingerprint"])


def test_codes_are_recorded_beside_their_source(train: Train) -> None:
    run = train()
    known = known_of(run)
    assert known["format"] == 2
    assert known["codes"]["rounded"] is None
    assert known["codes"]["tensors"].keys() == known["tensors"].keys()
    assert len(known["tensors"]) == 4
    assert {t["dtype"] for t in known["tensors"].values()} == {"F32"}
    state = inspect(run.folder)["fingerprint"]
    assert (state["state"], state["codes"]["state"], state["codes"]["tensors"]) == (
        "matches", "matches", 4,
    )  # fmt: skip


@pytest.mark.parametrize("verb", ["eval", "predict", "export", "dequant", "requant", "init_from"])
def test_every_verb_refuses_another_base(
    verb: str, train: Train, base: Path, tmp_path: Path
) -> None:
    folder = train().folder
    change(base, doubled)

    def go_on() -> None:
        config = pipeline.open_run(folder).config
        given = config.model_dump(exclude_unset=True, mode="json")
        given["method"]["init_from"] = str(folder / "adapter")
        given["output"]["dir"] = str(tmp_path / "again")
        pipeline.train(config_from_mapping(given))

    def export(form: str = "auto") -> None:
        pipeline.open_run(folder).export(tmp_path / "merged", merge_base=form)

    verbs: dict[str, Callable[[], object]] = {
        "eval": lambda: pipeline.open_run(folder).evaluate("validation"),
        "predict": lambda: pipeline.open_run(folder).predict(["number 3"]),
        "init_from": go_on,
        "export": export,
        "dequant": lambda: export("dequant"),
        "requant": lambda: export("requant"),
    }
    with pytest.raises(CheckFailed, match=f"{WEIGHT} has other (values|codes)"):
        verbs[verb]()
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "again").exists()


def test_dequant_holds_to_the_codes_and_original_to_their_source(
    train: Train, base: Path, tmp_path: Path
) -> None:
    run = train()
    change(base, by_a_hair)
    run = pipeline.open_run(run.folder)
    with pytest.raises(CheckFailed, match=f"{WEIGHT} has other values"):
        run.export(tmp_path / "original", merge_base="original")
    run.export(tmp_path / "dequant", merge_base="dequant")
    state = inspect(run.folder)["fingerprint"]
    assert (state["state"], state["codes"]["state"]) == ("differs", "matches")


def test_a_base_that_moved_and_was_cut_otherwise_is_the_same(
    train: Train, base: Path, tmp_path: Path
) -> None:
    import transformers

    run = train()
    moved = tmp_path / "some" / "where"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(moved, max_shard_size="20KB")
    assert len(list(moved.glob("*.safetensors"))) > 1
    shutil.rmtree(base)
    for form in ("original", "dequant", "requant"):
        run.export(tmp_path / form, base=str(moved), merge_base=form)


def test_what_was_trained_on_codes_is_merged_into_what_they_were_made_of(
    train: Train, base: Path, tmp_path: Path
) -> None:
    """And into no other 16-bit checkpoint, though the fingerprint has no 16-bit tensor."""
    train("first").export(tmp_path / "codes", merge_base="requant")
    stored = load_file(tmp_path / "codes" / "model.safetensors")
    # As if the codes had been made of this one.
    state = load_file(base / "model.safetensors")
    for key, codes in stored.items():
        if codes.dtype is torch.int8:
            scales = stored[f"{key.removesuffix('weight')}SCB"]
            state[key] = int8_dequantize(codes, scales, torch.empty(codes.shape))
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})

    run = train(model=tmp_path / "codes")
    known = known_of(run)
    assert {t["dtype"] for key, t in known["tensors"].items() if key.endswith("SCB")} == {"F32"}
    assert known["codes"]["tensors"].keys() < known["tensors"].keys()
    for form in ("original", "dequant", "requant"):
        run.export(tmp_path / form, base=str(base), merge_base=form)
    change(base, doubled)
    with pytest.raises(CheckFailed, match=f"{WEIGHT} has other codes"):
        run.export(tmp_path / "other", base=str(base), merge_base="original")


def test_only_what_a_checkpoint_keeps_in_8_bits_is_written_so(
    train: Train, base: Path, tmp_path: Path
) -> None:
    train("first").export(tmp_path / "codes", merge_base="requant")
    file = tmp_path / "codes" / "model.safetensors"
    state = load_file(file)
    kept = "model.layers.0.mlp.up_proj"
    codes, scales = state.pop(f"{kept}.weight"), state.pop(f"{kept}.SCB")
    state.pop(f"{kept}.weight_format", None)
    state[f"{kept}.weight"] = int8_dequantize(codes, scales, torch.empty(codes.shape))
    save_file(state, file, metadata={"format": "pt"})

    run = train(model=tmp_path / "codes")
    run.export(tmp_path / "again", merge_base="requant")
    result = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(result[f"{kept}.weight"], state[f"{kept}.weight"])
    assert result[WEIGHT].dtype is torch.int8


def test_weights_rounded_before_their_8_bits_are_rounded_so_again(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An fp32 checkpoint loaded as bf16: the dequantised base is of the codes that were trained."""
    # Asked for by name, bf16 is refused on a CPU that has no units for it.
    monkeypatch.setattr("peftlab.model.precision.cpu_has_bf16_units", lambda: True)
    run = train(dtype="bfloat16")
    assert known_of(run)["codes"]["rounded"] == "BF16"
    run.export(tmp_path / "merged", merge_base="requant")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    untouched = "model.layers.0.self_attn.k_proj"
    trained = run.loaded.model.get_base_model().get_submodule(untouched)
    assert isinstance(trained, Int8Linear)
    assert torch.equal(merged[f"{untouched}.weight"], trained.weight)
    assert torch.equal(merged[f"{untouched}.SCB"], trained.SCB)


def test_what_cannot_be_compared_is_warned_of(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train()
    file = run.folder / "adapter" / FINGERPRINT
    whole = json.loads(file.read_text())
    old = json.loads(file.read_text())
    old["fingerprint"]["format"] = 1
    del old["fingerprint"]["codes"]
    file.write_text(json.dumps(old))
    with caplog.at_level(logging.WARNING, "peftlab"):
        run.export(tmp_path / "one", merge_base="dequant")
    assert "has no fingerprint of the 8-bit codes it was trained on" in caplog.text
    caplog.clear()
    whole["fingerprint"]["format"] = 3
    file.write_text(json.dumps(whole))
    with caplog.at_level(logging.WARNING, "peftlab"):
        run.export(tmp_path / "two", merge_base="dequant")
    assert "has format 3, and this version reads up to 2" in caplog.text
    assert inspect(run.folder)["fingerprint"]["state"] == "unknown"
