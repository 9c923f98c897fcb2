"""Lists that are written into one cell: JSON, Python's repr, NumPy's, PostgreSQL's."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

_CLOSING = {"[": "]", "(": ")", "{": "}"}
_CALL = re.compile(
    r"(?:(?:np|numpy)\.)?(?:array|set|frozenset|list|tuple)\(\s*(.*?)\s*(?:,\s*dtype=[^()]*)?\)",
    re.DOTALL,
)
# NumPy 2 writes the scalars of a list with their types: np.str_('a'), np.int64(1).
_SCALAR = re.compile(
    r"(?:np|numpy)\.(?:(?:str|bytes|bool|int|uint|float)\w*\(\s*(.*?)\s*\)|(True|False)_)"
)
_QUOTED = re.compile(r"""[ub]?("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""", re.DOTALL)
_BARE = re.compile(r"""[^,\[\](){}"']+""")
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_FRACTION = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_WORDS: dict[str, bool | None] = {
    "true": True, "false": False, "none": None, "null": None, "nan": None,
}  # fmt: skip
_LONGEST = 1_000_000


@dataclass(frozen=True, slots=True)
class WrittenList:
    """The items of a list: texts, numbers, booleans, None.

    `exact`: quotes, numbers or a type's name show that it is a list; else it is words in brackets,
    which may be a name.
    """

    items: tuple[Any, ...]
    exact: bool


def parse_list(text: str) -> WrittenList | None:
    """The list that a whole cell spells, or None.

    Raises `ValueError` for one that NumPy has shortened by `...`: its items are lost.
    """
    called = _CALL.fullmatch(text)
    if called is not None:
        text = called[1]
        if not text:
            return WrittenList((), True)
    if len(text) < 2 or len(text) > _LONGEST or _CLOSING.get(text[0]) != text[-1]:
        return None
    inside = _SCALAR.sub(lambda found: found[1] or found[2], text[1:-1]).strip()
    if not inside:
        return WrittenList((), True)
    read = _items(inside)
    if read is None:
        return None
    items, quoted = read
    words = [item for item in items if isinstance(item, str)]
    if quoted or not words:
        # A number in plain parentheses is no tuple, which Python writes (3,).
        plain = text[0] == "(" and len(items) == 1 and not inside.endswith(",") and called is None
        return WrittenList(items, not plain)
    # Python quotes the texts of tuples, so bare words in parentheses are a name.
    return None if text[0] == "(" else WrittenList(items, called is not None or len(items) > 1)


def _items(inside: str) -> tuple[tuple[Any, ...], bool] | None:
    """The items between the brackets, and whether any is in quotes; None for anything else."""
    items: list[Any] = []
    at, quotes = 0, False
    while at < len(inside):
        match = _QUOTED.match(inside, at)
        if match is not None:
            items.append(_unquoted(match[1]))
            quotes = True
        else:
            match = _BARE.match(inside, at)
            if match is None:
                return None
            words = match[0].split()
            if not words or (match.end() < len(inside) and inside[match.end()] != ","):
                return None
            # NumPy separates numbers by spaces; words with spaces are one item.
            atoms = [_atom(word) for word in words]
            apart = all(not isinstance(atom, str) for atom in atoms)
            items += atoms if apart else [" ".join(words)]
        at = match.end()
        while at < len(inside) and inside[at].isspace():
            at += 1
        if at < len(inside) and inside[at] == ",":
            at += 1
        elif at < len(inside) and _QUOTED.match(inside, at) is None:
            return None
        while at < len(inside) and inside[at].isspace():
            at += 1
    return tuple(items), quotes


def _atom(word: str) -> Any:
    if word in ("...", "\u2026"):
        raise ValueError("is shortened by '...', so its items are lost: write the whole list")
    if _INTEGER.fullmatch(word) and len(word) < 19:
        return int(word)
    if _FRACTION.fullmatch(word):
        return float(word)
    return _WORDS.get(word.lower(), word)


def _unquoted(quoted: str) -> str:
    if quoted[0] == '"':
        try:
            return str(json.loads(quoted, strict=False))
        except ValueError:
            pass
    try:
        return str(ast.literal_eval(quoted))
    except (ValueError, SyntaxError):
        return quoted[1:-1]


def parse_object(text: str) -> dict[str, Any] | None:
    """The object that a whole cell spells, in JSON or as Python's dict, or None."""
    if text[:1] != "{" or text[-1:] != "}" or ":" not in text or len(text) > _LONGEST:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, dict) else None
