"""How files of rows are read, where their content does not say it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from peftlab.config.section import Section


class ReaderConfig(Section):
    format: Literal["auto"] | str = Field(
        "auto", min_length=1, description="csv, tsv, json, txt, parquet, ...; auto: by content."
    )
