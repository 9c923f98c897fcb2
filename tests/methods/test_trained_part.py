"""The trained part on disk and back: equal logits, plain PEFT, and nothing that does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.methods.apply import apply_method, load_trained, save_trained
from peftlab.methods.method import Applied
from peftlab.methods.trained_part import load_trained_state, trained_state
from tests.checkpoints import FAMILIES
from tests.methods.common import (
    CAUSAL,
    CLASSIFICATION,
    FOLDER_TASK,
    HEADS,
    batch,
    load,
    method,
    step,
)
from tests.methods.test_apply import COMBINATIONS, METHODS, TIED_HEAD

Tiny = Callable[..., Path]


def trained(folder: Path, task: str, chosen: Any, *, seed: int = 0) -> tuple[Applied, Any]:
    """Two steps of training, and the batch they were on."""
    loaded = load(folder, task, chosen, seed=seed)
    applied = apply_method(loaded.model, chosen, task=task)
    inputs = batch(loaded)
    step(applied.model, inputs, task)
    step(applied.model, inputs, task)
    applied.model.eval()
    return applied, inputs


def logits(model: Any, inputs: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


@pytest.mark.parametrize(("family", "task", "name"), [c for c in COMBINATIONS if c != TIED_HEAD])
def test_saved_and_loaded_again(
    tiny_checkpoint: Tiny, tmp_path: Path, family: str, task: str, name: str
) -> None:
    folder, chosen = tiny_checkpoint(family, FOLDER_TASK[task]), method(name, **METHODS[name])
    applied, inputs = trained(folder, task, chosen)
    where = save_trained(applied, tmp_path)
    assert where == tmp_path / ("adapter" if name in ("lora", "qlora") else "trained")
    # Another seed: a fresh head or adapter that were left as drawn would show.
    again = load_trained(load(folder, task, chosen, seed=1).model, chosen, tmp_path, task=task)
    assert torch.equal(logits(again.model, inputs), logits(applied.model, inputs))
    assert again.trainable == applied.trainable


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_plain_peft(tiny_checkpoint: Tiny, tmp_path: Path, family: str) -> None:
    """Loaded without peftlab, on the base that Transformers loads."""
    import transformers
    from peft import AutoPeftModelForCausalLM, PeftModel

    task = CAUSAL if family in ("gpt2", "llama") else CLASSIFICATION
    folder, chosen = tiny_checkpoint(family, FOLDER_TASK[task]), method("lora", r=2, alpha=3)
    applied, inputs = trained(folder, task, chosen)
    adapter = save_trained(applied, tmp_path)
    written = json.loads((adapter / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(folder)
    assert written["task_type"] == ("CAUSAL_LM" if task == CAUSAL else "SEQ_CLS")
    assert (written["r"], written["lora_alpha"], written["peft_type"]) == (2, 3, "LORA")
    kind = getattr(transformers, HEADS[task].auto_class)
    base = kind.from_pretrained(folder, dtype=torch.float32, **HEADS[task].config)
    base.config.pad_token_id = applied.model.config.pad_token_id  # type: ignore[union-attr]
    plain = PeftModel.from_pretrained(base, adapter)
    torch.testing.assert_close(
        logits(plain, inputs), logits(applied.model, inputs), rtol=1e-6, atol=1e-6
    )
    if task == CAUSAL:
        alone = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
        torch.testing.assert_close(logits(alone, inputs), logits(plain, inputs))


def test_what_else_is_saved_says_what_it_is(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert")
    applied, _ = trained(folder, CLASSIFICATION, method("last_n", n=1))
    file = save_trained(applied, tmp_path) / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        assert set(opened.keys()) == applied.trainable
    assert metadata["method"] == "last_n"
    assert metadata["base_model_name_or_path"] == str(folder)


@pytest.mark.parametrize("name", ["last_n", "lora"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: dict(list(t.items())[1:]), "lacks 1 tensors"),
        (lambda t: t | {"stray.weight": torch.zeros(1)}, r"too many \(stray\.weight"),
        (lambda t: {k: v[..., :1].clone() for k, v in t.items()}, "holds .* as "),
    ],
)
def test_a_part_that_does_not_fit_is_refused(
    tiny_checkpoint: Tiny, tmp_path: Path, name: str, spoil: Callable[..., Any], words: str
) -> None:
    folder, chosen = tiny_checkpoint("bert"), method(name, **METHODS[name])
    applied, _ = trained(folder, CLASSIFICATION, chosen)
    (file,) = save_trained(applied, tmp_path).glob("*.safetensors")
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(spoil(load_file(file)), file, metadata=metadata)
    with pytest.raises(CheckFailed, match=words):
        load_trained(
            load(folder, CLASSIFICATION, chosen).model, chosen, tmp_path, task=CLASSIFICATION
        )


def test_missing_damaged_and_foreign_parts(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert")

    def reload(chosen: Any) -> None:
        load_trained(
            load(folder, CLASSIFICATION, chosen).model, chosen, tmp_path, task=CLASSIFICATION
        )

    for name in ("lora", "full"):
        with pytest.raises(CheckFailed, match="the run is not whole"):
            reload(method(name))
    applied, _ = trained(folder, CLASSIFICATION, method("last_n", n=1))
    file = save_trained(applied, tmp_path) / "model.safetensors"
    with pytest.raises(CheckFailed, match="was trained by last_n, not full"):
        reload(method("full"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckFailed, match="not a whole safetensors file"):
        reload(method("last_n", n=1))


def test_state_in_memory(tiny_checkpoint: Tiny) -> None:
    applied, inputs = trained(tiny_checkpoint("bert"), CLASSIFICATION, method("lora", r=2))
    before = logits(applied.model, inputs)
    best = {name: tensor.clone() for name, tensor in trained_state(applied.model).items()}
    assert best.keys() == applied.trainable
    step(applied.model, inputs, CLASSIFICATION)
    assert not torch.equal(logits(applied.model, inputs), before)
    load_trained_state(applied.model, best)
    assert torch.equal(logits(applied.model, inputs), before)
    with pytest.raises(CheckFailed, match="lacks 1 tensors"):
        load_trained_state(applied.model, dict(list(best.items())[1:]))


def test_training_starts_from_an_adapter(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert")
    applied, inputs = trained(folder, CLASSIFICATION, method("lora", r=2))
    adapter = save_trained(applied, tmp_path)
    for source in (adapter, tmp_path):  # the adapter, or the run that holds it
        chosen = method("lora", r=2, init_from=str(source))
        again = apply_method(
            load(folder, CLASSIFICATION, chosen, seed=1).model, chosen, task=CLASSIFICATION
        )
        assert torch.equal(logits(again.model, inputs), logits(applied.model, inputs))
        assert again.notes == (f"training starts from the adapter {adapter}",)
    # Shapes alone can be checked as well.
    chosen = method("lora", r=2, init_from=str(adapter))
    empty = load(folder, CLASSIFICATION, chosen, empty=True).model
    assert apply_method(empty, chosen, task=CLASSIFICATION).trainable == applied.trainable


def start(folder: Path, task: str, source: Path, **settings: Any) -> Applied:
    chosen = method("lora", r=2, init_from=str(source), **settings)
    return apply_method(load(folder, task, chosen, seed=1).model, chosen, task=task)


def test_what_an_adapter_trained_whole_is_not_lost(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder, saved = tiny_checkpoint("bert"), ["word_embeddings"]
    applied, inputs = trained(folder, CLASSIFICATION, method("lora", r=2, modules_to_save=saved))
    save_trained(applied, tmp_path)
    words = r"bert\.embeddings\.word_embeddings; add them to method\.modules_to_save"
    with pytest.raises(CheckFailed, match=words):
        start(folder, CLASSIFICATION, tmp_path)
    again = start(folder, CLASSIFICATION, tmp_path, modules_to_save=saved)
    assert torch.equal(logits(again.model, inputs), logits(applied.model, inputs))


def test_another_tasks_head_is_left_behind(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("llama", "causal")
    causal, _ = trained(folder, CAUSAL, method("lora", r=2, modules_to_save=["lm_head"]))
    save_trained(causal, tmp_path / "causal")
    with pytest.raises(CheckFailed, match=r"lm_head; add them to method\.modules_to_save"):
        start(folder, CAUSAL, tmp_path / "causal")
    classifier = start(folder, CLASSIFICATION, tmp_path / "causal")
    assert "score did not fit and starts anew" in classifier.notes[-1]
    save_trained(classifier, tmp_path / "classifier")
    back = start(folder, CAUSAL, tmp_path / "classifier")
    layer = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    tensor = trained_state(back.model)[layer]
    assert tensor.any()
    assert torch.equal(tensor, trained_state(causal.model)[layer])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 3}, "r is 2, here 3"),
        ({"alpha": 7}, "lora_alpha is 32, here 7"),
        ({"use_rslora": True}, "use_rslora is False, here True"),
        ({"use_dora": True}, "use_dora is False, here True"),
        ({"target_modules": ["query"]}, "does not fit.*20 tensors too many.*targets"),
    ],
)
def test_an_adapter_of_other_settings_is_refused(
    tiny_checkpoint: Tiny, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    folder = tiny_checkpoint("bert")
    applied, _ = trained(folder, CLASSIFICATION, method("lora", r=2))
    save_trained(applied, tmp_path)
    chosen = method("lora", **({"r": 2} | settings), init_from=str(tmp_path))
    with pytest.raises(CheckFailed, match=words):
        apply_method(load(folder, CLASSIFICATION, chosen).model, chosen, task=CLASSIFICATION)


def test_an_adapter_of_another_base_or_none(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    applied, _ = trained(tiny_checkpoint("bert"), CLASSIFICATION, method("lora", r=2))
    save_trained(applied, tmp_path)
    other = tiny_checkpoint("bert", hidden_act="relu")
    chosen = method("lora", r=2, init_from=str(tmp_path))
    with pytest.raises(CheckFailed, match=f"its base is .*, here {other}"):
        apply_method(load(other, CLASSIFICATION, chosen).model, chosen, task=CLASSIFICATION)
    chosen = method("lora", r=2, init_from=str(tmp_path / "nowhere"))
    with pytest.raises(CheckFailed, match=r"there is no adapter_config\.json"):
        apply_method(load(other, CLASSIFICATION, chosen).model, chosen, task=CLASSIFICATION)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    chosen = method("lora", r=2, init_from=str(tmp_path))
    with pytest.raises(CheckFailed, match="unpickling"):
        apply_method(load(other, CLASSIFICATION, chosen).model, chosen, task=CLASSIFICATION)
