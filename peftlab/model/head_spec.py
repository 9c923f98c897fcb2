"""The head that a task needs, and whether a checkpoint's architecture supports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftlab.errors import CheckFailed
from peftlab.model.pooling import is_decoder


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The kind of head that a task needs, in Transformers' terms.

    `auto_class` names one of Transformers' auto classes; `config` holds the configuration fields
    that shape the head (`num_labels`, `id2label`, `label2id`, `problem_type`).
    """

    auto_class: str
    config: Mapping[str, object] = field(default_factory=dict)


def label_config(names: Sequence[str]) -> dict[str, object]:
    """The configuration fields of a head with one output for each name."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


CAUSAL = "AutoModelForCausalLM"
SEQ2SEQ = "AutoModelForSeq2SeqLM"
LANGUAGE_MODELS = frozenset({CAUSAL, SEQ2SEQ})
"""Classes whose head is pretrained: none is initialised."""


def check_architecture(name: str, config: Any, auto_class: str) -> None:
    """Raise `CheckFailed` where the architecture does not have the kind that the class needs."""
    what = f"{name} ({config.model_type})"
    if auto_class == CAUSAL and config.is_encoder_decoder:
        raise CheckFailed(
            f"{what} is an encoder-decoder, not a causal language model; train it with "
            "task=seq2seq, or choose a decoder such as GPT-2 or Llama."
        )
    if auto_class == CAUSAL and not is_decoder(config):
        raise CheckFailed(
            f"{what} is not a causal language model: its tokens attend to those after them, "
            "including the answer; choose a decoder such as GPT-2 or Llama."
        )
    if auto_class == SEQ2SEQ and not config.is_encoder_decoder:
        alone = "a decoder" if is_decoder(config) else "an encoder"
        raise CheckFailed(
            f"{what} is {alone} only, and this task needs an encoder-decoder; choose one such as "
            "T5 or BART, or train a decoder such as GPT-2 or Llama with task=causal-lm."
        )
