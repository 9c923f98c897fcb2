"""The format of rows and the column of each role: configured, else by usual names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftlab.data.formats import FORMATS, RowFormat
from peftlab.errors import ConfigError, DataError, did_you_mean

logger = logging.getLogger("peftlab")

UNLABELLED = (
    "Nothing can be measured on rows without answers: leave them out with data.splits.test=null "
    "(or data.splits.validation), and answer them with peftlab predict --file."
)


@dataclass(frozen=True, slots=True)
class Layout:
    """A format, the roles that the task reads, and their columns in train.

    `given` and `source` are the format's name and the columns of the source's rows, where they were
    reshaped.
    """

    format: RowFormat
    roles: Sequence[str]
    columns: Mapping[str, str]
    given: str = ""
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the source's format."""
        return self.given or self.format.name


def choose_layout(
    available: Sequence[str],
    explicit: Mapping[str, str],
    formats: Sequence[str],
    where: str,
    *,
    roles: Sequence[str],
    first: Callable[[Sequence[str]], Sequence[Mapping[str, Any]]],
) -> Layout:
    """The first of `formats` whose columns are available and which the first rows fit.

    `roles` are those that the task reads; `first` reads columns of the first rows. Raises
    `ConfigError` for roles that no format has, `DataError` for missing columns.
    """
    _check_explicit(available, explicit, roles, where)
    known = [FORMATS[name] for name in formats]
    candidates = [form for form in known if explicit.keys() <= form.roles.keys()]
    if not candidates:
        described = "; ".join(f"{name} has {', '.join(FORMATS[name].roles)}" for name in formats)
        raise ConfigError(
            f"data.columns names {' and '.join(explicit)}, which no single format has: {described}."
        )
    tried: list[tuple[RowFormat, dict[str, str]]] = []
    for candidate in candidates:
        by_name = candidate.find(available, explicit, where)
        tried.append((candidate, by_name))
        if candidate.lacking(by_name) is not None:
            continue
        by_role = [
            {role: values.get(column) for role, column in by_name.items()}
            for values in first(list(by_name.values()))
        ]
        if len(formats) == 1 or candidate.fits_rows(by_role):
            columns = {role: by_name[role] for role in candidate.roles if role in by_name}
            columns = {role: name for role, name in columns.items() if role in roles}
            _log_layout(candidate, columns, explicit, where)
            _log_unread(candidate, columns, available, where)
            return Layout(candidate, roles, columns)
    raise _nothing_fits(tried, available, where)


def _check_explicit(
    available: Sequence[str], explicit: Mapping[str, str], roles: Sequence[str], where: str
) -> None:
    for role in explicit:
        if role not in roles:
            hint = did_you_mean(role, {name: f"data.columns.{name}" for name in roles})
            raise ConfigError(
                f"data.columns.{role} is not a role of this task{hint or ';'} "
                f"roles are {', '.join(roles)}."
            )
    for role, column in explicit.items():
        if column not in available:
            raise DataError(
                f"{where} has no column {column!r} (data.columns.{role})"
                + describe_available(column, available)
            )
    doubled = next((c for c in explicit.values() if list(explicit.values()).count(c) > 1), None)
    if doubled is not None:
        raise ConfigError(f"data.columns uses column {doubled!r} for two roles.")


def _nothing_fits(
    tried: Sequence[tuple[RowFormat, dict[str, str]]], available: Sequence[str], where: str
) -> DataError:
    """An error on what is missing of the best matching format; of several, the plainest."""

    def matches(pair: tuple[RowFormat, dict[str, str]]) -> tuple[int, int]:
        form, columns = pair
        missing = [role for role, needed in form.roles.items() if needed and role not in columns]
        return len(columns), -len(missing) if columns else 0

    form, columns = max(reversed(tried), key=matches)
    role = form.lacking(columns)
    if role is None:
        named = ", ".join(f"{role} = {column!r}" for role, column in columns.items())
        return DataError(
            f"{where}: the columns {named} match the format {form.name}, but the first row does "
            "not. Set data.format=..., or choose other columns with data.columns.ROLE=..."
        )
    others = [
        f"{other.name} ({', '.join(role for role, needed in other.roles.items() if needed)})"
        for other, _ in tried
        if other is not form
    ]
    return DataError(
        f"{where} has no column for {role!r}: none is called {', '.join(form.usual[role])}"
        + describe_available(role, available)
        + f" Name it with data.columns.{role}=..."
        + _without_header(role, available)
        + (f" Other formats that the task reads: {'; '.join(others)}." if others else "")
    )


def _without_header(role: str, available: Sequence[str]) -> str:
    """A hint where names look like a row: numbers, or whole sentences."""
    if not any(name.isdigit() or len(name.split()) > 4 for name in available):
        return ""
    return (
        " If the file has no header, set data.reader.header=false: its columns are then called "
        f"1, 2, ..., as in data.columns.{role}=1."
    )


def _log_layout(
    form: RowFormat, columns: Mapping[str, str], explicit: Mapping[str, str], where: str
) -> None:
    logger.info("data format: %s (columns %s)", form.name, ", ".join(columns.values()))
    guessed = {role: column for role, column in columns.items() if role not in explicit}
    if any(role != column for role, column in guessed.items()):
        guesses = ", ".join(f"{role} = {column!r}" for role, column in guessed.items())
        logger.info("columns chosen by name in %s: %s", where, guesses)


def _log_unread(
    form: RowFormat, columns: Mapping[str, str], available: Sequence[str], where: str
) -> None:
    for name in available:
        why = form.unread.get(name.lower())
        if why is not None and name not in columns.values():
            logger.warning("%s: column %r is not read: %s", where, name, why)


def columns_of_split(layout: Layout, available: Sequence[str], where: str) -> dict[str, str]:
    """The layout's columns in another split, where optional columns may be missing or added.

    Raises `DataError` for a column that every row must have.
    """
    present: dict[str, str] = {}
    for role, column in layout.columns.items():
        if column in available:
            present[role] = column
        elif layout.format.lacking({r: c for r, c in layout.columns.items() if r != role}):
            hint = f" {UNLABELLED}" if role in layout.format.targets else ""
            raise DataError(
                f"{where} has no column {column!r}, which train has as {role}"
                + describe_available(column, available)
                + hint
            )
    for role, column in layout.format.find(available, present, where).items():
        if role in layout.roles and not layout.format.roles[role]:
            present.setdefault(role, column)
    return present


def describe_available(wanted: str, available: Sequence[str]) -> str:
    """The end of a message on a missing column: similar names and the available columns."""
    hint = did_you_mean(wanted, available, most=3, cutoff=0.5)
    shown = ", ".join(available[:12]) + (", ..." if len(available) > 12 else "")
    return f"{hint or ';'} its columns are {shown}."
