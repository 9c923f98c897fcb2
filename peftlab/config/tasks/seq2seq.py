"""Options of sequence-to-sequence tasks: summaries, translations, texts out of data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from peftlab.config.checks import problem_at
from peftlab.config.section import Count
from peftlab.config.tasks.options import TaskOptions

TextMetric = Literal["chrf", "bleu", "rouge"]
_ALL: tuple[TextMetric, ...] = ("chrf", "bleu", "rouge")


class Seq2SeqOptions(TaskOptions):
    name: Literal["seq2seq"] = Field(
        description="A text out of a text, by an encoder-decoder: summary, translation, ..."
    )
    prefix: str = Field(
        "", description='Put before every source, in training and in prediction: "summarize: ".'
    )
    src_lang: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="The sources' language, for mBART, NLLB, M2M100: en_XX, eng_Latn, en."
    )
    tgt_lang: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="The targets' language, which generation is made to begin with."
    )
    max_target_length: Count = Field(
        128, description="Tokens that a target may have; data.max_length is for sources."
    )
    text_metrics: list[TextMetric] = Field(
        default_factory=lambda: list(_ALL),
        description="Measured on generated texts; the first chooses. []: none, and loss chooses.",
    )
    bleu_tokenizer: Literal["auto", "13a", "intl", "zh", "char", "none"] = Field(
        "auto",
        description="How sacreBLEU cuts words; auto: zh or char where train's targets need it.",
    )
    rouge_stemmer: bool = Field(
        False, description="ROUGE compares stems of English words, as papers on summaries do."
    )

    implementation: ClassVar[str] = "peftlab.tasks.language.seq2seq:Seq2Seq"
    example_roles: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    metrics: ClassVar[Mapping[str, bool]] = {
        "chrf": True, "bleu": True, "rouge1": True, "rouge2": True, "rougeL": True,
        "rougeLsum": True, "token_accuracy": True, "loss": False,
    }  # fmt: skip
    best_metric: ClassVar[str] = "chrf"
    reads: ClassVar[frozenset[str]] = frozenset({"eval.generation", "train.loss"})
    head: ClassVar[Literal["classifier", "language-model"]] = "language-model"
    peft_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    predict_example: ClassVar[str] = '"a source of yours"'

    @model_validator(mode="after")
    def _each_once(self) -> Seq2SeqOptions:
        if len(set(self.text_metrics)) < len(self.text_metrics):
            raise problem_at("text_metrics", f"names one twice: {', '.join(self.text_metrics)}")
        return self
