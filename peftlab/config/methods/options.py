"""What every method says about itself to the configuration, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from peftlab.config.registry import Registry
from peftlab.config.tagged import TaggedSection

METHODS: Registry[MethodOptions] = Registry(
    "peftlab.methods",
    "peftlab.config.methods.options:MethodOptions",
    {
        "head": "peftlab.config.methods.head:HeadOptions",
        "last_n": "peftlab.config.methods.last_n:LastNOptions",
        "lora": "peftlab.config.methods.lora:LoraOptions",
        "qlora": "peftlab.config.methods.lora:QLoraOptions",
        "full": "peftlab.config.methods.full:FullOptions",
        "peft": "peftlab.config.methods.peft:PeftOptions",
    },
)
"""Every method's options by name; other packages add theirs by the entry points of that group."""

DEFAULT = "lora"
"""The method of a command that needs one and is given none."""


class MethodOptions(TaggedSection):
    """Base of the methods' options: a method's own keys, and what others ask of it."""

    kinds: ClassVar[Mapping[str, Any]] = METHODS

    implementation: ClassVar[str]
    """"module:Class" of the `peftlab.methods.method.Method` that does it."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Shared keys marked `ReadBy(..., by="method")` that it reads, dotted."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Keys without a default, with values that a template shows."""
    has_adapter: ClassVar[bool] = False
    """Whether it trains an adapter beside frozen weights, saved in PEFT's format."""
    fp32_at_rest: ClassVar[bool] = False
    """Whether its layers cannot compute in fp32 over weights that rest in 16 bits."""
    trains_all: ClassVar[bool] = False
    """Whether it is full fine-tuning, which the others are compared with."""
    mergeable: ClassVar[bool] = True
    """Whether its model always is one of Transformers' classes, so that it can be exported."""
    short_names: ClassVar[tuple[str, ...]]
    """What `bench.methods` may call it, before a colon."""
    short_forms: ClassVar[str]
    """The same for people, with what may follow the colon: `last_n or last_n:N`."""
    bench_row: ClassVar[str | None] = None
    """Its row where `bench.methods` is not set."""

    @classmethod
    def from_short(cls, name: str, argument: str | None, base: MethodOptions | None) -> Self | None:
        """The options that a short name stands for, or None where it has no such argument.

        `argument` is the text after the colon; `base` is the configuration's own method, whose
        settings are kept where they apply. Raises `ValueError` with the end of a sentence.
        """
        if argument is not None:
            return None
        return base if isinstance(base, cls) else cls.model_validate({"name": cls.tag()})

    def problems(self, *, packing: bool, gradient_checkpointing: bool) -> Mapping[str, str]:
        """Shared keys, dotted, whose values it cannot work with: what to say after the key."""
        return {}

    def describe(self) -> list[str]:
        """The settings that a reader of a comparison must know, as short phrases."""
        return []

    @property
    def loads_in(self) -> Literal[16, 8, 4]:
        """Bits that the frozen base's linear layers are loaded in; 16: as the checkpoint has it."""
        return 16

    @property
    def pools_by(self) -> str | None:
        """How token features become one vector a row, where the method pools itself."""
        return None

    @property
    def virtual_tokens(self) -> int:
        """Tokens that it puts before each row, of those that the model can read."""
        return 0

    @property
    def features_limit(self) -> str | None:
        """Memory for features of the frozen base computed once; None where each step runs it."""
        return None

    @property
    def starts_from(self) -> str | None:
        """Folder of an adapter that training starts from."""
        return None

    @property
    def taken_out_by(self) -> str | None:
        """How the trained part's start is taken out of the base's weights; None: it is not."""
        return None

    @property
    def eight_bit(self) -> Mapping[str, Any]:
        """Arguments of `fuse` for 8-bit layers; empty where the base has none."""
        return {}


def yardstick() -> MethodOptions:
    """Full fine-tuning, with its defaults."""
    kind = next(kind for kind in METHODS.values() if kind.trains_all)
    return kind.model_validate({"name": kind.tag()})


def trains_all(name: str) -> bool:
    """Whether a method of this name is full fine-tuning; False for an unknown name."""
    return name in METHODS and METHODS[name].trains_all


def always_mergeable(name: str) -> bool:
    """Whether every model of a method of this name can be exported; False for an unknown name."""
    return name in METHODS and METHODS[name].mergeable
