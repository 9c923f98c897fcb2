"""Patterns that mean something, and PEFT's suffix matching kept from training by accident."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import CheckFailed
from peftlab.methods.apply import apply_method
from peftlab.methods.targets import linear_modules, resolve_saved, resolve_targets
from tests.methods.common import CAUSAL, CLASSIFICATION, FOLDER_TASK, load, method

Tiny = Callable[..., Path]


@pytest.fixture
def bert(tiny_checkpoint: Tiny) -> Any:
    return load(tiny_checkpoint("bert"), CLASSIFICATION, method("full"), empty=True).model


@pytest.fixture
def llama(tiny_checkpoint: Tiny) -> Any:
    return load(tiny_checkpoint("llama", "causal"), CAUSAL, method("full"), empty=True).model


def test_auto_all_and_patterns(bert: Any) -> None:
    head = resolve_saved(bert, "auto", CLASSIFICATION)
    assert head == ("classifier",)
    inside = resolve_targets(bert, "auto", head)
    assert len(inside) == 12
    assert all(name.startswith("bert.encoder.layer.") for name in inside)
    assert set(resolve_targets(bert, "all-linear", head)) - set(inside) == {"bert.pooler.dense"}
    assert "classifier" in linear_modules(bert)
    assert resolve_targets(bert, ["query"], head) == (
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.1.attention.self.query",
    )
    one = ("bert.encoder.layer.1.output.dense",)
    assert resolve_targets(bert, ["layer.1.output.dense"], head) == one
    assert resolve_targets(bert, ["bert.encoder.layer.1.output.dense"], head) == one
    assert len(resolve_targets(bert, ["encoder.layer.0.*", "query"], head)) == 7
    # A name is whole from a dot on: `dense` is not what ends in `ense`.
    with pytest.raises(CheckFailed, match="'ense', which matches no layer"):
        resolve_targets(bert, ["ense"], head)


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["query", "qery"], "'qery', which matches no layer of BertForSequenceClassification; "
                            "did you mean query"),
        (["q_proj"], "; names are classifier, dense, key, query, value"),
        (["LayerNorm"], "LayerNorm: LoRA adapts linear layers.*method.modules_to_save"),
        (["word_embeddings"], "Embedding: LoRA adapts linear layers"),
        (["classifier"], "trains in full already"),
    ],
)  # fmt: skip
def test_a_pattern_that_means_nothing(bert: Any, patterns: list[str], words: str) -> None:
    with pytest.raises(CheckFailed, match=words):
        resolve_targets(bert, patterns, ("classifier",))


def test_output_embeddings_only_where_they_are_free(llama: Any, tiny_checkpoint: Tiny) -> None:
    assert "lm_head" not in resolve_targets(llama, "all-linear", ())
    assert resolve_targets(llama, ["lm_head"], ()) == ("lm_head",)
    tied = load(
        tiny_checkpoint("llama", "causal", tie_word_embeddings=True), CAUSAL, method("full")
    ).model
    with pytest.raises(CheckFailed, match="lm_head, which is tied"):
        resolve_targets(tied, ["lm_head"], ())


def test_modules_to_save_mean_exactly_one_module(llama: Any) -> None:
    assert resolve_saved(llama, "auto", CAUSAL) == ()
    # By PEFT's rule `norm` would train every input_layernorm too.
    assert resolve_saved(llama, ["norm"], CAUSAL) == ("model.norm",)
    with pytest.raises(CheckFailed, match="could be 2 modules"):
        resolve_saved(llama, ["input_layernorm"], CAUSAL)
    with pytest.raises(CheckFailed, match=r"'nrom', which is no module.*did you mean .*norm"):
        resolve_saved(llama, ["nrom"], CAUSAL)


def test_only_the_named_norm_trains(tiny_checkpoint: Tiny) -> None:
    chosen = method("lora", r=2, modules_to_save=["norm"], target_modules=["q_proj"])
    folder = tiny_checkpoint("llama", "causal")
    applied = apply_method(load(folder, CAUSAL, chosen).model, chosen, task=CAUSAL)
    whole = {n for n in applied.trainable if "lora_" not in n}
    assert whole == {"base_model.model.model.norm.modules_to_save.default.weight"}


def test_tied_embeddings_are_not_copied(tiny_checkpoint: Tiny) -> None:
    chosen = method("lora", r=2, modules_to_save=["embed_tokens"])
    folder = tiny_checkpoint("llama", "causal", tie_word_embeddings=True)
    with pytest.raises(CheckFailed, match="untie"):
        apply_method(load(folder, CAUSAL, chosen).model, chosen, task=CAUSAL)


def test_the_head_trains_whatever_is_saved_besides(bert: Any) -> None:
    assert resolve_saved(bert, ["pooler"], CLASSIFICATION) == ("classifier", "bert.pooler")
    assert resolve_saved(bert, [], CLASSIFICATION) == ("classifier",)


def test_a_module_that_ends_like_the_head_is_not_trained_by_accident(bert: Any) -> None:
    import torch

    bert.bert.embeddings.add_module("old_classifier", torch.nn.Linear(2, 2, device="meta"))
    with pytest.raises(CheckFailed, match=r"'classifier' would train .*old_classifier"):
        resolve_saved(bert, "auto", CLASSIFICATION)


@pytest.mark.parametrize(
    ("family", "task"), [("bert", CLASSIFICATION), ("gpt2", CAUSAL), ("llama", CAUSAL)]
)
@pytest.mark.parametrize("extra", [{"use_dora": True}, {"use_rslora": True}])
def test_variants_of_lora(
    tiny_checkpoint: Tiny, family: str, task: str, extra: dict[str, Any]
) -> None:
    chosen = method("lora", r=4, alpha=8, **extra)
    folder = tiny_checkpoint(family, FOLDER_TASK[task])
    model: Any = apply_method(load(folder, task, chosen).model, chosen, task=task).model
    layer = next(m for m in model.modules() if hasattr(m, "lora_magnitude_vector"))
    assert bool(layer.lora_magnitude_vector) is ("use_dora" in extra)
    assert layer.scaling["default"] == (8 / 4**0.5 if "use_rslora" in extra else 2)
    if "use_dora" in extra:
        assert any("lora_magnitude_vector" in n for n, p in model.named_parameters()
                   if p.requires_grad)  # fmt: skip
