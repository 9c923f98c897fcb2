"""Loading a model with the head that its task needs, or its shapes alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.model import quantized
from peftlab.model.checkpoint import Checkpoint, read_checkpoint_config, tensor_shapes
from peftlab.model.head_spec import CAUSAL, LANGUAGE_MODELS, check_architecture
from peftlab.model.keys import check_keys, expected_fresh
from peftlab.model.own_labels import own_labels, renew_head
from peftlab.model.pooling import Pooling, choose_pooling
from peftlab.model.precision import DType, Precision, choose_precision, training_device
from peftlab.model.quiet import quiet_loading
from peftlab.model.structure import mark_fresh
from peftlab.model.ties import untie_stored
from peftlab.model.tokenizer import fit_to_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftlab.model.head_spec import HeadSpec

__all__ = [
    "LoadedModel",
    "load_model",
    "load_tokenizer",
    "read_checkpoint_config",
]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode with its tokenizer.

    `name` is the folder's absolute path or the hub id, `revision` the hub's commit; `at_rest` is
    the dtype of its frozen tensors, `compute` that of the arithmetic; `notes` are sentences for
    the user; `max_length_limit` counts tokens; `pooling` is set where the head pools
    token features itself.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None
    at_rest: torch.dtype
    compute: torch.dtype
    notes: tuple[str, ...]
    hidden_size: int
    max_length_limit: int | None
    pooling: Pooling | None = None
    own_labels: tuple[str, ...] | None = None
    """The label names of the checkpoint, in the order of its own head; None without such names."""

    @property
    def fp32_activations(self) -> bool:
        """Whether the model must be fused with fp32 activations before it computes."""
        return Precision(self.at_rest, self.compute).fp32_activations


def load_model(
    name: str,
    head: HeadSpec,
    *,
    weights: bool = True,
    revision: str | None = None,
    dtype: DType = "auto",
    trust_remote_code: bool = False,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    pooling: Pooling | None = None,
    fp32_at_rest: bool = False,
    new_head: bool = False,
) -> LoadedModel:
    """Load a local folder or hub id, on the CPU (with 8- or 4-bit layers: on the training device).

    `weights=False` gives the same model on the meta device: names, shapes and dtypes, and no weight
    is read. `load_in_8bit` quantizes the blocks' linear layers to int8 rows as they are read, or
    takes those of an 8-bit checkpoint; `load_in_4bit` uses bitsandbytes' NF4.
    `pooling` builds a `PooledClassifier` on the bare base, unless it resolves to `model`. A head
    that the checkpoint lacks is drawn from torch's generator: seed it first.
    `new_head` draws a new head although the checkpoint has one.
    `fp32_at_rest` widens 16-bit weights as they are loaded where the arithmetic is fp32.
    Raises `CheckFailed` where the checkpoint cannot be used, `ConfigError` for impossible settings.
    """
    request = _Request(
        name, head, revision, dtype, trust_remote_code, load_in_8bit, load_in_4bit, pooling,
        fp32_at_rest, new_head,
    )  # fmt: skip
    return _build(request, weights=weights)


@dataclass(frozen=True, slots=True)
class _Request:
    name: str
    head: HeadSpec
    revision: str | None
    dtype: DType
    trust_remote_code: bool
    load_in_8bit: bool
    load_in_4bit: bool
    pooling: Pooling | None
    fp32_at_rest: bool
    new_head: bool


@dataclass(frozen=True, slots=True)
class _Source:
    """Everything that building the model needs, known before a weight is read."""

    checkpoint: Checkpoint
    precision: Precision
    config: Any
    auto_class: Any
    arguments: dict[str, Any]
    trust_remote_code: bool


def _build(request: _Request, *, weights: bool) -> LoadedModel:
    if request.load_in_4bit:
        quantized.require_bitsandbytes()
    checkpoint = read_checkpoint_config(
        request.name, revision=request.revision, trust_remote_code=request.trust_remote_code
    )
    if checkpoint.in_8bit and not request.load_in_8bit:
        raise CheckFailed(
            f"{request.name} has its weights in 8 bits, over which only adapters train: set "
            "method.name=qlora with method.bits=8, or give the original checkpoint."
        )
    precision = choose_precision(
        request.dtype, checkpoint.at_rest, training_device(), fp32_at_rest=request.fp32_at_rest
    )
    pooling = None if request.pooling is None else choose_pooling(request.pooling, checkpoint)
    pooling = None if pooling == "model" else pooling
    tokenizer = load_tokenizer(
        checkpoint.name,
        revision=checkpoint.revision,
        trust_remote_code=request.trust_remote_code,
    )
    source = _source(request, checkpoint, precision, pooling)
    model, notes = (_load if weights else _sketch)(source, request)
    if request.new_head and pooling is None and request.head.auto_class not in LANGUAGE_MODELS:
        notes = (*notes, *renew_head(model))
    if pooling is not None:
        from peftlab.model.heads import PooledClassifier

        model = PooledClassifier(model, pooling, int(source.config.num_labels))
        mark_fresh(model, ("head.weight", "head.bias"))
        notes = (*notes, f"the head is a linear layer on features pooled by: {pooling}")
    notes = (*precision.notes, *notes, *fit_to_model(tokenizer, model, request.name))
    _set_generation_tokens(model, tokenizer)
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        name=checkpoint.name,
        revision=checkpoint.revision,
        at_rest=precision.at_rest,
        compute=precision.compute,
        notes=notes,
        hidden_size=checkpoint.hidden_size,
        max_length_limit=checkpoint.max_length_limit,
        pooling=pooling,
        own_labels=own_labels(checkpoint.config),
    )


def _source(
    request: _Request, checkpoint: Checkpoint, precision: Precision, pooling: Pooling | None
) -> _Source:
    import transformers

    config = copy.deepcopy(checkpoint.config)
    # Otherwise Transformers loads an 8-bit checkpoint by bitsandbytes.
    vars(config).pop("quantization_config", None)
    for key, value in request.head.config.items():
        setattr(config, key, copy.deepcopy(value))
    arguments: dict[str, Any] = {}
    kind = request.head.auto_class
    check_architecture(request.name, config, kind)
    if kind != CAUSAL:
        config.use_cache = False
    if pooling is not None:
        kind = "AutoModelForTextEncoding" if config.is_encoder_decoder else "AutoModel"
    auto_class = getattr(transformers, kind)
    if type(config) not in auto_class._model_mapping and not getattr(config, "auto_map", None):
        raise CheckFailed(
            f"{request.name} ({config.model_type}) has no {kind} in Transformers, which this task "
            "needs; choose another model."
        )
    if pooling is not None and _has_optional_pooler(auto_class._model_mapping, config):
        arguments["add_pooling_layer"] = False
    return _Source(checkpoint, precision, config, auto_class, arguments, request.trust_remote_code)


def _has_optional_pooler(mapping: Any, config: Any) -> bool:
    """Whether the base can be built without the pooler, which is not needed."""
    from inspect import signature

    kind = mapping.get(type(config), None)
    return kind is not None and "add_pooling_layer" in signature(kind.__init__).parameters


def _sketch(source: _Source, request: _Request) -> tuple[nn.Module, tuple[str, ...]]:
    """The model on meta, with the quantised layers and new parameters that loading gives.

    A layer that loading cannot quantise is in 8 bits here: only its weights would show it.
    """
    model = _on_meta(source)
    untie_stored(model, source.checkpoint.files)
    known = tensor_shapes(source.checkpoint.files)
    if known:
        mark_fresh(model, expected_fresh(model, known))
    if request.load_in_8bit:
        stored = known if known and source.checkpoint.in_8bit else None
        quantized.put_in_8bit(model, quantized.eight_bit_linears(model, stored))
    elif request.load_in_4bit:
        model = quantized.put_in_4bit(model, source.precision.compute)
    return model, ()


def _on_meta(source: _Source) -> nn.Module:
    with torch.device("meta"), quiet_loading():
        model: nn.Module = source.auto_class.from_config(
            copy.deepcopy(source.config),
            dtype=source.precision.at_rest,
            trust_remote_code=source.trust_remote_code,
            **source.arguments,
        )
    return model


def _load(source: _Source, request: _Request) -> tuple[nn.Module, tuple[str, ...]]:
    checkpoint = source.checkpoint
    arguments = dict(source.arguments)
    if request.load_in_8bit:
        from peftlab.model import int8_loading

        arguments["quantization_config"] = int8_loading.int8_loading()
    elif request.load_in_4bit:
        compute = source.precision.compute
        arguments["quantization_config"] = quantized.four_bit_config(_on_meta(source), compute)
    if request.load_in_8bit or request.load_in_4bit:
        arguments["device_map"] = {"": "cpu" if training_device() == "cpu" else 0}
    try:
        with quiet_loading():
            model, info = source.auto_class.from_pretrained(
                checkpoint.folder or checkpoint.name,
                revision=checkpoint.revision or "main",
                config=source.config,
                dtype=source.precision.at_rest,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=source.trust_remote_code,
                **arguments,
            )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckFailed(f"{request.name} cannot be loaded as safetensors: {first}") from None
    at_rest: tuple[str, ...] = ()
    if request.load_in_8bit:
        at_rest = int8_loading.finish_loading(model, info)
    elif request.load_in_4bit:
        count = quantized.pin_arithmetic(model)
        at_rest = (f"{count} frozen layers are stored in 4 bits; evaluation computes as training",)
    pretrained = request.head.auto_class in LANGUAGE_MODELS
    fresh, notes = check_keys(model, info, request.name, pretrained_head=pretrained)
    mark_fresh(model, fresh)
    return model, (*notes, *at_rest)


def _set_generation_tokens(model: nn.Module, tokenizer: Any) -> None:
    """Let generation stop and pad with the tokenizer's own tokens."""
    settings: Any = getattr(model, "generation_config", None)
    if settings is None:
        return
    settings.pad_token_id = tokenizer.pad_token_id
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
