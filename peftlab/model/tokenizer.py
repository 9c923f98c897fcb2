"""The tokenizer of a model: it always has a padding token, and all its ids have embeddings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import nn

from peftlab.errors import CheckFailed
from peftlab.model.checkpoint import local_folder
from peftlab.model.structure import input_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("peftlab")


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, with a padding token.

    Where it has none (GPT-2, Llama), an existing token is used: the unknown token if that is a
    separate one, else the end token. Padded positions are masked out of attention
    and loss by position, not by id, so either is safe; a new token would need a new embedding.
    Raises `CheckFailed` where there is no tokenizer or no such token.
    """
    from transformers import AutoTokenizer

    folder = local_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder or name, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckFailed(
            f"{name} has no usable tokenizer ({first}); put tokenizer.json beside the model."
        ) from None
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        # Without files Transformers builds a tokenizer of special tokens only.
        raise CheckFailed(f"{name} has no tokenizer; put tokenizer.json beside the model.")
    if tokenizer.pad_token is None:
        set_padding_token(tokenizer, name, below=len(tokenizer))
    return tokenizer


def set_padding_token(tokenizer: Any, name: str, *, below: int) -> str:
    """Pad with a special token whose id is less than `below`; returns it. Raises `CheckFailed`."""
    unknown, end, begin = tokenizer.unk_token, tokenizer.eos_token, tokenizer.bos_token
    own_unknown = unknown if unknown not in {end, begin} else None
    for token in (own_unknown, end, begin):
        if token is not None and tokenizer.convert_tokens_to_ids(token) < below:
            tokenizer.pad_token = token
            return str(token)
    raise CheckFailed(
        f"the tokenizer of {name} has no padding token, nor an unknown, end or begin token to pad "
        "with; set pad_token in its tokenizer_config.json."
    )


def fit_to_model(tokenizer: Any, model: nn.Module, name: str) -> tuple[str, ...]:
    """Make tokenizer and model agree on padding, and check that every id has an embedding.

    Returns notes for the user. Raises `CheckFailed` where the tokenizer has ids beyond the
    embeddings.
    """
    config: Any = model.config
    rows = embedding_rows(model)
    notes: list[str] = []
    replaced = None
    if tokenizer.pad_token_id >= rows:
        replaced = tokenizer.pad_token
        new = set_padding_token(tokenizer, name, below=rows)
        notes.append(f"padding with {new} instead of {replaced}, which has no embedding")
    beyond = sorted(t for t, i in tokenizer.get_vocab().items() if i >= rows and t != replaced)
    if beyond:
        raise CheckFailed(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, the model {rows} embeddings: "
            f"{', '.join(beyond[:3])} would have no embedding; use the model's own tokenizer, or "
            "resize the checkpoint once (resize_token_embeddings, save_pretrained)."
        )
    if config.get_text_config().pad_token_id != tokenizer.pad_token_id:
        if config.get_text_config().pad_token_id is None:
            notes.append(f"no padding token in the checkpoint: padding with {tokenizer.pad_token}")
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
        config.pad_token_id = tokenizer.pad_token_id
    return tuple(notes)


def embedding_rows(model: nn.Module) -> int:
    """The number of token ids with an embedding."""
    weight: Any = input_embeddings(model).weight
    return int(weight.shape[0])
