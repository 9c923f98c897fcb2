"""Options of extractive question answering."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from peftlab.config.section import AutoCount, Count
from peftlab.config.tasks.options import TaskOptions


class QuestionAnsweringOptions(TaskOptions):
    name: Literal["question-answering"] = Field(description="The span of a context that answers.")
    stride: AutoCount = Field(
        "auto", description="Tokens that the windows of a long context share; auto: a third."
    )
    null_threshold: float | Literal["auto"] = Field(
        "auto",
        description="No answer if its score leads by more; auto: chosen on validation, else 0.",
    )
    max_answer_length: Count = Field(30, description="Tokens that an answer may have.")
    n_best: Count = Field(20, description="Spans of a context that are kept and compared.")

    implementation: ClassVar[str] = "peftlab.tasks.answering.question_answering:QuestionAnswering"
    example_roles: ClassVar[tuple[str, ...]] = ("question", "context", "answers")
    metrics: ClassVar[Mapping[str, bool]] = {
        "exact": True, "f1": True, "has_answer_exact": True, "has_answer_f1": True,
        "no_answer_exact": True, "no_answer_f1": True, "loss": False,
    }  # fmt: skip
    best_metric: ClassVar[str] = "f1"
    # QUESTION_ANS would be its name, but that wrapper of PEFT 0.21 drops the token types.
    peft_type: ClassVar[str] = "FEATURE_EXTRACTION"
    predict_example: ClassVar[str] = '"Who lived in London? Ada Lovelace lived in London."'
