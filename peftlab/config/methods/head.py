"""Options of training the task's head alone."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from peftlab.config.checks import check_bytes
from peftlab.config.methods.options import MethodOptions
from peftlab.config.section import ReadBy


class HeadOptions(MethodOptions):
    name: Literal["head"]
    pooling: Annotated[
        Literal["auto", "cls", "mean", "last", "model"], ReadBy("method.pooling")
    ] = Field("auto", description="Token features to one; auto reads the checkpoint's pooling.")
    cache_limit: Annotated[str, AfterValidator(check_bytes)] = Field(
        "2GiB", description="Memory for cached features; above it they live in a mapped file."
    )

    implementation: ClassVar[str] = "peftlab.methods.head:Head"
    mergeable: ClassVar[bool] = False
    short_names: ClassVar[tuple[str, ...]] = ("head",)
    short_forms: ClassVar[str] = "head"
    bench_row: ClassVar[str | None] = "head"

    def describe(self) -> list[str]:
        return [f"{self.pooling} pooling"]

    @property
    def pools_by(self) -> str | None:
        return self.pooling

    @property
    def features_limit(self) -> str | None:
        return self.cache_limit
