"""Options of LoRA and of QLoRA, which is LoRA over a base held in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from peftlab.config.methods.last_n import number_after_colon
from peftlab.config.methods.options import MethodOptions
from peftlab.config.section import Names

MOST_RANKS = 256


class AdapterOptions(MethodOptions):
    """The keys that both have."""

    name: Literal["lora", "qlora"]
    r: int = Field(16, ge=1, le=MOST_RANKS, description="Rank.")
    alpha: float = Field(
        32,
        gt=0,
        validation_alias=AliasChoices("alpha", "lora_alpha"),
        description="Scaling is alpha / r.",
    )
    dropout: float = Field(
        0.05,
        ge=0,
        lt=1,
        validation_alias=AliasChoices("dropout", "lora_dropout"),
        description="Dropout on the adapter's input.",
    )
    target_modules: Literal["auto", "all-linear"] | Names = Field(
        "auto", description="auto: every linear inside the blocks; all-linear; or patterns."
    )
    modules_to_save: Literal["auto"] | Names = Field(
        "auto", description="Modules trained in full beside the adapter; auto: the task's head."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (rank-stabilised LoRA).")
    init_from: str | None = Field(None, description="Folder of an adapter to start from.")

    reads: ClassVar[frozenset[str]] = frozenset({"train.gradient_checkpointing"})
    has_adapter: ClassVar[bool] = True

    @classmethod
    def from_short(cls, name: str, argument: str | None, base: MethodOptions | None) -> Self | None:
        """Another rank keeps the scaling, alpha / r; both methods take each other's settings."""
        settings: dict[str, Any] = {}
        if isinstance(base, AdapterOptions):
            shared = base.model_dump(exclude_unset=True)
            settings = {key: shared[key] for key in shared if key in cls.model_fields}
        settings = {**settings, "name": cls.tag(), **cls._named(name)}
        if settings.get("bits") == 4:  # the arithmetic is one of 8-bit layers
            settings.pop("arithmetic", None)
            settings.pop("error_tolerance", None)
        method = cls.model_validate(settings)
        if argument is None:
            return method
        rank = number_after_colon(argument)
        if rank is None:
            return None
        if rank > MOST_RANKS:
            raise ValueError(f"the rank is from 1 to {MOST_RANKS}")
        return cls.model_validate({**settings, "r": rank, "alpha": method.alpha * rank / method.r})

    @classmethod
    def _named(cls, name: str) -> dict[str, Any]:
        """What a short name says beyond the method."""
        return {}

    def describe(self) -> list[str]:
        parts = [f"r={self.r}, alpha={self.alpha:g}, dropout {self.dropout:g}"]
        if self.target_modules != "auto":
            targets = self.target_modules
            parts.append(targets if isinstance(targets, str) else " ".join(targets))
        return [*parts, *self._variant(), *(["rsLoRA"] if self.use_rslora else [])]

    def _variant(self) -> list[str]:
        return []

    @property
    def starts_from(self) -> str | None:
        return self.init_from


class LoraOptions(AdapterOptions):
    name: Literal["lora"]
    use_dora: bool = Field(False, description="Weight-decomposed LoRA.")

    implementation: ClassVar[str] = "peftlab.methods.lora:Lora"
    short_names: ClassVar[tuple[str, ...]] = ("lora",)
    short_forms: ClassVar[str] = "lora or lora:R"
    bench_row: ClassVar[str | None] = "lora"

    def _variant(self) -> list[str]:
        return ["DoRA"] if self.use_dora else []


class QLoraOptions(AdapterOptions):
    name: Literal["qlora"]
    bits: Literal[4, 8] = Field(
        8, description="Bits of the frozen base: 8 (int8 rows), or 4 (NF4 by bitsandbytes)."
    )
    arithmetic: Literal["auto", "w8a8", "w8a16"] = Field(
        "auto",
        description="Of 8-bit layers: w8a8 quantises activations too; auto measures each layer.",
    )
    error_tolerance: float = Field(
        3.0,
        ge=0,
        description="For auto: the largest error of w8a8, in multiples of that on Gaussian data.",
    )

    implementation: ClassVar[str] = "peftlab.methods.lora:Lora"
    short_names: ClassVar[tuple[str, ...]] = ("qlora8", "qlora4", "qlora")
    short_forms: ClassVar[str] = "qlora8 or qlora8:R, qlora4 or qlora4:R"
    bench_row: ClassVar[str | None] = "qlora8"

    @model_validator(mode="after")
    def _arithmetic_of_8_bits(self) -> QLoraOptions:
        if self.bits != 8 and self.arithmetic != "auto":
            raise ValueError(
                f"arithmetic is {self.arithmetic}, which 8-bit layers have, but bits is {self.bits}"
            )
        return self

    @classmethod
    def _named(cls, name: str) -> dict[str, Any]:
        bits = name.removeprefix("qlora")
        return {"bits": int(bits)} if bits else {}

    def _variant(self) -> list[str]:
        return [f"int{self.bits} base"]

    @property
    def loads_in(self) -> Literal[16, 8, 4]:
        return self.bits

    @property
    def eight_bit(self) -> Mapping[str, Any]:
        if self.bits != 8:
            return {}
        return {"arithmetic": self.arithmetic, "tolerance": self.error_tolerance}
