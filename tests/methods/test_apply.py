"""Every method on every family: what trains, in which dtype, and that nothing else ever moves."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import peftlab.methods.freeze
from peftlab.errors import CheckFailed, ConfigError
from peftlab.methods.apply import apply_method
from peftlab.methods.freeze import freeze
from tests.checkpoints import FAMILIES
from tests.methods.common import (
    CAUSAL,
    CLASSIFICATION,
    FOLDER_TASK,
    all_tensors,
    batch,
    load,
    loss,
    method,
    step,
)

Tiny = Callable[..., Path]

METHODS: dict[str, dict[str, Any]] = {
    "head": {},
    "last_n": {"n": 1},
    "lora": {"r": 2, "dropout": 0.0},
    "qlora": {"r": 2, "dropout": 0.0},
    "full": {},
}
COMBINATIONS = [
    (family, task, name)
    for family in FAMILIES
    for task in (CLASSIFICATION, CAUSAL)
    for name in METHODS
    if task == CLASSIFICATION or family in ("gpt2", "llama")
]
TIED_HEAD = ("gpt2", CAUSAL, "head")

# The linears of a block, for LoRA; block 1 without adapters and what follows, for last_n.
LINEARS = {
    "bert": ["attention.self.query", "attention.self.key", "attention.self.value",
             "attention.output.dense", "intermediate.dense", "output.dense"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
              "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
}  # fmt: skip
STACK = {"bert": "bert.encoder.layer", "gpt2": "transformer.h", "llama": "model.layers"}
HEAD = {
    ("bert", CLASSIFICATION): ["classifier.weight", "classifier.bias"],
    ("gpt2", CLASSIFICATION): ["score.weight"],
    ("llama", CLASSIFICATION): ["score.weight"],
    ("llama", CAUSAL): ["lm_head.weight"],
    ("gpt2", CAUSAL): [],
}
AFTER = {
    "bert": ["bert.pooler.dense.weight", "bert.pooler.dense.bias"],
    "gpt2": ["transformer.ln_f.weight", "transformer.ln_f.bias"],
    "llama": ["model.norm.weight"],
}
T5_HEAD = [
    f"classification_head.{m}.{p}" for m in ("dense", "out_proj") for p in ("weight", "bias")
]


def expected(family: str, task: str, name: str, everything: list[str]) -> set[str]:
    """The exact names that must train, written down rather than computed by the same code."""
    if name == "full":
        return set(everything)
    if name == "head":
        if family == "t5":
            return set(T5_HEAD)
        return {"lm_head.weight"} if task == CAUSAL else {"head.weight", "head.bias"}
    if family == "t5":
        return expected_t5(name, everything)
    if name == "last_n":
        block = {n for n in everything if n.startswith(f"{STACK[family]}.1.")}
        return block | {*AFTER[family], *HEAD[family, task]}
    prefix = "base_model.model."
    adapters = {
        f"{prefix}{STACK[family]}.{block}.{linear}.lora_{side}.default.weight"
        for block in (0, 1)
        for linear in LINEARS[family]
        for side in "AB"
    }
    saved = {
        f"{prefix}{module}.modules_to_save.default.{parameter}"
        for module, parameter in (n.rsplit(".", 1) for n in HEAD[family, task])
        if task == CLASSIFICATION
    }
    return adapters | saved


def expected_t5(name: str, everything: list[str]) -> set[str]:
    if name == "last_n":
        stacks = ("transformer.encoder.", "transformer.decoder.")
        inside = {n for n in everything if n.startswith(tuple(f"{s}block.1." for s in stacks))}
        return inside | {f"{s}final_layer_norm.weight" for s in stacks} | set(T5_HEAD)
    linears = [f"layer.0.SelfAttention.{m}" for m in "qkvo"]
    fed = ["DenseReluDense.wi", "DenseReluDense.wo"]
    encoder = linears + [f"layer.1.{m}" for m in fed]
    decoder = linears + [f"layer.1.EncDecAttention.{m}" for m in "qkvo"]
    decoder += [f"layer.2.{m}" for m in fed]
    prefix = "base_model.model."
    adapters = {
        f"{prefix}transformer.{stack}.block.{block}.{linear}.lora_{side}.default.weight"
        for stack, names in (("encoder", encoder), ("decoder", decoder))
        for block in (0, 1)
        for linear in names
        for side in "AB"
    }
    heads = {
        f"{prefix}classification_head.modules_to_save.default.{n.removeprefix('classification_head.')}"
        for n in T5_HEAD
    }
    return adapters | heads


@pytest.mark.parametrize(("family", "task", "name"), COMBINATIONS)
def test_exactly_these_train_and_move(
    tiny_checkpoint: Tiny, family: str, task: str, name: str
) -> None:
    folder, chosen = tiny_checkpoint(family, FOLDER_TASK[task]), method(name, **METHODS[name])
    loaded = load(folder, task, chosen)
    if (family, task, name) == TIED_HEAD:
        with pytest.raises(CheckFailed, match="lm_head of GPT2LMHeadModel is tied"):
            apply_method(loaded.model, chosen, task=task)
        return
    before_names = [n for n, _ in loaded.model.named_parameters()]
    applied = apply_method(loaded.model, chosen, task=task)
    model = applied.model
    assert applied.trainable == expected(family, task, name, before_names)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == applied.trainable
    parameters = dict(model.named_parameters())
    assert {parameters[n].dtype for n in applied.trainable} == {torch.float32}
    counts = {n: p.numel() for n, p in parameters.items()}
    assert applied.coverage.parameters == sum(counts.values())
    assert applied.coverage.trained == sum(counts[n] for n in applied.trainable)

    empty = apply_method(load(folder, task, chosen, empty=True).model, chosen, task=task)
    assert empty.trainable == applied.trainable
    assert empty.coverage == applied.coverage

    inputs = batch(loaded)
    model.eval()
    loss(model, inputs, task)  # 8-bit layers settle their buffers at the first call
    before = all_tensors(model)
    step(model, inputs, task)
    # LoRA's A has no gradient while B is zero: it takes a second step.
    step(model, inputs, task)
    after = all_tensors(model)
    moved = {n for n in after if not torch.equal(before[n], after[n])}
    assert moved <= applied.trainable
    # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
    assert {n for n in applied.trainable - moved if not n.endswith("key.bias")} == set()


@pytest.mark.parametrize(
    ("family", "task", "name"),
    [c for c in COMBINATIONS if c != TIED_HEAD and c[2] in ("last_n", "lora", "full")],
)
def test_checkpointing_with_frozen_inputs_gives_the_same_gradients(
    tiny_checkpoint: Tiny, family: str, task: str, name: str
) -> None:
    folder, chosen = tiny_checkpoint(family, FOLDER_TASK[task]), method(name, **METHODS[name])
    gradients = []
    for checkpointing in (False, True):
        loaded = load(folder, task, chosen)
        model: Any = apply_method(loaded.model, chosen, task=task).model
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        loss(model, batch(loaded), task).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    plain, checkpointed = gradients
    assert any(g is not None and g.abs().sum() > 0 for g in plain.values())
    for name_, gradient in plain.items():
        other = checkpointed[name_]
        assert (gradient is None) == (other is None), name_
        if gradient is not None and other is not None:
            torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["head", "last_n", "lora", "full"])
def test_trainable_tensors_of_a_16bit_base_are_fp32(tiny_checkpoint: Tiny, name: str) -> None:
    folder, chosen = tiny_checkpoint("llama", "causal"), method(name, **METHODS[name])
    model = load(folder, CAUSAL, chosen).model.to(torch.bfloat16)
    applied = apply_method(model, chosen, task=CAUSAL)
    for parameter_name, parameter in applied.model.named_parameters():
        trains = parameter_name in applied.trainable
        assert parameter.dtype is (torch.float32 if trains else torch.bfloat16), parameter_name


def test_a_widened_tied_weight_stays_tied(tiny_checkpoint: Tiny) -> None:
    chosen = method("full")
    model: Any = load(tiny_checkpoint("gpt2", "causal"), CAUSAL, chosen).model.to(torch.bfloat16)
    apply_method(model, chosen, task=CAUSAL)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.dtype is torch.float32


@pytest.mark.parametrize("task", [CLASSIFICATION, CAUSAL])
def test_a_frozen_base_stays_in_eval_mode(tiny_checkpoint: Tiny, task: str) -> None:
    chosen = method("head", pooling="model")
    folder = tiny_checkpoint("llama" if task == CAUSAL else "bert", FOLDER_TASK[task])
    model: Any = apply_method(load(folder, task, chosen).model, chosen, task=task).model
    model.train()
    base = model.model if task == CAUSAL else model.bert
    assert model.training
    assert not any(module.training for module in base.modules())
    if task == CLASSIFICATION:
        assert model.dropout.training, "the head's own dropout trains as usual"


def test_more_blocks_than_there_are(tiny_checkpoint: Tiny) -> None:
    chosen = method("last_n", n=3)
    model = load(tiny_checkpoint("bert"), CLASSIFICATION, chosen).model
    with pytest.raises(ConfigError, match=r"method\.n is 3, but .* has 2 blocks"):
        apply_method(model, chosen, task=CLASSIFICATION)


def test_a_tied_head_stays_frozen_under_last_n_aloud(tiny_checkpoint: Tiny) -> None:
    chosen = method("last_n", n=1)
    model = load(tiny_checkpoint("gpt2", "causal"), CAUSAL, chosen).model
    applied = apply_method(model, chosen, task=CAUSAL)
    assert applied.notes == (
        "lm_head is tied to the input embeddings and stays frozen under last_n",
    )
    assert "transformer.wte.weight" not in applied.trainable


def test_freeze_refuses_what_cannot_train() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(CheckFailed, match="nothing of Linear would train"):
        freeze(model, frozenset())
    with pytest.raises(CheckFailed, match="no parameter named wieght"):
        freeze(model, frozenset({"wieght"}))
    whole = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    model.weight = whole
    with pytest.raises(CheckFailed, match=r"weight is torch\.int8"):
        freeze(model, frozenset({"weight"}))


def test_one_file_writes_requires_grad() -> None:
    """Any assignment to it, and any call of `requires_grad_` but on a tensor just detached."""
    writer = Path(peftlab.methods.freeze.__file__)
    found = []
    for path in sorted(writer.parent.parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else []
            assigned = any(
                isinstance(t, ast.Attribute) and t.attr == "requires_grad" for t in targets
            )
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if called and node.func.attr == "requires_grad_":
                assigned |= "detach()" not in ast.unparse(node.func.value)
            if assigned:
                found.append(path)
    assert set(found) == {writer}
