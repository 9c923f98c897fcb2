"""Tags of tokens: names or numbers, positions without a tag, spellings of span prefixes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from peftlab.data.labels.spelling.form import LabelForm, listed
from peftlab.data.labels.spelling.missing import never_a_class
from peftlab.data.labels.spelling.place import Place, some
from peftlab.data.labels.spelling.request import LabelRequest
from peftlab.errors import DataError

logger = logging.getLogger("peftlab")

_IGNORED = (-100, "-100")
"""What Transformers writes for a position without a tag."""
_NUMBERED = re.compile(r"((?:[^\W\d]+[-_ ]?)?)(-?\d+)")
_LETTERS = "BIESLUM"
_STANDARD = re.compile(r"[BIESLU]-.+", re.DOTALL)
_BEFORE = re.compile(r"([BIESLUMbieslum])[-_:./|](.+)", re.DOTALL)
_BEHIND = re.compile(r"(.+)[-_:./|]([BIESLUMbieslum])", re.DOTALL)


def tags_form(values: Sequence[Any], request: LabelRequest, place: Place) -> LabelForm:
    """How a column of tags is read: a list of tags a row, None for a position without a tag.

    Raises `DataError` for numbers without names: which of them is `O` is unknown.
    """
    if request.declared is None:
        _refuse_numbers(values, place)

    def read(value: Any) -> list[Any]:
        items = listed(value)
        if items is None:
            raise ValueError(f'holds {value!r:.40}, not a JSON list such as ["a", "b"]')
        return [None if _is_ignored(item) else _tag(item) for item in items]

    return LabelForm("many", "a tag a token", read)


def _tag(item: Any) -> Any:
    if isinstance(item, str) and item.strip() and not never_a_class(item.strip()):
        return item.strip()
    if isinstance(item, int) and not isinstance(item, bool) and item != -1:
        return item
    raise ValueError(f"holds {item!r:.40} in a list of labels, which are integers or names")


def _is_ignored(item: Any) -> bool:
    return isinstance(item, int | str) and item in _IGNORED


def _refuse_numbers(values: Sequence[Any], place: Place) -> None:
    seen: dict[Any, None] = {}
    for value in values:
        try:
            items = listed(value)
        except ValueError:
            continue
        seen.update(dict.fromkeys(i for i in items or () if isinstance(i, int | str)))
    tags = [tag for tag in seen if not _is_ignored(tag)]
    found = [_NUMBERED.fullmatch(str(tag)) for tag in tags]
    parts = [(match[1], int(match[2])) for match in found if match is not None]
    prefixes = {prefix for prefix, _ in parts}
    if not tags or len(parts) < len(tags) or len(prefixes) > 1:
        return
    (prefix,) = prefixes
    names = [f"{prefix}{number}" for number in sorted({number for _, number in parts})]
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise place.question(
        f"holds tags without names ({shown}): which of them is no entity? "
        + (
            f"Write that one as O in the data; data.label_names=[{shown}] takes all as entities."
            if prefix
            else "Name 0, 1, ... in order, with data.label_names=[O, B-PER, ...] or a labels.json "
            "beside the data."
        )
    )


def standard_tags(names: Sequence[str], where: str) -> dict[str, str]:
    """The standard spelling, B-x, I-x and O, of tags that are spelt otherwise.

    `B_PER`, `PER-B`, `b-per`, `o` and the M- of BMES are mapped where all tags are spelt that way.
    Raises `DataError` where two tags become one.
    """
    outside = [name for name in names if name in ("o", "O")]
    rest = [name for name in names if name not in outside]
    renamed = {name: "O" for name in outside if _spans_of(rest)} | _spans_of(rest)
    renamed = {name: new for name, new in renamed.items() if name != new}
    became = [renamed.get(name, name) for name in names]
    doubled = [name for name in names if became.count(renamed.get(name, name)) > 1]
    if doubled:
        raise DataError(
            f"{where}: the tags {some(doubled)} would be one tag, "
            f"{renamed.get(doubled[0], doubled[0])!r}; write it in one way."
        )
    if renamed:
        shown = ", ".join(f"{old} as {new}" for old, new in list(renamed.items())[:4])
        logger.info("tags are read as spans: %s%s", shown, ", ..." if len(renamed) > 4 else "")
    return renamed


def _spans_of(tags: Sequence[str]) -> dict[str, str]:
    """Each tag's standard spelling; empty where they do not mark spans, or not all alike."""
    if not tags:
        return {}
    if all(_STANDARD.fullmatch(tag) for tag in tags):
        return {tag: tag for tag in tags}
    if all(len(tag) == 1 and tag.upper() in _LETTERS for tag in tags):
        letters = {tag: tag.upper() for tag in tags}
        return _with_inside(letters) if "B" in letters.values() else {}
    for pattern, letter, kind in ((_BEFORE, 1, 2), (_BEHIND, 2, 1)):
        matches = [pattern.fullmatch(tag) for tag in tags]
        found = [match for match in matches if match is not None]
        letters_seen = {match[letter].upper() for match in found}
        if len(found) == len(tags) and letters_seen & {"B", "I", "S", "U"}:
            return _with_inside({m[0]: f"{m[letter].upper()}-{m[kind]}" for m in found})
    return {}


def _with_inside(spelt: dict[str, str]) -> dict[str, str]:
    """The M of BMES as the I of BIOES."""
    return {tag: "I" + new[1:] if new[0] == "M" else new for tag, new in spelt.items()}
