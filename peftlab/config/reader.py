"""How files of rows are read, where their content does not say it."""

from __future__ import annotations

from encodings.aliases import aliases
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from peftlab.config.checks import problem_at
from peftlab.config.section import Section, Written
from peftlab.errors import did_you_mean

_SPELT_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}


def _character(value: Any) -> Any:
    """One character, also spelt: tab, comma, semicolon, pipe."""
    if isinstance(value, str) and value not in ("auto", ""):
        value = _SPELT_DELIMITERS.get(value.lower(), value)
        if len(value) != 1 or value in "\r\n":
            raise PydanticCustomError("character", "a single character, or tab")
    return value


Character = Annotated[
    str,
    Field(min_length=1, max_length=1),
    BeforeValidator(_character),
    Written("a single character, tab, comma, semicolon or pipe"),
]
Encoding = Annotated[str, Field(min_length=1), Written("the name of an encoding, as cp1252")]


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

    @model_validator(mode="after")
    def _known_encoding(self) -> Self:
        if self.encoding != "auto":
            try:
                "".encode(self.encoding)
            except LookupError:
                names = [*aliases, *aliases.values(), "latin-1", "cp1252"]
                hint = did_you_mean(self.encoding, names)
                raise problem_at(
                    "encoding",
                    f"is {self.encoding!r}{hint or ';'} allowed: auto, or an encoding of text that "
                    "Python knows, as cp1252 or shift_jis",
                ) from None
        return self
