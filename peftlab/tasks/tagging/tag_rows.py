"""Tagged rows split into windows of ids, and the windows' scores joined into rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from peftlab.errors import ConfigError
from peftlab.tasks.tagging.word_pieces import Words, pieces_of_words, tagged_pieces
from peftlab.tasks.task import IGNORED, Batch, RowScores
from peftlab.tasks.windows import frame_of, owners, shared_tokens, windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodedTags:
    """Columns of encoded windows, and the lengths of their whole rows."""

    columns: dict[str, list[Any]]
    lengths: list[int]


def encoded_rows(
    rows: Sequence[Words],
    tags: Sequence[Sequence[int]] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    stride: int | Literal["auto"],
    which: Literal["first", "last"],
    first_row: int,
) -> EncodedTags:
    """Ids and labels of the rows' windows, with `row`, `words` and `unread`.

    Without `tags` each label is 0; a word with the label `IGNORED` is read, and neither trained nor
    scored. `lengths` has one entry a window: the whole row's length.
    """
    frame = frame_of(tokenizer, pair=False)
    room = max_length - frame.size
    if room < 1:
        raise ConfigError(
            f"data.max_length is {max_length}, but each row has {frame.size} special tokens and "
            "needs room for one more; raise it."
        )
    shared = shared_tokens(stride, room, auto=4)
    names = ["input_ids", "labels", "row", "words", "unread"]
    names += ["token_type_ids"] if frame.types is not None else []
    encoded = EncodedTags({name: [] for name in names}, [])
    read = pieces_of_words(tokenizer, [words.words for words in rows])
    for number, (words, (ids, of_piece)) in enumerate(zip(rows, read, strict=True)):
        count = len(words.words)
        labels = [0] * count if tags is None else tags[number]
        tagged = tagged_pieces(of_piece, count, which)
        word_at = {
            piece: word
            for word, piece in enumerate(tagged)
            if piece is not None and labels[word] != IGNORED
        }
        unread = [
            [w, labels[w]]
            for w, piece in enumerate(tagged)
            if piece is None and labels[w] != IGNORED
        ]
        spans = windows(len(ids), room, shared)
        owner = owners(len(ids), spans)
        if not ids and frame.size == 0:  # the model needs at least one token
            ids, spans = [tokenizer.eos_token_id or 0], [(0, 1)]
        for index, (start, end) in enumerate(spans):
            owned = [p for p in range(start, end) if p in word_at and owner[p] == index]
            row_labels = [IGNORED] * (len(frame.before) + end - start + len(frame.after))
            for piece in owned:
                row_labels[len(frame.before) + piece - start] = labels[word_at[piece]]
            columns: Mapping[str, Any] = {
                **frame.around(ids[start:end]),
                "labels": row_labels,
                "row": first_row + number,
                "words": [word_at[piece] for piece in owned],
                "unread": json.dumps(unread) if unread and index == 0 else "",
            }
            for name, value in columns.items():
                encoded.columns[name].append(value)
            encoded.lengths.append(len(ids) + frame.size)
    return encoded


@dataclass(frozen=True, slots=True)
class TagRows:
    """Tag indices of whole rows, true and predicted; -1: nothing was predicted."""

    labels: list[list[int]]
    predictions: list[list[int]]

    @staticmethod
    def scores(
        labels: torch.Tensor, predictions: torch.Tensor, batch: Batch, *, unread: int
    ) -> RowScores:
        """Scores of a batch of windows [B, T]; `tagged` [B] lists (word, true, predicted).

        `unread` is the prediction for words without tokens.
        """
        tagged = np.empty(len(labels), dtype=object)
        items = np.zeros(len(labels), dtype=np.int64)
        for i, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
            kept = label != IGNORED
            items[i] = int(kept.sum())
            words = batch["words"][i][: items[i]].tolist()
            tagged[i] = list(zip(words, label[kept].tolist(), prediction[kept].tolist(),
                                 strict=True))  # fmt: skip
            if batch["unread"][i]:
                tagged[i] += [(w, tag, unread) for w, tag in json.loads(batch["unread"][i])]
        return {"items": items, "row": batch["row"].cpu().numpy(), "tagged": tagged}

    def whole_scores(self) -> RowScores:
        """These rows as scores, one window each."""
        tagged = np.empty(len(self.labels), dtype=object)
        for i, (label, prediction) in enumerate(zip(self.labels, self.predictions, strict=True)):
            tagged[i] = list(zip(range(len(label)), label, prediction, strict=True))
        sizes = np.asarray([len(label) for label in self.labels])
        return {"items": sizes, "row": np.arange(len(self.labels)), "tagged": tagged}

    @classmethod
    def joined(cls, scores: RowScores) -> TagRows:
        """Rows joined from their windows' scores, the words in order."""
        rows: dict[int, list[tuple[int, int, int]]] = {}
        for row, tagged in zip(scores["row"].tolist(), scores["tagged"], strict=True):
            rows.setdefault(row, []).extend(tuple(word) for word in tagged)
        ordered = [sorted(rows[row]) for row in sorted(rows)]
        return cls(
            [[label for _, label, _ in row] for row in ordered],
            [[prediction for _, _, prediction in row] for row in ordered],
        )

    def right(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Correctly tagged words and all words of each row: [rows] each."""
        pairs = list(zip(self.labels, self.predictions, strict=True))
        hits = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in pairs]
        return np.asarray(hits), np.asarray([len(label) for label, _ in pairs])
