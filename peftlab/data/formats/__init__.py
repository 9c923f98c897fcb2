"""Formats of rows: which columns there are, and what a task is given of each row."""

from __future__ import annotations

from peftlab.data.formats.chat import Alpaca, Messages, ShareGPT
from peftlab.data.formats.classified import Pair, TextLabel
from peftlab.data.formats.plain import PromptCompletion, Text
from peftlab.data.formats.relation import Relation
from peftlab.data.formats.row_format import RowFormat
from peftlab.data.formats.squad import Squad
from peftlab.data.formats.tokens_tags import TokensTags

__all__ = ["FORMATS", "RowFormat"]

FORMATS: dict[str, RowFormat] = {
    found.name: found
    for found in (
        TextLabel(),
        Pair(),
        TokensTags(),
        Squad(),
        Relation(),
        Alpaca(),
        ShareGPT(),
        Messages(),
        PromptCompletion(),
        Text(),
    )
}
