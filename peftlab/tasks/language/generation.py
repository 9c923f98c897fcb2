"""Generation of completions for prompts, or of targets for sources."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftlab.errors import ConfigError
from peftlab.tasks.collate import PaddingCollator, pad_id_of
from peftlab.tasks.language.loss.hidden_states import base_model

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "typical_p")
_BEAMS_ONLY = ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty")
_DEFAULT_NEW_TOKENS = 64


def generation_config(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any] | None,
    also_stops: Sequence[int] = (),
) -> GenerationConfig:
    """The checkpoint's settings overridden by `settings`, stopping at EOS and `also_stops` too.

    Without `do_sample` it is greedy or beam search, even where the checkpoint's default samples.
    """
    config = copy.deepcopy(base_model(model).generation_config)
    config.update(**{"do_sample": False, "max_new_tokens": _DEFAULT_NEW_TOKENS, **(settings or {})})
    if not config.do_sample:
        config.update(**dict.fromkeys(_SAMPLING_ONLY))
    if config.num_beams == 1:
        config.update(**dict.fromkeys(_BEAMS_ONLY))
    config.update(max_length=None, pad_token_id=pad_id_of(tokenizer), use_cache=True)
    stops = config.eos_token_id
    stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    stops += [stop for stop in (tokenizer.eos_token_id, *also_stops) if isinstance(stop, int)]
    stops = list(dict.fromkeys(stops))
    config.eos_token_id = stops or None
    return config  # type: ignore[no-any-return]


def prompt_room(model: nn.Module, max_length: int, max_new_tokens: int) -> int:
    """The most tokens of a prompt so that prompt and answer fit the model's positions."""
    positions = getattr(base_model(model).config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int):
        return max_length
    room = min(max_length, positions - max_new_tokens)
    if room < 1:
        raise ConfigError(
            f"eval.generation.max_new_tokens={max_new_tokens} leaves no room for a prompt: the "
            f"model has {positions} positions. Lower it."
        )
    return room


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
) -> list[dict[str, Any]]:
    """`{"text", "finished"}` for each prompt; `finished`: it ended before the token limit.

    An encoder-decoder's prompts are its sources; its output begins with the start token.
    """
    device = next(model.parameters()).device
    base = base_model(model)
    is_seq2seq = bool(base.config.is_encoder_decoder)
    # Padding on the left: an answer follows its prompt directly. Encoders pad as in training.
    collate = PaddingCollator(pad_id_of(tokenizer), "right" if is_seq2seq else "left")
    batch = collate([{"input_ids": ids} for ids in prompts])
    batch = {name: value.to(device) for name, value in batch.items()}
    skipped = 1 if is_seq2seq else batch["input_ids"].shape[1]
    own = base.generation_config
    # As an argument of `generate`, its None values would be filled from the checkpoint's config.
    base.generation_config = config
    try:
        generated: Any = model.generate(**batch)  # type: ignore[operator]
    finally:
        base.generation_config = own
    stops = set(config.eos_token_id or ())
    answers = []
    for row in generated[:, skipped:].tolist():
        end = next((index for index, token in enumerate(row) if token in stops), None)
        text = tokenizer.decode(row[:end], skip_special_tokens=True)
        answers.append({"text": text, "finished": end is not None})
    return answers
