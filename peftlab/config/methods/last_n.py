"""Options of training the last blocks."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field

from peftlab.config.checks import number_after_colon
from peftlab.config.methods.options import MethodOptions
from peftlab.config.section import Count


class LastNOptions(MethodOptions):
    name: Literal["last_n"]
    n: Count = Field(2, description="How many of the last blocks train, with all that follows.")

    implementation: ClassVar[str] = "peftlab.methods.last_n:LastN"
    reads: ClassVar[frozenset[str]] = frozenset({"train.gradient_checkpointing"})
    short_names: ClassVar[tuple[str, ...]] = ("last_n",)
    short_forms: ClassVar[str] = "last_n or last_n:N"
    bench_row: ClassVar[str | None] = "last_n:2"

    @classmethod
    def from_short(cls, name: str, argument: str | None, base: MethodOptions | None) -> Self | None:
        if argument is None:
            return super().from_short(name, argument, base)
        count = number_after_colon(argument)
        return None if count is None else cls.model_validate({"name": cls.tag(), "n": count})

    def describe(self) -> list[str]:
        return [f"last {self.n} block{'s' if self.n > 1 else ''}"]
