"""The chunked causal loss equals the plain one, in value and in every gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.tasks.language.loss import chunked_loss, head_blocks
from peftlab.tasks.language.loss.chunked_loss import CausalLoss, plain_loss_sum, prove
from peftlab.tasks.language.loss.hidden_states import base_model, select

SMALL: dict[str, Any] = {
    "vocab_size": 301, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def build(kind: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=301, n_embd=32, n_layer=2, n_head=4, n_positions=64,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **fields
        )  # fmt: skip
    elif kind == "gptj":
        config = transformers.GPTJConfig(
            vocab_size=301, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=8, **fields
        )
    else:
        named = {
            "llama": transformers.LlamaConfig, "gemma2": transformers.Gemma2Config,
            "granite": transformers.GraniteConfig, "cohere": transformers.CohereConfig,
        }  # fmt: skip
        config = named[kind](**{**SMALL, **fields})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Weights large enough for logits that differ, and biases that are not zero.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def with_lora(model: Any, **fields: Any) -> Any:
    settings = {"r": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM", **fields}
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


ATTENTION = ["q_proj", "v_proj"]
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2 tied": lambda: build("gpt2"),
    "llama untied": lambda: build("llama", tie_word_embeddings=False),
    "llama tied": lambda: build("llama", tie_word_embeddings=True),
    "head with bias": lambda: build("gptj"),
    "softcap": lambda: build("gemma2", final_logit_softcapping=5.0, query_pre_attn_scalar=8),
    "lora": lambda: with_lora(build("llama"), target_modules=ATTENTION),
    "lora on gpt2": lambda: with_lora(build("gpt2"), target_modules=["c_attn"],
                                      fan_in_fan_out=True),
    "lora on the head": lambda: with_lora(build("llama"), target_modules=[*ATTENTION, "lm_head"]),
    "dora on the head": lambda: with_lora(build("llama"), target_modules=["q_proj", "lm_head"],
                                          use_dora=True),
    "saved head": lambda: with_lora(build("llama"), target_modules=ATTENTION,
                                    modules_to_save=["lm_head"]),
}  # fmt: skip


def batch_of(masked: tuple[int, ...] = (), rows: int = 3, length: int = 21) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 301, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, :5] = -100
    labels[1, 9:] = -100
    labels[list(masked)] = -100
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (loss * 0.37).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model: nn.Module, batch: dict[str, Any], mode: str = "chunked") -> None:
    loss = CausalLoss(mode)  # type: ignore[arg-type]
    chunked = loss.loss_sum(model, batch)
    plain = plain_loss_sum(model, batch)
    torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-6)
    got, expected = gradients(model, chunked), gradients(model, plain)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().clamp_min(1e-3)
        assert float((got[name] - gradient).abs().max() / scale) < 1e-5, name


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_blocks, "BLOCK_TOKENS", 7)
    monkeypatch.setattr(head_blocks, "_BLOCK_LOGITS", 1)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", MODELS)
def test_equal_to_plain(kind: str) -> None:
    assert_same(MODELS[kind](), batch_of())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["llama untied", "gpt2 tied", "lora on the head"])
def test_equal_without_the_fused_operator(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    assert_same(MODELS[kind](), batch_of())


@pytest.mark.parametrize("kind", MODELS)
def test_which_kernel(kind: str) -> None:
    model = MODELS[kind]()
    kernel = chunked_loss._kernel(select(model, batch_of()))
    bare = kind in ("gpt2 tied", "llama untied", "llama tied", "lora", "lora on gpt2")
    assert kernel == ("torch" if bare and hasattr(nn, "LinearCrossEntropyOptions") else "blocks")


def test_equal_to_the_models_own_loss() -> None:
    model, batch = MODELS["llama untied"](), batch_of()
    own = model(**batch).loss * (batch["labels"][:, 1:] != -100).sum()
    torch.testing.assert_close(CausalLoss("chunked").loss_sum(model, batch), own)


@pytest.mark.parametrize("kind", ["llama untied", "lora on the head", "softcap", "saved head"])
@pytest.mark.parametrize("mode", ["plain", "auto", "chunked"])
def test_all_masked_is_zero(kind: str, mode: str) -> None:
    model, loss = MODELS[kind](), CausalLoss(mode)  # type: ignore[arg-type]
    masked, some = batch_of(masked=(0, 1, 2)), batch_of(masked=(0,))
    for batch in (masked, some, masked):  # before and after the proof
        value = loss.loss_sum(model, batch)
        assert value.dtype == torch.float32
        assert (float(value.detach()) == 0.0) == (batch is masked)
        for name, gradient in gradients(model, value).items():
            assert torch.isfinite(gradient).all(), name
            assert batch is some or not gradient.any(), name


@pytest.mark.parametrize("kind", ["granite", "cohere"])
def test_scaled_logits_are_detected(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    scale = {"granite": {"logits_scaling": 4.0}, "cohere": {"logit_scale": 0.25}}[kind]
    model, batch = build(kind, **scale), batch_of()
    with caplog.at_level(logging.WARNING, "peftlab"):
        assert_same(model, batch, "auto")
    assert "plain loss instead of" in caplog.text
    assert "changes its logits after the head" in caplog.text
    with pytest.raises(CheckFailed, match=r"train\.loss=chunked cannot be used"):
        CausalLoss("chunked").loss_sum(model, batch)
    losses, correct = CausalLoss().score(model, batch)
    torch.testing.assert_close(losses.sum().float(), plain_loss_sum(model, batch).detach())
    assert correct.shape == (3,)


def test_a_model_that_always_computes_all_logits() -> None:
    class Stubborn(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, use_cache=None):  # type: ignore
            return super().forward(input_ids, attention_mask, use_cache=use_cache)

    model = Stubborn(transformers.LlamaConfig(**SMALL))
    assert prove(model, batch_of()).reason == "Stubborn always computes all logits"
    assert_same(model, batch_of(), "auto")


def test_hooks_and_replaced_forwards_of_the_head_count() -> None:
    hooked, replaced = MODELS["llama untied"](), MODELS["llama untied"]()
    for model in (hooked, replaced):
        loss = CausalLoss("chunked")
        before = loss.loss_sum(model, batch_of()).detach()
        if model is hooked:
            model.lm_head.register_forward_hook(lambda _m, _i, output: output * 0.5)
        else:
            forward = model.lm_head.forward
            model.lm_head.forward = lambda x, forward=forward: forward(x) * 0.5
        after = loss.loss_sum(model, batch_of())  # proved earlier, without the change
        torch.testing.assert_close(after, plain_loss_sum(model, batch_of()), rtol=1e-5, atol=1e-6)
        assert abs(float(after.detach() - before)) > 0.1


@pytest.mark.parametrize("kind", ["llama untied", "lora", "lora on the head"])
def test_gradient_checkpointing(kind: str) -> None:
    model = MODELS[kind]()
    base = base_model(model)
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    model.train()
    assert_same(model, batch_of())


def test_dropout_of_an_adapted_head_is_drawn_once() -> None:
    model = with_lora(build("llama"), target_modules=["lm_head"], lora_dropout=0.5)
    model.train()
    loss = CausalLoss("chunked")
    loss.loss_sum(model, batch_of())  # the proof
    assert model.training
    torch.manual_seed(1)
    chunked = loss.loss_sum(model, batch_of())
    torch.manual_seed(1)
    chosen = select(model, batch_of())
    logits = chosen.head.logits(chosen.hidden)
    expected = torch.nn.functional.cross_entropy(logits, chosen.labels, reduction="sum")
    torch.testing.assert_close(chunked, expected, rtol=1e-5, atol=1e-6)
    got, wanted = gradients(model, chunked), gradients(model, expected)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_proof_leaves_modes_and_random_numbers_alone() -> None:
    model = with_lora(
        build("gpt2"), target_modules=["c_attn"], lora_dropout=0.3, fan_in_fan_out=True
    )
    model.train()
    model.base_model.model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert prove(model, batch_of()).reason is None
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["llama tied", "lora on the head"])
def test_autocast_inside_the_models_forward(kind: str) -> None:
    """Wrapped as by accelerate: the head's blocks run in the same arithmetic as the model."""
    model, batch = MODELS[kind](), batch_of()
    plain_forward = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return plain_forward(*args, **kwargs)

    model.forward = forward
    chosen = select(model, batch)
    assert chosen.head.autocast == torch.bfloat16
    chunked, plain = CausalLoss("chunked").loss_sum(model, batch), plain_loss_sum(model, batch)
    torch.testing.assert_close(chunked, plain, rtol=2e-3, atol=0)
    got, expected = gradients(model, chunked), gradients(model, plain)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((got[name] - gradient).norm() / gradient.norm().clamp_min(1e-3)) < 0.02, name


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", ["gpt2 tied", "softcap", "lora on the head"])
def test_scores_by_row(kind: str) -> None:
    model, batch = MODELS[kind]().eval(), batch_of(masked=(0,))
    losses, correct = CausalLoss().score(model, batch)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, reduction="none"
    ).sum(dim=1)
    torch.testing.assert_close(losses.float(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(correct, (logits.argmax(-1) == labels).sum(dim=1))
    assert float(losses[0]) == 0


def test_all_logits_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    model, batch = MODELS["lora on the head"](), batch_of(rows=40, length=60)
    loss = CausalLoss("chunked")
    loss.loss_sum(model, batch)
    monkeypatch.setattr(head_blocks, "_BLOCK_LOGITS", 1)
    monkeypatch.setattr(head_blocks, "BLOCK_TOKENS", 100)
    base_model(model).lm_head.register_forward_hook(
        lambda _m, _i, y: seen.append(y[..., 0].numel())
    )
    loss.loss_sum(model, batch).backward()
    loss.score(model, batch)
    assert sorted(seen)[:2] == [0, 0]  # the model's own calls
    assert max(seen) == 100
    assert sum(seen) == 2 * int((batch["labels"][:, 1:] != -100).sum())
