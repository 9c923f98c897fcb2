"""What every section of the configuration has in common: strictness, and types they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from peftlab.config.checks import refuse_both_spellings

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
# NumPy's generator, which libraries seed along with torch's, takes 32 bits.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
# Each after `auto` in a union, so that the error names both.
AutoCount = Literal["auto"] | Count
Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class ReadBy:
    """Marks a key that only some tasks, or methods, read; set under another it is an error.

    `key` is the key's dotted name: a task, or a method, that reads it lists it in its options'
    `reads`.
    """

    def __init__(self, key: str, *, by: Literal["task", "method"] = "task") -> None:
        self.key = key
        self.by = by


class Written:
    """Marks text of a fixed pattern with the form that people know it by, for messages."""

    def __init__(self, form: str) -> None:
        self.form = form


class OneOf:
    """Marks text that is one of some names, which are asked for whenever a value is checked."""

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self.names = names

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def check(value: str) -> str:
            if value not in self.names():
                raise PydanticCustomError("one_of", "one of {names}", {"names": self.names()})
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.names())}


class Section(BaseModel):
    # Strict: true is no number and "3" is no integer.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, data: Any) -> Any:
        refuse_both_spellings(data, cls.model_fields)
        return data
