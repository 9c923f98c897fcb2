"""What an encoder-decoder says of its decoder: where it begins, and how far it goes."""

from __future__ import annotations

from torch import nn

from peftlab.errors import CheckFailed, ConfigError
from peftlab.tasks.language.loss.hidden_states import base_model


def start_token(model: nn.Module) -> int:
    """The id that the decoder is given before a target. Raises `CheckFailed` where there is none.

    As `generate` finds it: the start token of generation or of the model, else its BOS.
    """
    base = base_model(model)
    said = (
        getattr(settings, name, None)
        for name in ("decoder_start_token_id", "bos_token_id")
        for settings in (base.generation_config, base.config)
    )
    start = next((token for token in said if isinstance(token, int)), None)
    if start is None:
        raise CheckFailed(
            f"{type(base).__name__} does not say what its decoder begins with; set "
            "decoder_start_token_id in its config.json (T5: the padding token's id)."
        )
    return start


def check_room(model: nn.Module, tokens: int, key: str) -> None:
    """Raise `ConfigError` where the decoder has fewer positions than `tokens`, which `key` sets."""
    config = base_model(model).config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    relative = hasattr(config, "relative_attention_num_buckets")
    if isinstance(positions, int) and not relative and tokens > positions:
        raise ConfigError(
            f"{key} is {tokens}, but the model's decoder has {positions} positions; set it to "
            f"{positions} or less."
        )
