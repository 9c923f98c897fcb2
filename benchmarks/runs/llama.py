"""Random Llamas with LoRA on every linear layer of every block, by the rows of `peers.PEERS`.

Rows that compute in one dtype share the base's weights, so that an 8B model fits more than once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.layers.counting import Counts, SavedBytes, Watch

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    def linears(self) -> list[tuple[int, int]]:
        """(in_features, out_features) of the adapted layers of a block, in the order of `TARGETS`."""
        narrow = self.hidden // self.heads * self.kv_heads
        d, f = self.hidden, self.intermediate
        return [(d, d), (d, narrow), (d, narrow), (d, d), (d, f), (d, f), (f, d)]


@dataclass(frozen=True, slots=True)
class ModelCase:
    """A model and a batch of `rows` texts of `length` tokens; weights rest in `dtype`."""

    shape: Shape
    rows: int
    length: int
    rank: int = 16
    dropout: float = 0.0
    dtype: torch.dtype = torch.bfloat16
    device: str = "cpu"
    compiler: str = "inductor"
    """The backend of torch.compile for the rows that are compiled."""

    @property
    def tokens(self) -> int:
        """Tokens in a step."""
        return self.rows * self.length


def base_model(case: ModelCase, dtype: torch.dtype | None = None) -> Any:
    """The frozen model with random weights, those of a smaller dtype rounded from fp32."""
    import transformers

    shape = case.shape
    config = transformers.LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied, max_position_embeddings=max(2048, case.length),
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(case.device):
        # On a CPU the same weights in every dtype; on a GPU fp32 ones might not fit.
        made = torch.float32 if case.device == "cpu" else case.dtype
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=made)
    return model.to(case.device, dtype or case.dtype).requires_grad_(False)


def sharing(model: nn.Module) -> Any:
    """A copy of the modules over the same parameters."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def row_of(name: str, case: ModelCase, base: nn.Module | None = None) -> Any:
    """The model of a row of `peers.PEERS`, training; over the weights of `base` where it can be.

    Raises `KeyError` for rows that models have not.
    """
    if name in INT8_ROWS:
        return _over_8_bits(name, case)
    cast, fuse, compiled, own = {
        "ours": (True, "keep", False, None),
        "ours, 16-bit adapters": (False, "keep", False, None),
        "ours, fp32 activations": (True, "fp32", False, case.dtype),
        "PEFT": (True, None, False, None),
        "PEFT, 16-bit adapters": (False, None, False, None),
        "PEFT, compiled": (True, None, True, None),
        "PEFT, fp32": (True, None, False, torch.float32),
        "frozen base": (True, None, False, None),
    }[name]
    model = sharing(base) if base is not None and own is None else base_model(case, own)
    if name == "frozen base":
        model.enable_input_require_grads()
        return model.train()
    model = _adapted(model, case, cast)
    if fuse is not None:
        from peftlab.fusion import fuse as fuse_model

        report = fuse_model(model, activations=fuse)  # type: ignore[arg-type]
        if report.not_fused:
            raise RuntimeError(str(report))
    if compiled:
        model.forward = torch.compile(model.forward, dynamic=False, backend=case.compiler)
    return model


INT8_ROWS = (
    "ours, w8a8", "ours, w8a16", "bnb+PEFT", "ours, w8a8, fp32 activations",
    "bnb+PEFT, fp32 activations",
)  # fmt: skip
"""Rows over blocks in 8 bits; the rest of the model has the case's dtype, or fp32."""


def _over_8_bits(name: str, case: ModelCase) -> Any:
    from peftlab_kernels.int8_linear import Int8Linear

    wide = "fp32" in name
    model = base_model(case, torch.float32 if wide else case.dtype)
    for target, linear in list(model.named_modules()):
        if target.rpartition(".")[2] not in TARGETS:
            continue
        if name.startswith("ours"):
            made: nn.Module = Int8Linear.from_weight(linear.weight)
        else:
            import bitsandbytes as bnb

            made = bnb.nn.modules.Linear8bitLt(
                linear.in_features, linear.out_features, bias=False, has_fp16_weights=False,
                threshold=6.0,
            )  # fmt: skip
            made.load_state_dict({"weight": linear.weight})
            made = made.to(case.device).requires_grad_(False)
        model.set_submodule(target, made)
    model.is_loaded_in_8bit = not name.startswith("ours")
    adapted = _adapted(model, case, True)
    if name.startswith("ours"):
        from peftlab.fusion import fuse as fuse_model

        arithmetic: Any = "w8a16" if "w8a16" in name else "w8a8"
        report = fuse_model(adapted, arithmetic=arithmetic)
        if report.not_fused:
            raise RuntimeError(str(report))
    return adapted


def _adapted(model: Any, case: ModelCase, cast_adapters: bool) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=case.rank, lora_alpha=2 * case.rank, lora_dropout=case.dropout,
        target_modules=list(TARGETS),
    )  # fmt: skip
    adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=cast_adapters)
    draw = torch.Generator(case.device).manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            drawn = torch.randn(parameter.shape, generator=draw, device=case.device)
            parameter.data.copy_(drawn.mul_(0.02))
    return adapted.train()


def adapted_layers(model: nn.Module) -> Iterator[nn.Module]:
    """PEFT's LoRA layers, fused or not."""
    from peft.tuners.lora import LoraLayer

    return (module for module in model.modules() if isinstance(module, LoraLayer))


class ModelStep:
    """A row's whole step: forward, loss, backward, optimizer."""

    def __init__(self, name: str, case: ModelCase, base: nn.Module | None = None) -> None:
        self.model = row_of(name, case, base)
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=1e-5) if self.trainable else None
        draw = torch.Generator(case.device).manual_seed(2)
        self._ids = torch.randint(
            case.shape.vocabulary, (case.rows, case.length), generator=draw, device=case.device
        )

    def loss(self) -> Tensor:
        """The model's own loss, with its graph."""
        out = self.model(input_ids=self._ids, labels=self._ids, use_cache=False)
        value: Tensor = out.loss
        return value

    def __call__(self) -> Tensor:
        """The step's loss."""
        loss = self.loss()
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def saved(self) -> tuple[int, int]:
        """Bytes saved for backward by the adapted layers, and by the whole step, without weights."""
        weights = [*self.model.parameters(), *self.model.buffers()]
        with SavedBytes(weights, layers=adapted_layers(self.model)) as saved:
            loss = self.loss()
            bytes_kept = saved.bytes_of_layers, saved.bytes
        del loss
        return bytes_kept

    def counts(self) -> Counts:
        """The counts of a step that is not its first."""
        saved = self.saved()[1]
        with Watch() as watch:
            self()
        return watch.counts(saved)
