"""Generate completions for a batch of prompts, or targets for a batch of sources."""

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
    """The checkpoint's own settings under `settings`; it also stops at EOS and at `also_stops`.

    Without `do_sample` the result is greedy (or beam) search, whatever the checkpoint samples by.
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
    """Tokens a prompt may have, so that prompt and answer fit the model's positions."""
    positions = getattr(base_model(model).config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int):
        return max_length
    room = min(max_length, positions - max_new_tokens)
    if room < 1:
        raise ConfigError(
            f"eval.generation.max_new_tokens={max_new_tokens} leaves no room for a prompt: the "
            f"model has {positions} positions. Choose fewer."
        )
    return room


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
) -> list[dict[str, Any]]:
    """`{"text", "finished"}` for each prompt; `finished`: it ended by itself, not by the limit.

    An encoder-decoder's prompts are the sources, whole; what it writes has a start token before it.
    """
    device = next(model.parameters()).device
    base = base_model(model)
    apart = bool(base.config.is_encoder_decoder)
    # Padding on the left: every prompt ends where its answer begins. An encoder's lies as trained.
    collate = PaddingCollator(pad_id_of(tokenizer), "right" if apart else "left")
    batch = collate([{"input_ids": ids} for ids in prompts])
    batch = {name: value.to(device) for name, value in batch.items()}
    given = 1 if apart else batch["input_ids"].shape[1]
    own = base.generation_config
    # Given as an argument, what it leaves at None would be filled up from the checkpoint's.
    base.generation_config = config
    try:
        generated: Any = model.generate(**batch)  # type: ignore[operator]
    finally:
        base.generation_config = own
    stops = set(config.eos_token_id or ())
    answers = []
    for row in generated[:, given:].tolist():
        end = next((index for index, token in enumerate(row) if token in stops), None)
        text = tokenizer.decode(row[:end], skip_special_tokens=True)
        answers.append({"text": text, "finished": end is not None})
    return answers
