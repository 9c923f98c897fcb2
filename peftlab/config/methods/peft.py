"""Options of any adapter of the installed PEFT but LoRA, by PEFT's own name and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from peftlab.config.checks import problem_at
from peftlab.config.methods import peft_keys
from peftlab.config.methods.lora_rules import split_names
from peftlab.config.methods.options import MethodOptions
from peftlab.config.section import Names


class PeftOptions(MethodOptions):
    """`peft_type` and, beside the fields here, every key of PEFT's dataclass for that type."""

    model_config = ConfigDict(extra="allow")

    name: Literal["peft"]
    peft_type: str = Field(description="PEFT's name of the adapter, such as VERA, IA3 or BOFT.")
    target_modules: Annotated[str | Names, BeforeValidator(split_names)] = Field(
        "auto",
        min_length=1,
        description="auto: the layers that the type is for; all-linear; patterns; or a regex.",
    )
    modules_to_save: Literal["auto"] | Names = Field(
        "auto", description="Modules trained in full beside the adapter; auto: the task's head."
    )

    implementation: ClassVar[str] = "peftlab.methods.peft.method:PeftMethod"
    reads: ClassVar[frozenset[str]] = frozenset({"train.gradient_checkpointing"})
    example: ClassVar[Mapping[str, Any]] = {"peft_type": "VERA"}
    has_adapter: ClassVar[bool] = True
    fp32_at_rest: ClassVar[bool] = True
    short_names: ClassVar[tuple[str, ...]] = ("peft",)
    short_forms: ClassVar[str] = "peft:TYPE"

    @field_validator("peft_type")
    @classmethod
    def _upper(cls, given: str) -> str:
        return given.upper().replace("-", "_")

    @model_validator(mode="after")
    def _as_peft_has_it(self) -> Self:
        peft_keys.check_type(self.peft_type)
        for key in ("target_modules", "modules_to_save"):
            if getattr(self, key) != "auto" and not peft_keys.has_key(self.peft_type, key):
                raise problem_at(key, f"is set, but {self.peft_type} has no such key; leave it out")
        peft_keys.check_keys(self.peft_type, self.settings)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The type's own keys, as they were written."""
        return dict(self.model_extra or {})

    @classmethod
    def from_short(cls, name: str, argument: str | None, base: MethodOptions | None) -> Self | None:
        """Another type keeps no key: each has its own."""
        if argument is None:
            if isinstance(base, cls):
                return base
            raise ValueError("the adapter's type follows it, as in peft:VERA")
        found = cls.model_validate({"name": cls.tag(), "peft_type": argument})
        return base if isinstance(base, cls) and base.peft_type == found.peft_type else found

    def describe(self) -> list[str]:
        parts = [self.peft_type]
        if self.target_modules != "auto":
            targets = self.target_modules
            parts.append(targets if isinstance(targets, str) else " ".join(targets))
        return [*parts, *(f"{key}={value}" for key, value in self.settings.items())]

    @property
    def virtual_tokens(self) -> int:
        if self.peft_type not in _PROMPTS:
            return 0
        return int(self.settings.get("num_virtual_tokens", _VIRTUAL_TOKENS))

    def problems(self, *, packing: bool, gradient_checkpointing: bool) -> Mapping[str, str]:
        """See `MethodOptions.problems`."""
        found = {}
        if packing and self.peft_type in _PROMPTS:
            found["data.packing"] = (
                f"is true, but {self.peft_type} puts virtual tokens before each row, and packed "
                "rows have one beginning; set it to false"
            )
        if gradient_checkpointing and self.peft_type in _CACHES:
            found["train.gradient_checkpointing"] = (
                f"is true, but PEFT gives {self.peft_type}'s virtual tokens as a key-value cache, "
                "which blocks that are recomputed do not read; set it to false"
            )
        return found


_VIRTUAL_TOKENS = 20
_CACHES = frozenset({"PREFIX_TUNING", "CARTRIDGE"})
_PROMPTS = _CACHES | {"PROMPT_TUNING", "P_TUNING"}
