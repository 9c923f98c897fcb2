"""Formats of rows: their columns, and the values that a task gets from each row."""

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
    form.name: form
    for form in (
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
