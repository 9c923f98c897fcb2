"""Pairs of tiny models for the tests of fp32 activations: 16-bit weights, and the same in fp32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.checkpoints import tiny_config

SIXTEEN = (torch.bfloat16, torch.float16)
HEADS = {
    "bert": "AutoModelForSequenceClassification",
    "gpt2": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
    "llama": "AutoModelForCausalLM",
    "bart": "AutoModelForSeq2SeqLM",
}


def tiny(family: str, dtype: torch.dtype = torch.bfloat16, attention: str = "sdpa",
         **changes: Any) -> Any:  # fmt: skip
    """A random model resting in 16 bits, evaluating, frozen."""
    import transformers

    torch.manual_seed(0)
    if family == "bart":
        config: Any = transformers.BartConfig(
            vocab_size=200, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64,
            decoder_ffn_dim=64, encoder_attention_heads=2, decoder_attention_heads=2,
            max_position_embeddings=64, scale_embedding=True,
        )  # fmt: skip
    else:
        config = tiny_config(family, **changes)
    kind = getattr(transformers, HEADS[family])
    model = kind.from_config(config, attn_implementation=attention)
    # T5 does not scale its attention: with larger weights it saturates, and gradients are noise.
    deviation = 0.05 if family == "t5" else 0.15
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=deviation)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.requires_grad_(False)
    return model.to(dtype).eval()


def adapted(model: Any, **config: Any) -> Any:
    """The model with LoRA on every linear layer, or on what `config` says, that does something."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(1)
    settings = {
        "r": 5,
        "lora_alpha": 7,
        "target_modules": "all-linear",
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in model.modules()),
        "init_lora_weights": False,
    }
    return get_peft_model(model, LoraConfig(**settings | config)).eval()


def in_fp32(model: Any) -> Any:
    """A copy of the model with every tensor in fp32: what is aimed at."""
    return copy.deepcopy(model).float()


def inputs(family: str) -> dict[str, Tensor]:
    """Three rows, padded on the right and, where the family takes that, on the left."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 190, (3, 9), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 3:] = 0
    if family in {"gpt2", "llama"}:
        mask[2] = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    given = {"input_ids": ids * mask, "attention_mask": mask}
    if family == "bert":
        return given | {"labels": torch.tensor([0, 1, 1])}
    return given | {"labels": ids.masked_fill(mask == 0, -100)}


def outcome(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits, loss, and the gradient of every parameter that trains."""
    for parameter in model.parameters():
        parameter.grad = None
    out = model(**given)
    result = {"logits": out.logits.detach(), "loss": out.loss.detach()}
    if out.loss.requires_grad:
        out.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.dtype is parameter.dtype
            result[name] = parameter.grad
    return result


def assert_close(
    result: dict[str, Tensor], expected: dict[str, Tensor], in_16_bits: float = 0.0
) -> None:
    """Logits within 1e-5, gradients within 1e-5 of their norm; those of 16-bit tensors looser."""
    assert result.keys() == expected.keys()
    difference = (result["logits"] - expected["logits"]).abs().max()
    assert difference <= 1e-5 * max(1.0, float(expected["logits"].abs().max()))
    for name, want in expected.items():
        got = result[name]
        assert got.isfinite().all(), name
        tolerance = 1e-5 if got.dtype is torch.float32 else in_16_bits
        error = (got.double() - want.double()).norm()
        assert error <= tolerance * want.double().norm().clamp_min(1e-6), f"{name}: {error}"


class SixteenBitOutputs(list[str]):
    """Names of modules that gave out a 16-bit tensor since `watch`."""

    def watch(self, model: nn.Module) -> SixteenBitOutputs:
        for name, module in model.named_modules():

            def look(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                tensors = (t for t in tree_leaves(output) if isinstance(t, Tensor))
                if any(t.dtype in SIXTEEN for t in tensors):
                    self.append(name)

            module.register_forward_hook(look)
        return self


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that fusing could leave behind: classes, dtypes, bits, hooks, attributes, ties."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers()),
    }
    first: dict[int, str] = {}
    return {
        "classes": [type(module) for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "hooks": [
            sum(len(value) for key, value in vars(module).items() if key.endswith("_hooks"))
            for module in model.modules()
        ],
        "bits": {name: (t.dtype, t.detach().clone()) for name, t in tensors.items()},
        "ties": {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()},
        "trains": {name for name, tensor in tensors.items() if tensor.requires_grad},
    }


def assert_same_state(result: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in ("classes", "attributes", "hooks", "ties", "trains"):
        assert result[part] == expected[part], part
    assert result["bits"].keys() == expected["bits"].keys()
    for name, (dtype, tensor) in expected["bits"].items():
        assert result["bits"][name][0] is dtype, name
        assert torch.equal(result["bits"][name][1], tensor), name
