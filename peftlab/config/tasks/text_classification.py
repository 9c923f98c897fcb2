"""Options of text classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from peftlab.config.tasks.options import FormatName, TaskOptions


class TextClassificationOptions(TaskOptions):
    name: Literal["text-classification"] = Field(description="A label for a text or a pair.")

    formats: ClassVar[tuple[FormatName, ...]] = ("pair", "text-label")
    roles: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")
    example_roles: ClassVar[tuple[str, ...]] = ("text", "label")
    metrics: ClassVar[Mapping[str, bool]] = {
        "accuracy": True, "f1_macro": True, "f1_micro": True, "loss": False,
    }  # fmt: skip
    best_metric: ClassVar[str] = "f1_macro"
    features: ClassVar[Literal["row", "token"] | None] = "row"
    reads: ClassVar[frozenset[str]] = frozenset({"method.pooling"})
