"""How files of rows are read, where their content does not say it."""

from __future__ import annotations

import codecs
from encodings.aliases import aliases
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from peftlab.config.section import Section
from peftlab.errors import did_you_mean

_SPELT_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}


def _character(value: Any) -> Any:
    """One character, also spelt: tab, comma, semicolon, pipe."""
    if isinstance(value, str) and value not in ("auto", ""):
        value = _SPELT_DELIMITERS.get(value.lower(), value)
        if len(value) != 1 or value in "\r\n":
            raise PydanticCustomError("character", "a single character, or tab")
    return value


def _encoding(name: str) -> str:
    """The name of an encoding of text that Python knows."""
    try:
        known = codecs.lookup(name)
    except LookupError:
        hint = did_you_mean(name, {*aliases, *aliases.values()}) or ", as in cp1252 or shift_jis"
        raise PydanticCustomError(
            "encoding", "the name of an encoding{hint}", {"hint": hint.rstrip("?")}
        ) from None
    if not known._is_text_encoding:
        raise PydanticCustomError("encoding", "the name of an encoding of text, as cp1252")
    return name


Character = Annotated[str, Field(min_length=1, max_length=1), BeforeValidator(_character)]
Encoding = Annotated[str, Field(min_length=1), AfterValidator(_encoding)]


def _column(value: Any) -> Any:
    return str(value) if type(value) is int else value


Column = Annotated[
    str,
    BeforeValidator(_column),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 1}]}),
]
"""A column's name; those of a file without a header are 1, 2, ..., and may be numbers here."""


class ReaderConfig(Section):
    format: Literal["auto"] | str = Field(
        "auto", min_length=1, description="csv, tsv, json, txt, parquet, ...; auto: by content."
    )
    encoding: Literal["auto"] | Encoding = Field(
        "auto", description="auto: by byte-order mark, else UTF-8; cp1252, shift_jis, ..."
    )
    delimiter: Literal["auto"] | Character = Field(
        "auto", description="Between fields; auto: the one of , ; | and tab that fits every row."
    )
    quotechar: Literal["auto"] | Character | None = Field(
        "auto", description="Around fields; null: quotes are text; auto: as every row is complete."
    )
    header: Literal["auto"] | bool | Annotated[int, Field(ge=1)] = Field(
        "auto", description="false: none, columns are 1, 2, ...; a number: the line of the names."
    )
    sheet: str | Annotated[int, Field(ge=1)] | None = Field(
        None, description="Name or number, from 1, of a workbook's sheet."
    )
