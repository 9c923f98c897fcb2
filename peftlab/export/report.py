"""The report of a merge, written as `merge_report.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPORT = "merge_report.json"


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was merged and how it was checked. Bytes and seconds; errors are relative.

    `compared`: the forms of an 8-bit base, of which the nearest was chosen, if requested.
    """

    folder: Path
    base: str
    source: str
    counts: Mapping[str, int]
    files: tuple[str, ...]
    dtype: str
    total_bytes: int
    untied: bool
    dropped: tuple[str, ...]
    auto_class: str
    added: tuple[str, ...]
    hashes: Mapping[str, str] = field(default_factory=dict)
    verified: Mapping[str, Any] = field(default_factory=dict)
    compared: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_anonymous_bytes: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report in JSON values; of folders only the last part is named."""
        values = asdict(self) | {"folder": self.folder.name}
        return values
