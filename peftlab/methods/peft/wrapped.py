"""What PEFT's wrapped models need before they are trained, by type of adapter."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.methods.adapter_files import ADAPTER_NAME
from peftlab.methods.peft.types import CACHES, PROMPTS

_SHADOWED = {"CAUSAL_LM", "SEQ_CLS"}
# FEATURE_EXTRACTION: what answers questions, see `task_kind.peft_type`.
_CUT = {"CAUSAL_LM", "TOKEN_CLS", "FEATURE_EXTRACTION"}


def refuse_task(peft_type: str, task_type: str, model: nn.Module) -> None:
    """Raise `CheckFailed` where a type computes something else than the task means."""
    if peft_type == "SHADOW" and task_type not in _SHADOWED:
        raise CheckFailed(
            "method.peft_type is SHADOW, whose own loss is of next tokens or of a row's class, and "
            f"{type(model).__name__} predicts neither; take another type."
        )
    config: Any = model.config
    odd_decoder = config.is_encoder_decoder and task_type != "SEQ_2_SEQ_LM"
    if peft_type in CACHES and (odd_decoder or not _reads_cache(model)):
        raise CheckFailed(
            f"method.peft_type is {peft_type}, whose virtual tokens are a key-value cache, which "
            f"{type(model).__name__} does not read; take another type, such as VERA."
        )
    if peft_type in PROMPTS and odd_decoder and task_type == "FEATURE_EXTRACTION":
        raise CheckFailed(
            f"method.peft_type is {peft_type}, but {type(model).__name__} makes its decoder's "
            "inputs from token ids, which it is not given with virtual tokens; take another type, "
            "such as VERA."
        )
    last_by_id = hasattr(model, "score") or config.is_encoder_decoder
    if peft_type in PROMPTS and task_type == "SEQ_CLS" and last_by_id:
        other = "another type, such as VERA" if odd_decoder else "PREFIX_TUNING or CARTRIDGE"
        raise CheckFailed(
            f"method.peft_type is {peft_type}, but {type(model).__name__} finds a row's last "
            "token by its id, which it is not given with virtual tokens: a row's logits would "
            f"depend on its padding; take {other}."
        )


def _reads_cache(model: nn.Module) -> bool:
    """Whether the model, or what is below its head, has an argument for a key-value cache."""
    parts = (model, getattr(model, "base_model", model))
    return any("past_key_values" in inspect.signature(part.forward).parameters for part in parts)


@contextmanager
def materialised(model: nn.Module, needed: bool) -> Iterator[nn.Module]:
    """The model; one on meta has random weights meanwhile, where they are needed."""
    if not needed or not any(p.is_meta for p in model.parameters()):
        yield model
        return
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                drawn = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                module._parameters[name] = nn.Parameter(drawn, parameter.requires_grad)
    yield model
    model.to("meta")


def reads_no_token_types(adapted: nn.Module) -> bool:
    """Whether PEFT leaves out the token types that a model with virtual tokens knows."""
    model: Any = adapted
    kind = model.active_peft_config.task_type
    return kind == "FEATURE_EXTRACTION" and getattr(model.config, "type_vocab_size", 0) > 1


def prepare_wrapped(adapted: PeftModel, peft_type: str, task_type: str) -> None:
    """Make a wrapped model's outputs and gradients what they are meant to be."""
    if peft_type in PROMPTS and task_type in _CUT:
        adapted.register_forward_hook(_without_virtual_tokens)
    if peft_type == "OSF":
        # PEFT's cast to fp32 replaces the parameters that the projections of gradients hang on.
        for module in adapted.modules():
            layer: Any = module
            if hasattr(layer, "_attach_hooks") and hasattr(layer, "_detach_hooks"):
                layer._detach_hooks()
                layer._attach_hooks(ADAPTER_NAME)


def _without_virtual_tokens(model: nn.Module, _: Any, output: Any) -> Any:
    """Logits of the row's own tokens: each has its place, whichever method trains."""
    config: Any = model.active_peft_config
    count = config.num_virtual_tokens
    for name in ("logits", "start_logits", "end_logits"):
        if (logits := output.get(name)) is not None:
            output[name] = logits[:, count:]
    return output
