"""Options of causal language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from peftlab.config.tasks.options import FormatName, TaskOptions


class CausalLMOptions(TaskOptions):
    name: Literal["causal-lm"] = Field(description="The next token of text or of a completion.")

    formats: ClassVar[tuple[FormatName, ...]] = ("prompt-completion", "text")
    roles: ClassVar[tuple[str, ...]] = ("text", "prompt", "completion")
    example_roles: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    metrics: ClassVar[Mapping[str, bool]] = {
        "perplexity": False, "token_accuracy": True, "loss": False,
    }  # fmt: skip
    best_metric: ClassVar[str] = "perplexity"
    reads: ClassVar[frozenset[str]] = frozenset({"data.packing", "eval.generation", "train.loss"})
    head: ClassVar[Literal["classifier", "language-model"]] = "language-model"
    peft_type: ClassVar[str] = "CAUSAL_LM"
    features: ClassVar[Literal["row", "token"] | None] = "token"
    predict_example: ClassVar[str] = '"Once upon a time"'
