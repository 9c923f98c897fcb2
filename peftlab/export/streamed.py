"""A model's forward pass with one module's weights in memory at a time, in fp32.

The model has no weights; each module gets its own when it is called, and drops them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from peftlab.export.scratch import Scratch
from peftlab.export.skeleton import Skeleton
from peftlab.model.quiet import quiet_loading
from peftlab.model.structure import logits_of

Weights = Callable[[str], Tensor]
"""A parameter or persistent buffer of the model by name; the next call may overwrite it."""

Layers = Mapping[str, Callable[[], nn.Module]]
"""Factories of the layers that replace modules which do not compute by their own weights."""


@torch.no_grad()
def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """A model's logits for the inputs, in fp32."""
    return logits_of(model(**inputs)).float()


@contextmanager
def streamed(built: Skeleton, weights: Weights, layers: Layers) -> Iterator[nn.Module]:
    """The model in evaluation mode, whose modules get their weights when they are called."""
    model = _with_buffers(built)
    for name, buffer in tuple(model.named_buffers()):
        if buffer.is_meta or name in model.state_dict():
            _set_buffer(model, name, weights(name).clone())
    with _streaming(model, weights, layers):
        yield model


def sample_inputs(built: Skeleton, *, rows: int = 3, length: int = 24) -> dict[str, Tensor]:
    """Random token ids, the same at every call, with one padded row, for any kind of model."""
    config = built.config.get_text_config()
    draw = torch.Generator().manual_seed(0)
    limit = getattr(config, "max_position_embeddings", None) or length
    tokens = max(2, min(length, int(limit) - 2))
    ids = torch.randint(0, int(config.vocab_size), (rows, tokens), generator=draw)
    mask = torch.ones_like(ids)
    mask[-1, tokens // 2 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    pad = getattr(config, "pad_token_id", None)
    if isinstance(pad, int):  # some heads locate a row's end by it
        inputs["input_ids"] = ids.masked_fill(ids == pad, (pad + 1) % int(config.vocab_size))
        inputs["input_ids"][-1, tokens // 2 :] = pad
    elif type(built.model).__name__.endswith("ForSequenceClassification"):
        # Without a padding token some heads take one row at a time.
        inputs = {name: tensor[:1] for name, tensor in inputs.items()}
    classifies = type(built.model).__name__.endswith("ForSequenceClassification")
    end = getattr(config, "eos_token_id", None)
    if _reads_targets(built.model) and classifies and isinstance(end, int):
        # Such heads read a row at its end token, of which every row has one.
        ids, last = inputs["input_ids"], inputs["attention_mask"].sum(dim=1) - 1
        other = next(i for i in range(int(config.vocab_size))[::-1] if i not in (pad, end))
        inputs["input_ids"] = ids.masked_fill(ids == end, other)
        inputs["input_ids"][torch.arange(len(ids)), last] = end
    elif _reads_targets(built.model) and not classifies:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, : max(2, tokens // 2)].clone()
    return inputs


def _reads_targets(model: nn.Module) -> bool:
    """Whether a model has a decoder with inputs of its own."""
    return "decoder_input_ids" in signature(model.forward).parameters


def _with_buffers(built: Skeleton) -> Any:
    """A new copy of the model in evaluation mode, with parameters on meta and real buffers."""
    from accelerate import init_empty_weights

    kind: Any = type(built.model)
    with init_empty_weights(include_buffers=False), quiet_loading():
        made = kind._from_config(built.config, dtype=torch.float32)
    return made.eval()


def _set_buffer(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, last = name.rpartition(".")
    model.get_submodule(owner)._buffers[last] = value


@contextmanager
def _streaming(model: nn.Module, weights: Weights, layers: Layers) -> Iterator[None]:
    handles = []
    lent = _Lent(weights)
    for name, module in model.named_modules():
        own = tuple(module._parameters)
        if name in layers:
            module.forward = _by_layer(layers[name])
        elif any(module._parameters[part] is not None for part in own):
            handles.append(module.register_forward_pre_hook(partial(lent.give, name)))
            handles.append(module.register_forward_hook(lent.take, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_layer(make: Callable[[], nn.Module]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return make()(*args, **kwargs)

    return forward


class _Lent:
    """Gives modules their weights in fp32; modules of one depth share memory."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._scratch = Scratch()
        self._depth = 0

    def give(self, name: str, module: nn.Module, _: Any) -> None:
        self._depth += 1
        for part, parameter in module._parameters.items():
            if parameter is not None:
                stored = self._weights(f"{name}.{part}" if name else part)
                use = f"{self._depth} {part}"
                value = self._scratch.tensor(use, stored.shape, torch.float32).copy_(stored)
                module._parameters[part] = nn.Parameter(value, requires_grad=False)

    def take(self, module: nn.Module, _: Any, output: Any) -> Any:
        self._depth -= 1
        lent = set()
        for part, parameter in module._parameters.items():
            if parameter is not None:
                lent.add(parameter.untyped_storage().data_ptr())
                module._parameters[part] = nn.Parameter(parameter.to("meta"), requires_grad=False)
        # Outputs that are views of the module's weights would be overwritten by the next module.
        return tree_map_only(
            Tensor, lambda t: t.clone() if t.untyped_storage().data_ptr() in lent else t, output
        )
