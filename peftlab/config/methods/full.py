"""Options of full fine-tuning."""

from __future__ import annotations

from typing import ClassVar, Literal

from peftlab.config.methods.options import MethodOptions


class FullOptions(MethodOptions):
    name: Literal["full"]

    implementation: ClassVar[str] = "peftlab.methods.full:Full"
    reads: ClassVar[frozenset[str]] = frozenset({"train.gradient_checkpointing"})
    trains_all: ClassVar[bool] = True
    short_names: ClassVar[tuple[str, ...]] = ("full",)
    short_forms: ClassVar[str] = "full"
    bench_row: ClassVar[str | None] = "full"

    def describe(self) -> list[str]:
        return ["all weights"]
