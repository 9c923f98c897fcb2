"""Whether a checkpoint's architecture can do what a task asks of it."""

from __future__ import annotations

from typing import Any

from peftlab.errors import CheckFailed
from peftlab.model.pooling import is_decoder

CAUSAL = "AutoModelForCausalLM"
SEQ2SEQ = "AutoModelForSeq2SeqLM"
LANGUAGE_MODELS = frozenset({CAUSAL, SEQ2SEQ})
"""Classes whose head is the pretrained model's own: there is none to draw anew."""


def check_architecture(name: str, config: Any, auto_class: str) -> None:
    """Raise `CheckFailed` where a decoder or an encoder-decoder is needed, and this is another."""
    what = f"{name} ({config.model_type})"
    if auto_class == CAUSAL and config.is_encoder_decoder:
        raise CheckFailed(
            f"{what} is an encoder-decoder, and no causal language model; train it with "
            "task=seq2seq, or choose a decoder such as GPT-2 or Llama."
        )
    if auto_class == CAUSAL and not is_decoder(config):
        raise CheckFailed(
            f"{what} is no causal language model: its tokens see those after them, which would "
            "give the answer away; choose a decoder such as GPT-2 or Llama."
        )
    if auto_class == SEQ2SEQ and not config.is_encoder_decoder:
        alone = "a decoder" if is_decoder(config) else "an encoder"
        raise CheckFailed(
            f"{what} is {alone} alone, and this task needs an encoder-decoder; choose one such as "
            "T5 or BART, or train a decoder such as GPT-2 or Llama with task=causal-lm."
        )
