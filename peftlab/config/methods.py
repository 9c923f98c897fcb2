"""The methods: one tagged value, `method`, whose `name` says which keys it has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, model_validator

from peftlab.config.checks import check_bytes
from peftlab.config.section import Count, Names, ReadBy, Section


class HeadMethod(Section):
    name: Literal["head"]
    pooling: Annotated[
        Literal["auto", "cls", "mean", "last", "model"], ReadBy("method.pooling")
    ] = Field("auto", description="Token features to one; auto reads the checkpoint's pooling.")
    cache_limit: Annotated[str, AfterValidator(check_bytes)] = Field(
        "2GiB", description="Memory for cached features; above it they live in a mapped file."
    )


class LastNMethod(Section):
    name: Literal["last_n"]
    n: Count = Field(2, description="How many of the last blocks train, with all that follows.")


class _AdapterMethod(Section):
    name: Literal["lora", "qlora"]
    r: int = Field(16, ge=1, le=256, description="Rank.")
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


class LoraMethod(_AdapterMethod):
    name: Literal["lora"]
    use_dora: bool = Field(False, description="Weight-decomposed LoRA.")


class QLoraMethod(_AdapterMethod):
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

    @model_validator(mode="after")
    def _arithmetic_of_8_bits(self) -> QLoraMethod:
        if self.bits != 8 and self.arithmetic != "auto":
            raise ValueError(
                f"arithmetic is {self.arithmetic}, which 8-bit layers have, but bits is {self.bits}"
            )
        return self


class FullMethod(Section):
    name: Literal["full"]


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


MethodConfig = Annotated[
    Annotated[
        HeadMethod | LastNMethod | LoraMethod | QLoraMethod | FullMethod,
        Field(discriminator="name"),
    ],
    BeforeValidator(_named),
]
