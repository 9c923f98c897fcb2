"""Options of relation extraction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from peftlab.config.tasks.options import TaskOptions


class RelationExtractionOptions(TaskOptions):
    name: Literal["relation-extraction"] = Field(
        description="How two entities that are marked in a text are related."
    )
    representation: Literal["pooled", "entity_start"] = Field(
        "pooled",
        description="What is classified: the text, or both entities' first markers (encoders).",
    )
    markers: Literal["auto", "spare", "punctuation"] = Field(
        "auto",
        description="Around entities: spare tokens of the vocabulary, which LoRA trains; or @, #.",
    )
    no_relation: Annotated[str, Field(min_length=1)] | None = Field(
        "auto",
        description="The label left out of F1; auto: Other, no_relation and the like; null: none.",
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description="Weigh the loss: balanced, by frequency in train; or {label: weight}."
    )

    implementation: ClassVar[str] = (
        "peftlab.tasks.classification.relation_extraction:RelationExtraction"
    )
    example_roles: ClassVar[tuple[str, ...]] = ("text", "label")
    metrics: ClassVar[Mapping[str, bool]] = {
        "f1_macro": True, "f1_micro": True, "accuracy": True, "loss": False,
    }  # fmt: skip
    best_metric: ClassVar[str] = "f1_macro"
    reads: ClassVar[frozenset[str]] = frozenset({"data.label_names"})
    predict_example: ClassVar[str] = '"<e1>Ada</e1> was born in <e2>London</e2>."'
