"""Options of LoRA and of QLoRA, which is LoRA over a base held in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from peftlab.config.checks import number_after_colon, problem_at
from peftlab.config.methods.lora_rules import (
    check_adapter,
    needs_float_base,
    refuse_unknown,
    split_names,
    takes_from_base,
)
from peftlab.config.methods.options import MethodOptions
from peftlab.config.section import Names, Written

MOST_RANKS = 256

Rank = Annotated[int, Field(ge=1, le=MOST_RANKS)]
Text = Annotated[str, Field(min_length=1)]
Number = Annotated[int, Field(ge=0)]
Numbers = Annotated[list[Number], Field(min_length=1)]
Start = (
    bool
    | Literal["gaussian", "orthogonal", "mica", "olora", "pissa", "eva"]
    | Annotated[str, Field(pattern=r"^pissa_niter_\d{1,4}$"), Written("pissa_niter_N")]
)


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
    target_modules: Annotated[
        Literal["auto", "all-linear"] | list[Text] | Text, BeforeValidator(split_names)
    ] = Field(
        "auto",
        description="auto: every linear inside the blocks; all-linear; patterns in a list; or a "
        "regular expression for whole names.",
    )
    exclude_modules: Annotated[Names | Text | None, BeforeValidator(split_names)] = Field(
        None, description="Layers left out of them: suffixes in a list, or a regular expression."
    )
    layers_to_transform: Numbers | Number | None = Field(
        None, description="Numbers of the blocks that get adapters; all by default."
    )
    layers_pattern: Names | Text | None = Field(
        None, description="The list that layers_to_transform counts in, such as layers."
    )
    target_parameters: Names | None = Field(
        None, description="Parameters adapted one by one, such as experts.down_proj."
    )
    modules_to_save: Literal["auto"] | Names = Field(
        "auto", description="Modules trained in full beside the adapter; auto: the task's head."
    )
    ensure_weight_tying: bool = Field(
        False, description="Keep tied embeddings tied where they train, in full or by rows."
    )
    trainable_token_indices: Numbers | dict[Text, Numbers] | None = Field(
        None, description="Rows of the input embeddings, or of named tables, that train."
    )
    init_lora_weights: Start = Field(
        True,
        description="Start: true, false, gaussian, orthogonal, mica, olora, pissa, "
        "pissa_niter_N, or eva.",
    )
    rank_pattern: dict[Text, Rank] = Field(
        default_factory=dict, description="Other ranks, by regular expressions for ends of names."
    )
    alpha_pattern: dict[Text, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Other alphas, by regular expressions as well."
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none", description="The base's biases that train: none, all, or those of adapted layers."
    )
    lora_bias: bool = Field(False, description="A bias on B.")
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = Field(
        None, description="B's learning rate in multiples of A's (LoRA+)."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (rank-stabilised LoRA).")
    init_from: str | None = Field(None, description="Folder of an adapter to start from.")

    reads: ClassVar[frozenset[str]] = frozenset({"train.gradient_checkpointing"})
    has_adapter: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _of_peft_alone(cls, data: Any) -> Any:
        return refuse_unknown(data)

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        check_adapter(self)
        return self

    @classmethod
    def from_short(cls, name: str, argument: str | None, base: MethodOptions | None) -> Self | None:
        """Another rank keeps the scaling, alpha / r; both methods take each other's settings."""
        settings: dict[str, Any] = {}
        if isinstance(base, AdapterOptions):
            shared = base.model_dump(exclude_unset=True)
            settings = {key: shared[key] for key in shared if cls._takes(key, shared[key])}
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
        return cls.model_validate({**settings, **method._of_rank(rank)})

    def _of_rank(self, rank: int) -> dict[str, Any]:
        """Every rank and alpha in the proportion that `rank` has to `r`."""
        for name, own in self.rank_pattern.items():
            whole, rest = divmod(own * rank, self.r)
            if rest or not 1 <= whole <= MOST_RANKS:
                raise ValueError(
                    f"method.rank_pattern has rank {own} for {name!r}, and {rank}/{self.r} of it "
                    f"is no rank from 1 to {MOST_RANKS}; write the row as a mapping"
                )
        ranks = {name: own * rank // self.r for name, own in self.rank_pattern.items()}
        alphas = {name: own * rank / self.r for name, own in self.alpha_pattern.items()}
        patterns = {"rank_pattern": ranks, "alpha_pattern": alphas}
        scaled = {"r": rank, "alpha": self.alpha * rank / self.r}
        return {**scaled, **{key: own for key, own in patterns.items() if own}}

    @classmethod
    def _takes(cls, key: str, value: Any) -> bool:
        """Whether a setting of the other method applies to this one."""
        return key in cls.model_fields

    @classmethod
    def _named(cls, name: str) -> dict[str, Any]:
        """What a short name says beyond the method."""
        return {}

    def describe(self) -> list[str]:
        parts = [f"r={self.r}, alpha={self.alpha:g}, dropout {self.dropout:g}"]
        if self.target_modules != "auto":
            targets = self.target_modules
            parts.append(targets if isinstance(targets, str) else " ".join(targets))
        if self.init_lora_weights is not True:
            parts.append(f"init {str(self.init_lora_weights).lower()}")
        if self.loraplus_lr_ratio is not None:
            parts.append(f"LoRA+ {self.loraplus_lr_ratio:g}")
        if self.bias != "none":
            parts.append(f"bias {self.bias}")
        return [*parts, *self._variant(), *(["rsLoRA"] if self.use_rslora else [])]

    def _variant(self) -> list[str]:
        return []

    @property
    def starts_from(self) -> str | None:
        return self.init_from

    @property
    def taken_out_by(self) -> str | None:
        init = self.init_lora_weights
        return str(init) if takes_from_base(init) else None


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

    @model_validator(mode="after")
    def _start_of_codes(self) -> QLoraOptions:
        if needs_float_base(self.init_lora_weights):
            raise problem_at(
                "init_lora_weights",
                f"is {self.init_lora_weights}, which decomposes the base's weights, but they rest "
                f"in {self.bits} bits; take method lora, or eva, gaussian, true or false",
            )
        return self

    @classmethod
    def _takes(cls, key: str, value: Any) -> bool:
        if key == "init_lora_weights" and needs_float_base(value):
            return False
        return super()._takes(key, value)

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
