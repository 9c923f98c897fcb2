"""From token features to one vector per row, and the pooling that a checkpoint was trained for.

Legend: B rows, T tokens, H features.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import torch

from peftlab.errors import CheckFailed

if TYPE_CHECKING:
    from peftlab.model.checkpoint import Checkpoint

Pooling = Literal["auto", "cls", "mean", "last", "model"]

_CONFIG = "1_Pooling/config.json"
"""Where sentence-transformers records how a checkpoint's tokens are pooled."""
_MODES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """hidden [B, T, H], attention_mask [B, T] of 0 and 1 -> [B, H] in fp32.

    `cls` takes each row's first token, `last` its last, with padding on either side.
    """
    mask = attention_mask.to(hidden.device)
    if pooling == "mean":
        weights = mask.unsqueeze(-1).float()
        return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    if pooling == "cls":
        index = mask.to(torch.int64).argmax(1)
    elif pooling == "last":
        index = (mask.to(torch.int64) * positions).argmax(1)
    else:
        raise ValueError(f"pooling is {pooling!r}, which pools no token features")
    return hidden[torch.arange(len(hidden), device=hidden.device), index].float()


def choose_pooling(requested: Pooling, checkpoint: Checkpoint) -> Pooling:
    """Resolve auto: the checkpoint's own pooling; else mean for encoders, last for decoders.

    An encoder-decoder keeps Transformers' head (`model`). Raises `CheckFailed` where the
    checkpoint's own pooling is not supported.
    """
    if requested != "auto":
        return requested
    recorded = _recorded(checkpoint)
    if recorded is not None:
        return recorded
    if checkpoint.config.is_encoder_decoder:
        return "model"
    return "last" if is_decoder(checkpoint.config) else "mean"


def is_decoder(config: Any) -> bool:
    """Whether each token attends only to those before it."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return bool(
        kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and not config.is_encoder_decoder
        and (not masked or getattr(config, "is_decoder", False))
    )


def _recorded(checkpoint: Checkpoint) -> Pooling | None:
    if checkpoint.folder is not None:
        path = checkpoint.folder / _CONFIG
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    else:
        from transformers.utils.hub import cached_file

        cached = cached_file(
            checkpoint.name,
            _CONFIG,
            revision=checkpoint.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        text = None
        if cached is not None:
            with open(cached, encoding="utf-8") as file:  # noqa: PTH123  (the cache's own path)
                text = file.read()
    if text is None:
        return None
    try:
        settings = json.loads(text)
        modes = [k.removeprefix("pooling_mode_") for k, on in settings.items() if on is True]
        modes += [settings["pooling_mode"]] if "pooling_mode" in settings else []
    except (ValueError, AttributeError) as error:
        raise CheckFailed(f"{_CONFIG} of {checkpoint.name} is not readable: {error}.") from None
    modes = [
        m.removesuffix("_token").removesuffix("_tokens") for m in modes if m != "include_prompt"
    ]
    if len(modes) == 1 and modes[0] in _MODES:
        return _MODES[modes[0]]
    raise CheckFailed(
        f"{checkpoint.name} pools by {', '.join(modes) or 'no mode'}, which is not supported; "
        "set method.pooling to cls, mean, last or model."
    )
