"""Each key of LoRA does what it says, and what would do nothing is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftlab.config import config_from_mapping
from peftlab.errors import CheckFailed, ConfigError
from peftlab.methods.apply import apply_method, load_trained, method_of, save_trained
from peftlab.methods.low_rank.decomposed import lora_layers
from peftlab.methods.method import Applied
from tests.methods.common import CAUSAL, CLASSIFICATION, batch, load, method, step

Tiny = Callable[..., Path]
PREFIX = "base_model.model."


@pytest.fixture
def applied(tiny_checkpoint: Tiny) -> Callable[..., Applied]:
    """`applied(family, **settings)`: rank 4 on a fresh tiny model."""

    def make(family: str = "llama", *, tied: bool = False, **settings: Any) -> Applied:
        causal = family != "bert"
        cfg = {"tie_word_embeddings": True} if tied else {}
        folder = tiny_checkpoint(family, "causal" if causal else "classification", **cfg)
        task = CAUSAL if causal else CLASSIFICATION
        chosen = method("lora", **({"r": 4, "alpha": 8, "dropout": 0.0} | settings))
        return apply_method(load(folder, task, chosen).model, chosen, task=task)

    return make


def layers(applied: Applied) -> dict[str, Any]:
    return {n.removeprefix(PREFIX): m for n, m in lora_layers(applied.model).items()}


def saved(applied: Applied, run: Path) -> dict[str, torch.Tensor]:
    return load_file(save_trained(applied, run) / "adapter_model.safetensors")


def again(applied: Applied, tiny_checkpoint: Tiny, family: str, run: Path, **cfg: Any) -> None:
    """What was saved loads onto a fresh base and answers the same."""
    causal = family != "bert"
    folder = tiny_checkpoint(family, "causal" if causal else "classification", **cfg)
    base = load(folder, applied.task, applied.method, seed=3)
    inputs = batch(base)
    with torch.no_grad():
        want = applied.model.eval()(**inputs).logits
        found = load_trained(base.model, applied.method, run, task=applied.task)
        assert torch.equal(found.model.eval()(**inputs).logits, want)


def trained(applied: Applied, tiny_checkpoint: Tiny, family: str, **cfg: Any) -> None:
    causal = family != "bert"
    folder = tiny_checkpoint(family, "causal" if causal else "classification", **cfg)
    step(applied.model, batch(load(folder, applied.task, applied.method)), applied.task, 0.01)


def test_patterns_give_layers_their_ranks_and_alphas(applied: Callable[..., Applied]) -> None:
    found = layers(
        applied(
            rank_pattern={"q_proj": 2, r"layers\.1\..*": 3}, alpha_pattern={r"self_attn\.v_proj": 5}
        )
    )
    for name, layer in found.items():
        rank = 2 if "q_proj" in name else 3 if "layers.1." in name else 4
        assert layer.r["default"] == rank
        assert layer.scaling["default"] == (5 if "v_proj" in name else 8) / rank


def test_layers_are_chosen_by_expression_block_and_exclusion(
    applied: Callable[..., Applied],
) -> None:
    everything = set(layers(applied()))
    first = {name for name in everything if ".0." in name}
    assert set(layers(applied(layers_to_transform=0))) == first
    assert set(layers(applied(layers_to_transform=[0], layers_pattern="layers"))) == first
    queries = {name for name in everything if name.endswith("q_proj")}
    assert set(layers(applied(target_modules=r".*\.q_proj"))) == queries
    assert set(layers(applied(exclude_modules=["q_proj"]))) == everything - queries
    assert set(layers(applied(exclude_modules=r"model\.layers\.1\..*"))) == first


def test_biases_that_train(
    applied: Callable[..., Applied], tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    every = applied("bert", bias="all", target_modules=["query"])
    only = applied("bert", bias="lora_only", target_modules=["query"])
    names = {n for n in every.trainable if n.endswith(".bias") and "classifier" not in n}
    model = every.model.get_base_model()
    assert len(names) == sum(
        name.endswith(".bias") and "classifier" not in name for name, _ in model.named_parameters()
    )
    query = {f"{name}.base_layer.bias" for name in lora_layers(only.model)}
    assert {n for n in only.trainable if n.endswith("base_layer.bias")} == query
    for number, made in enumerate((every, only)):
        trained(made, tiny_checkpoint, "bert")
        keys = saved(made, tmp_path / str(number))
        assert not [key for key in keys if "modules_to_save" in key or "original_module" in key]
        assert f"{PREFIX}bert.encoder.layer.0.attention.self.query.base_layer.bias" in keys
        again(made, tiny_checkpoint, "bert", tmp_path / str(number))


def test_a_bias_on_b(
    applied: Callable[..., Applied], tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    made = applied("bert", lora_bias=True)
    trained(made, tiny_checkpoint, "bert")
    keys = saved(made, tmp_path)
    biases = [key for key in keys if key.endswith("lora_B.bias")]
    assert len(biases) == len(layers(made))
    assert all(keys[key].any() for key in biases)
    again(made, tiny_checkpoint, "bert", tmp_path)
    assert "never merged" in applied(lora_bias=True).notes[-1]


def test_ties_are_kept(
    applied: Callable[..., Applied], tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    made = applied(tied=True, ensure_weight_tying=True, modules_to_save=["embed_tokens"])
    trained(made, tiny_checkpoint, "llama", tie_word_embeddings=True)
    keys = saved(made, tmp_path)
    table = keys[f"{PREFIX}model.embed_tokens.weight"]
    assert torch.equal(table, keys[f"{PREFIX}lm_head.weight"])
    again(made, tiny_checkpoint, "llama", tmp_path, tie_word_embeddings=True)
    with pytest.raises(CheckFailed, match=r"set method\.ensure_weight_tying: true"):
        applied(tied=True, modules_to_save=["embed_tokens"])


@pytest.mark.parametrize("rows", [[5, 6], {"embed_tokens": [5, 6], "lm_head": [7]}])
def test_rows_of_embeddings_train(
    applied: Callable[..., Applied], tiny_checkpoint: Tiny, tmp_path: Path, rows: Any
) -> None:
    made = applied(trainable_token_indices=rows, target_modules=["q_proj"])
    trained(made, tiny_checkpoint, "llama")
    keys = {k: v for k, v in saved(made, tmp_path).items() if "trainable_tokens_delta" in k}
    assert sorted(len(v) for v in keys.values()) == ([1, 2] if isinstance(rows, dict) else [2])
    again(made, tiny_checkpoint, "llama", tmp_path)


def test_rows_of_a_task_and_of_the_key_train_together(tiny_checkpoint: Tiny) -> None:
    folder = tiny_checkpoint("bert")
    for rows in ([5, 9], {"word_embeddings": [5, 9]}):
        chosen = method("lora", r=2, trainable_token_indices=rows)
        model = load(folder, CLASSIFICATION, chosen).model
        found: Any = apply_method(model, chosen, task=CLASSIFICATION, tokens=(9, 7)).model
        said = found.active_peft_config.trainable_token_indices
        assert [5, 7, 9] in (said, *(said.values() if isinstance(said, dict) else ()))


def test_single_parameters_are_adapted(
    applied: Callable[..., Applied], tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    made = applied(target_modules=[], target_parameters=["q_proj.weight"], init_lora_weights=False)
    assert len(made.trainable) == 4
    assert all(".q_proj.lora_" in name for name in made.trainable)
    saved(made, tmp_path)
    again(made, tiny_checkpoint, "llama", tmp_path)


def test_experts_are_adapted(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
            num_experts_per_tok=2,
        )
    )  # fmt: skip
    chosen = method(
        "lora", r=2, dropout=0.0, target_modules=["q_proj"],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        rank_pattern={"down_proj": 4},
    )  # fmt: skip
    made = apply_method(model, chosen, task=CAUSAL)
    shapes = {tuple(made.model.get_parameter(n).shape) for n in made.trainable if "lora_A" in n}
    assert shapes == {(2, 16), (2 * 3, 16), (4 * 3, 24)}
    (row,) = [row for row in made.coverage.rows if row.pattern.endswith("mlp.experts")]
    assert (row.how, row.trained > 0) == ("adapter", True)
    keys = saved(made, tmp_path)
    assert len(keys) == 6


@pytest.mark.parametrize("ratio", [None, 16.0])
def test_b_has_its_own_learning_rate(applied: Callable[..., Applied], ratio: float | None) -> None:
    from peftlab.training.parameter_groups import set_learning_rates

    made = applied("bert", bias="lora_only", loraplus_lr_ratio=ratio)
    rates = method_of(made.method).learning_rates(made, 1e-3)
    fast = {n for n in made.trainable if ".lora_B." in n or n.endswith(".bias")}
    assert set(rates) == (fast if ratio else set())
    parameters = {id(p): n for n, p in made.model.named_parameters()}
    mine = [p for p in made.model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in mine if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in mine if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    set_learning_rates(optimizer, made.model, rates)
    groups = [dict(group) for group in optimizer.param_groups]
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    set_learning_rates(optimizer, made.model, rates)
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(g["params"]) for g in groups]
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    found = {
        parameters[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found.keys() == made.trainable
    for name, (rate, decay) in found.items():
        assert rate == pytest.approx(1e-3 * (16 if ratio and name in fast else 1))
        assert decay == (0.0 if made.model.get_parameter(name).ndim == 1 else 0.1)
    assert optimizer.param_groups[0]["lr"] == 1e-3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an expression for a suffix": ({"target_modules": "q_proj"}, r"written as a list: \[q_proj\]"),
    "a block that is not there": ({"layers_to_transform": [1, 9]}, "names 9.*blocks 0 to 1"),
    "no such list": (
        {"layers_to_transform": 0, "layers_pattern": "h"}, "layers_pattern is 'h', which numbers"
    ),
    "nothing excluded": ({"exclude_modules": ["self_attn"]}, "'self_attn', which is none"),
    "all excluded": ({"exclude_modules": ".*"}, "leaves out all 14"),
    "a rank for nothing": ({"rank_pattern": {"proj": 2}}, "rank_pattern has 'proj'.*no adapted"),
    "a rank never used": ({"rank_pattern": {".*": 2, "q_proj": 3}}, r"'\.\*' comes first"),
    "an alpha for nothing": ({"alpha_pattern": {"x": 2}}, "alpha_pattern has 'x'"),
    "no bias": ({"bias": "all"}, "it has no bias"),
    "no tie": ({"ensure_weight_tying": True, "modules_to_save": ["lm_head"]}, "no output embeddin"),
    "no such row": ({"trainable_token_indices": [200]}, "names 200, but .* rows 0 to 199"),
    "rows of no table": ({"trainable_token_indices": {"norm": [1]}}, "could be|LlamaRMSNorm"),
    "rows twice": (
        {"trainable_token_indices": {"lm_head": [1]}, "modules_to_save": ["lm_head"]},
        "trains whole",
    ),
    "no such parameter": ({"target_parameters": ["experts"]}, "no parameter of Llama"),
    "a vector": ({"target_parameters": ["norm.weight"]}, r"of shape \(32,\)"),
    "a layer's own": ({"target_parameters": ["q_proj.weight"]}, "has an adapter already"),
    "too few directions": ({"init_lora_weights": "pissa", "r": 20}, "has 16 directions in"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_do_nothing_is_refused(what: str, applied: Callable[..., Applied]) -> None:
    settings, words = REFUSED[what]
    with pytest.raises(CheckFailed, match=words):
        applied(**settings)


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    r"init_lora_weights is loftq.*take method qlora": {"init_lora_weights": "loftq"},
    r"init_lora_weights is corda.*preprocess_corda": {"init_lora_weights": "corda"},
    r"init_lora_weights is lora_ga.*gradients": {"init_lora_weights": "lora_ga"},
    r"layer_replication repeats layers": {"layer_replication": [[0, 1]]},
    r"lora_bias needs init_lora_weights true": {"lora_bias": True, "init_lora_weights": "pissa"},
    r"lora_bias cannot be combined with use_dora": {"lora_bias": True, "use_dora": True},
    r"is mica, which has no form": {"init_lora_weights": "mica", "use_dora": True},
    r"loraplus_lr_ratio is for B": {"init_lora_weights": "mica", "loraplus_lr_ratio": 2.0},
    r"3 is odd": {"init_lora_weights": "orthogonal", "rank_pattern": {"q": 3}},
    r"set method.dropout: 0": {"target_parameters": ["x"]},
    r"layers_to_transform is not set": {"layers_pattern": "h"},
    r"write the layers into the expression": {"target_modules": ".*q", "layers_to_transform": 1},
    r"no regular expression": {"rank_pattern": {"(": 2}},
    r"names nothing": {"target_modules": []},
    r"names 3 twice": {"trainable_token_indices": [3, 3]},
    r"is pissa, which decomposes.*in 8 bits": {"name": "qlora", "init_lora_weights": "pissa"},
    r"weights is null; allowed: true or false, .*, eva or pissa_niter_N\.": {
        "init_lora_weights": None
    },
    r"weights is 1; allowed: true or false, .*, eva or pissa_niter_N\.": {"init_lora_weights": 1},
    r"pissa_niter_x'; allowed: .* or pissa_niter_N": {"init_lora_weights": "pissa_niter_x"},
    r"target_modules is empty; allowed: auto": {"target_modules": ""},
    r"the mapping \{\}, which names no table": {"trainable_token_indices": {}},
    r"megatron_config is for Megatron": {"megatron_config": None},
    r"runtime_config is no part": {"runtime_config": {}},
    r"task_type is what the task says": {"task_type": "CAUSAL_LM"},
    r"fan_in_fan_out is known from the layers": {"fan_in_fan_out": False},
    r"aLoRA's, active after these tokens": {"alora_invocation_tokens": [1]},
    r"use_qalora is for GPTQ's": {"use_qalora": True},
    r"init_from gives the start": {"init_from": "x", "init_lora_weights": "eva"},
}


@pytest.mark.parametrize("words", CONTRADICTIONS)
def test_keys_that_contradict_each_other_are_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_from_mapping(
            {
                "model": {"name": "m"}, "task": "causal-lm", "data": {"source": "d"},
                "method": {"name": "lora"} | CONTRADICTIONS[words],
            }
        )  # fmt: skip


def test_the_file_on_disk_says_names_that_any_reader_takes_alike(
    applied: Callable[..., Applied], tmp_path: Path
) -> None:
    folder = save_trained(applied(layers_to_transform=1, exclude_modules=["q_proj"]), tmp_path)
    said = json.loads((folder / "adapter_config.json").read_text())
    assert said["layers_to_transform"] is said["exclude_modules"] is None
    assert all("layers.1." in name and "q_proj" not in name for name in said["target_modules"])
