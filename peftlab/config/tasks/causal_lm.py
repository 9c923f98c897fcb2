"""Options of causal language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from peftlab.config.tasks.options import TaskOptions


class CausalLMOptions(TaskOptions):
    name: Literal["causal-lm"] = Field(
        description="The next token of text, of a completion, or of an answer in a conversation."
    )
    loss_on: Literal["auto", "completion", "assistant", "all"] = Field(
        "auto",
        description="What is learnt: the last answer, every answer, or every token; auto: answers.",
    )
    chat_template: Annotated[str, Field(min_length=1)] = Field(
        "auto",
        description="A Jinja file for conversations; auto: the tokenizer's own, else a plain one.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Variables of the chat template, such as enable_thinking; saved in it.",
    )
    system: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="A system turn for conversations that have none."
    )
    packing: Literal["auto", "isolated", "wrapped"] = Field(
        "auto",
        description="How data.packing joins rows: apart, or plain text as one stream (auto there).",
    )

    implementation: ClassVar[str] = "peftlab.tasks.language.causal_lm:CausalLM"
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
