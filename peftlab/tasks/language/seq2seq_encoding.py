"""Sources and targets of an encoder-decoder as token ids, with batches and model checks.

Both have the tokenizer's special tokens (T5: `text </s>`). A source that is too long loses its end
but keeps its special tokens. A target ends with the end token, which is trained, so that the model
learns to stop; a truncated one has none, so that it does not learn to stop in the middle. The
decoder reads the target shifted right by one, after the model's start token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftlab.errors import CheckFailed, ConfigError
from peftlab.tasks.collate import PaddingCollator
from peftlab.tasks.encoding import IGNORED, Gathered, batches_of, token_statistics
from peftlab.tasks.language.languages import Languages
from peftlab.tasks.language.loss.hidden_states import base_model
from peftlab.tasks.task import Batch, Encoded

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("peftlab")


def source_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> tuple[list[list[int]], list[int]]:
    """Ids of each text with special tokens, cut to `max_length`, and the uncut lengths.

    Raises `ConfigError` where the special tokens alone fill `max_length`.
    """
    special = int(tokenizer.num_special_tokens_to_add())
    if max_length <= special:
        raise ConfigError(
            f"data.max_length is {max_length}, but special tokens take {special} of it; set it to "
            f"{special + 1} or more."
        )
    whole = _ids(tokenizer, list(texts))
    lengths = [len(ids) for ids in whole]
    long = [row for row, length in enumerate(lengths) if length > max_length]
    if long:
        cut = _ids(tokenizer, [texts[row] for row in long], truncation=True, max_length=max_length)
        for row, ids in zip(long, cut, strict=True):
            whole[row] = ids
    return whole, lengths


def warn_of_cut(lengths: Sequence[int], max_length: int) -> None:
    """Warn of truncated sources; `lengths` are the uncut ones."""
    cut = sum(length > max_length for length in lengths)
    if cut:
        logger.warning(
            "%d of %d sources are longer than data.max_length=%d tokens and were cut "
            "(the longest has %d)", cut, len(lengths), max_length, max(lengths),
        )  # fmt: skip


def warn_of_short_texts(encoded: Encoded, most: int) -> None:
    """Warn where one target in twenty is longer than the `most` tokens to generate."""
    if encoded.targets is not None and encoded.targets.p95 > most:
        logger.warning(
            "one target in twenty has %d tokens or more, but evaluation generates at most "
            "eval.generation.max_new_tokens=%d; raise it", encoded.targets.p95, most,
        )  # fmt: skip


def target_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    limit: int,
    languages: Languages | None = None,
) -> tuple[list[list[int]], list[int]]:
    """Ids of each target with its end token, cut to `limit`, and the uncut lengths.

    With `languages`, as generation writes it: the forced token, the text, the end token.
    """
    end = end_token(tokenizer)
    if languages is not None:
        first = [] if languages.forced is None else [languages.forced]
        texts_alone = _ids(tokenizer, None, text_target=list(texts), add_special_tokens=False)
        whole = [[*first, *ids, end] for ids in texts_alone]
        return [ids[:limit] for ids in whole], [len(ids) for ids in whole]
    whole = [
        ids if ids[-1:] == [end] else [*ids, end]
        for ids in _ids(tokenizer, None, text_target=list(texts))
    ]
    return [ids[:limit] for ids in whole], [len(ids) for ids in whole]


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end token's id. Raises `CheckFailed` for a tokenizer without one."""
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise CheckFailed(
            f"{tokenizer.name_or_path}: the tokenizer has no end token, so the model cannot learn "
            "where a target ends; set eos_token in its tokenizer_config.json."
        )
    return end


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Any, **settings: Any) -> list[list[int]]:
    encoded = tokenizer(texts, return_attention_mask=False, verbose=False, **settings)
    return [list(ids) for ids in encoded["input_ids"]]


def encode_seq2seq(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefix: str,
    max_length: int,
    target_limit: int,
    languages: Languages | None = None,
) -> Encoded:
    """Rows of `input_ids`, `labels` and `references`, all correct texts of a row."""
    gathered = Gathered()
    lengths: list[int] = []
    trained = unknown = 0
    for batch in batches_of(rows):
        sources, source_lengths = source_ids(
            tokenizer, [prefix + text for text in batch["prompt"]], max_length
        )
        labels, target_lengths = target_ids(tokenizer, batch["completion"], target_limit, languages)
        known = batch.get("references") or [[text] for text in batch["completion"]]
        counted = sum(map(len, labels))
        gathered.add(
            {
                "input_ids": sources,
                "labels": labels,
                "references": [list(texts) for texts in known],
            },
            whole_lengths=source_lengths,
            truncated=sum(length > max_length for length in source_lengths),
            trained=counted,
        )
        lengths += target_lengths
        trained += counted
        unknown += sum(ids.count(tokenizer.unk_token_id) for ids in labels)
    if unknown:
        logger.warning(
            "%d of %d target tokens are %s: the vocabulary lacks the text at these places, and the "
            "model cannot generate it", unknown, trained, tokenizer.unk_token,
        )  # fmt: skip
    targets = token_statistics(
        lengths, rows=len(lengths), truncated=sum(length > target_limit for length in lengths),
        tokens=trained, trained=trained,
    )  # fmt: skip
    return replace(gathered.encoded(), targets=targets, target_limit=target_limit)


@dataclass(frozen=True, slots=True)
class Seq2SeqCollator:
    """Rows to `input_ids`, `attention_mask` [B, S], `labels`, `decoder_input_ids` [B, T].

    Labels are padded with -100. `decoder_input_ids` are `start` and the labels shifted right by
    one, padded with `pad_id`. `tokens` [B] counts tokens of source and target.
    """

    pad_id: int
    start: int

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        sources = [{k: v for k, v in row.items() if k != "labels"} for row in rows]
        batch = PaddingCollator(self.pad_id)(sources)
        labels = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row["labels"], dtype=torch.int64) for row in rows],
            batch_first=True, padding_value=IGNORED,
        )  # fmt: skip
        before = torch.full((len(rows), 1), self.start)
        shifted = torch.cat([before, labels[:, :-1]], dim=1)
        batch["labels"] = labels
        batch["decoder_input_ids"] = shifted.masked_fill(shifted == IGNORED, self.pad_id)
        batch["tokens"] = torch.tensor([len(row["input_ids"]) + len(row["labels"]) for row in rows])
        return batch


def start_token(model: nn.Module) -> int:
    """The decoder's start token. Raises `CheckFailed` for a model without one.

    Looked up as in `generate`: the start token of generation or of the model, else its BOS.
    """
    base = base_model(model)
    candidates = (
        getattr(settings, name, None)
        for name in ("decoder_start_token_id", "bos_token_id")
        for settings in (base.generation_config, base.config)
    )
    start = next((token for token in candidates if isinstance(token, int)), None)
    if start is None:
        raise CheckFailed(
            f"{type(base).__name__} has no start token of its decoder; set "
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
