"""Options of text classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from peftlab.config.checks import problem_at
from peftlab.config.tasks.options import LabelKind, TaskOptions

_KINDS: Mapping[str, LabelKind] = {
    "auto": "auto", "single_label": "one", "multi_label": "many", "regression": "number",
}  # fmt: skip


class TextClassificationOptions(TaskOptions):
    name: Literal["text-classification"] = Field(
        description="Labels, or a number, for a text or a pair."
    )
    problem: Literal["auto", "single_label", "multi_label", "regression"] = Field(
        "auto", description="What a row's label is; auto: as the training rows show, or a question."
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description="Weigh the loss: balanced, by frequency in train; or {label: weight}."
    )

    implementation: ClassVar[str] = (
        "peftlab.tasks.classification.text_classification:TextClassification"
    )
    example_roles: ClassVar[tuple[str, ...]] = ("text", "label")
    metrics: ClassVar[Mapping[str, bool]] = {
        "accuracy": True, "f1_macro": True, "f1_micro": True, "subset_accuracy": True,
        "pearson": True, "spearman": True, "r2": True, "mse": False, "loss": False,
    }  # fmt: skip
    best_metric: ClassVar[str] = "f1_macro"
    features: ClassVar[Literal["row", "token"] | None] = "row"
    reads: ClassVar[frozenset[str]] = frozenset(
        {"method.pooling", "data.label_names", "data.label_separator"}
    )

    @property
    def label_kind(self) -> LabelKind:
        return _KINDS[self.problem]

    @model_validator(mode="after")
    def _weights_of_classes(self) -> TextClassificationOptions:
        if self.problem == "regression" and self.class_weights is not None:
            raise problem_at("class_weights", "weighs classes, and regression has none")
        return self
