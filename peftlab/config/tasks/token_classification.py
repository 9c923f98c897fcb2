"""Options of token classification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from peftlab.config.section import AutoCount
from peftlab.config.tasks.options import TaskOptions


class TokenClassificationOptions(TaskOptions):
    name: Literal["token-classification"] = Field(description="A tag for each word: entities, ...")
    scheme: Literal["auto", "spans", "plain"] = Field(
        "auto", description="spans: tags B-x, I-x, O (IOB, BIOES, BILOU); plain: tags alone."
    )
    label_piece: Literal["first", "last"] = Field(
        "first", description="The piece of a word that is tagged; decoders may prefer last."
    )
    stride: AutoCount = Field(
        "auto", description="Tokens that the windows of a long row share; auto: a quarter."
    )
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description="Weigh the loss: balanced, by frequency in train; or {tag: weight}."
    )

    implementation: ClassVar[str] = "peftlab.tasks.tagging.token_classification:TokenClassification"
    example_roles: ClassVar[tuple[str, ...]] = ("tokens", "tags")
    metrics: ClassVar[Mapping[str, bool]] = {
        "f1": True, "precision": True, "recall": True, "f1_macro": True, "accuracy": True,
        "loss": False,
    }  # fmt: skip
    best_metric: ClassVar[str] = "f1"
    reads: ClassVar[frozenset[str]] = frozenset({"data.label_names"})
    peft_type: ClassVar[str] = "TOKEN_CLS"
    predict_example: ClassVar[str] = '"Ada Lovelace lived in London"'
