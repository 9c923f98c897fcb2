"""What the fusion tests share: one adapted layer, tiny models, and a comparison with PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

K, N, R = 37, 63, 5
SHAPE = (2, 3, K)

Outcome = dict[str, Tensor]


class OneLayer(nn.Module):
    """A model of one linear layer, `[..., K] -> [..., N]`."""

    def __init__(self, kind: str = "linear", *, bias: bool = True) -> None:
        super().__init__()
        self.layer = Conv1D(N, K) if kind == "conv1d" else nn.Linear(K, N, bias=bias)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        y: Tensor = self.layer(x, **kwargs)
        return y


def adapted(
    kind: str = "linear",
    dtype: torch.dtype = torch.float64,
    *,
    bias_of_base: bool = True,
    cast_adapters: bool = True,
    **config: Any,
) -> Any:
    """A PEFT model of one layer whose adapter does something."""
    torch.manual_seed(0)
    settings = {
        "r": R,
        "lora_alpha": 7,
        "target_modules": ["layer"],
        "fan_in_fan_out": kind == "conv1d",
        "init_lora_weights": False,
    }
    base = OneLayer(kind, bias=bias_of_base).to(dtype)
    return get_peft_model(
        base, LoraConfig(**settings | config), autocast_adapter_dtype=cast_adapters
    )


def layer_of(model: nn.Module) -> Any:
    """The first LoRA layer of a model."""
    return next(module for module in model.modules() if isinstance(module, LoraLayer))


def outcome(
    model: nn.Module, x: Tensor | None = None, *, shape: tuple[int, ...] = SHAPE, **kwargs: Any
) -> Outcome:
    """The output of a model of one layer, and the gradients of its input and parameters."""
    if x is None:
        x = some_input(shape, next(model.parameters()).dtype)
    x = x.detach().clone().requires_grad_()
    y = model(x, **kwargs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if y.requires_grad:
        y.backward(dy.to(y))
    return {"y": y.detach()} | ({} if x.grad is None else {"x": x.grad}) | gradients(model)


def some_input(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def gradients(model: nn.Module) -> Outcome:
    """The gradients of a model's parameters by name, which are cleared."""
    result = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    return result


def assert_same(result: Outcome, expected: Outcome, tolerance: float = 1e-13) -> None:
    """Equal in names, shapes, dtypes and, up to a relative Frobenius error, in values.

    A tolerance of 0 asks for equal bits.
    """
    assert result.keys() == expected.keys()
    for name, want in expected.items():
        got = result[name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        assert got.isfinite().all(), name
        if tolerance:
            error = (got.double() - want.double()).norm()
            assert error <= tolerance * want.double().norm(), f"{name}: {error}"
        else:
            assert torch.equal(got, want), name


def model_outcome(model: nn.Module, inputs: Mapping[str, Tensor]) -> Outcome:
    """Loss, logits and every gradient of a Transformers model."""
    out: Any = model(**inputs)
    if out.loss.requires_grad:
        out.loss.backward()
    return {"loss": out.loss.detach(), "logits": out.logits.detach()} | gradients(model)


def tiny(family: str, dtype: torch.dtype = torch.float64) -> Any:
    """A tiny random Transformers model without dropout of its own."""
    import transformers as t

    torch.manual_seed(0)
    small: dict[str, Any]
    if family == "bert":
        small = {"intermediate_size": 48, "num_attention_heads": 4, "num_labels": 3}
        small |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = t.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, **small)
        model = t.BertForSequenceClassification(config)
    elif family == "gpt2":
        small = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "n_positions": 32}
        config = t.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, **small)
        model = t.GPT2LMHeadModel(config)
    elif family == "t5":
        small = {"num_heads": 4, "vocab_size": 50, "decoder_start_token_id": 0}
        small |= {"dropout_rate": 0.0}
        config = t.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, **small)
        model = t.T5ForConditionalGeneration(config)
    else:
        small = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
        config = t.LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, **small)
        model = t.LlamaForCausalLM(config)
    return model.to(dtype)


def adapted_tiny(
    family: str, dtype: torch.dtype = torch.float64, *, cast_adapters: bool = True, **config: Any
) -> Any:
    """`tiny` with LoRA on every linear layer, or on what `config` says; training."""
    settings = {
        "r": R,
        "lora_alpha": 7,
        "target_modules": "all-linear",
        "fan_in_fan_out": family == "gpt2",
        "init_lora_weights": False,
    }
    model: Any = get_peft_model(
        tiny(family, dtype), LoraConfig(**settings | config), autocast_adapter_dtype=cast_adapters
    )
    return model.train()


def batch(family: str) -> dict[str, Tensor]:
    """Three padded rows with labels."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (3, 7), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 3:] = 0
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    if family == "bert":
        return inputs | {"labels": torch.tensor([0, 2, 1])}
    return inputs | {"labels": ids.masked_fill(mask == 0, -100)}
