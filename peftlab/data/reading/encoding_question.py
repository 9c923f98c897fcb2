"""What to ask about text that is not UTF-8: its lines under the likeliest encodings.

An encoding is never chosen here: several nearly always decode, and a wrong one changes texts
silently. Candidates are ranked by what their characters are, to show two.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from peftlab.data.reading.data_file import DataFile
from peftlab.errors import DataError

# Likelier ones first: equal scores keep this order.
CANDIDATES = (
    "cp1252", "latin-1", "cp1251", "cp1250", "shift_jis", "gb18030", "big5", "euc_kr", "euc_jp",
    "koi8-r", "cp1253", "cp1254", "cp1255", "cp1256", "iso8859-2", "cp874", "mac-roman", "cp850",
)  # fmt: skip

# Lead bytes of each encoding's frequent characters, from its own table.
_FREQUENT_LEADS = {
    "shift_jis": ((0x82, 0x83), (0x88, 0x98)),
    "euc_jp": ((0xA4, 0xA5), (0xB0, 0xCF)),
    "gb18030": ((0xB0, 0xD7), (0xA3, 0xA3), (0xA1, 0xA1)),
    "big5": ((0xA4, 0xC6), (0xA1, 0xA1)),
    "euc_kr": ((0xB0, 0xC8), (0xA1, 0xA1)),
}
_PUNCTUATION = frozenset(
    "\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb\u2039\u203a\u2013\u2014\u2026"
    "\u20ac\u00a3\u00b0\u00b7\u00a1\u00bf\u00a7\u2116\u00a0"
)
"""Quotation marks, dashes and signs that texts have."""
_WITHIN_WORDS = frozenset("\u2019\u00b7\u2013\u2014")

_LINES = 3
_SHOWN = 60
_LONGEST_LINE = 1 << 16
_SAMPLED_LINES = 200


def undecodable(file: DataFile, encoding: str, error: UnicodeError) -> DataError:
    """The error of text that `encoding` does not decode, with readings to choose from."""
    utf8 = encoding.startswith("utf-8")
    bad = _bad_lines(file, encoding) if utf8 or "utf" not in encoding.lower() else []
    if not bad:
        return DataError(
            f"{file.where} is not {encoding.upper()}: {' '.join(str(error).split())[:160]}; set "
            "data.reader.encoding."
        )
    number, raw, at = bad[0]
    where = f"{file.where}:{number}"
    if not utf8:
        return DataError(
            f"{where} is not {encoding} (data.reader.encoding): byte 0x{raw[at]:02x} at column "
            f"{at + 1} means nothing in it."
        )
    ranked = rank([raw for _, raw, _ in bad])
    if not ranked:
        return DataError(
            f"{where} is not UTF-8: byte 0x{raw[at]:02x} at column {at + 1}, and no usual encoding "
            "fits; if the file is text, set data.reader.encoding."
        )
    lines = [f"{where} is not UTF-8: byte 0x{raw[at]:02x} at column {at + 1}. Its lines may read"]
    for name in ranked[:2]:
        lines.append(f"  under {name}:")
        lines += [f"    {n}: {_around(text, name)}" for n, text, _ in bad[:_LINES]]
    lines.append(
        f"Set data.reader.encoding={ranked[0]}"
        + (f", or ={ranked[1]}" if len(ranked) > 1 else "")
        + ", or another that reads right; or save the file as UTF-8."
    )
    return DataError("\n".join(lines))


def rank(lines: Sequence[bytes]) -> list[str]:
    """The encodings that decode all lines, the likeliest first; one of those that agree."""
    scored: list[tuple[float, int, str, str]] = []
    for place, name in enumerate(CANDIDATES):
        try:
            text = "".join(line.decode(name) for line in lines)
        except UnicodeDecodeError:
            continue
        scored.append((-_plausibility(text, name), place, name, text))
    by_text: dict[str, str] = {}
    for _, _, name, text in sorted(scored):
        by_text.setdefault(text, name)
    return list(by_text.values())


def _bad_lines(file: DataFile, encoding: str) -> list[tuple[int, bytes, int]]:
    """Lines that `encoding` does not decode, with their number and the first byte at fault."""
    bad: list[tuple[int, bytes, int]] = []
    with file.open() as stream:
        number = 0
        while (raw := stream.readline(_LONGEST_LINE)) and len(bad) < _SAMPLED_LINES:
            number += 1
            try:
                raw.decode(encoding)
            except UnicodeDecodeError as error:
                bad.append((number, raw, error.start))
    return bad


def _around(raw: bytes, encoding: str) -> str:
    """The text around the first character beyond ASCII."""
    text = raw.decode(encoding).strip()
    at = next((i for i, char in enumerate(text) if not char.isascii()), 0)
    first = max(0, at - _SHOWN // 3) if len(text) > _SHOWN else 0
    return text[first : first + _SHOWN]


def _plausibility(text: str, encoding: str) -> float:
    """The mean over characters beyond ASCII of how well each fits where it stands."""
    worth, count = 0.0, 0
    for i, char in enumerate(text):
        if char.isascii():
            continue
        before = text[i - 1] if i else " "
        after = text[i + 1] if i + 1 < len(text) else " "
        worth += _worth(char, before, after, encoding)
        count += 1
    return worth / max(count, 1)


def _worth(char: str, before: str, after: str, encoding: str) -> float:
    kind = unicodedata.category(char)
    if kind in ("Cc", "Cn", "Co", "Cs"):
        return -5.0
    if encoding in _FREQUENT_LEADS and (lead := char.encode(encoding, "ignore")[:1]):
        frequent = any(a <= lead[0] <= b for a, b in _FREQUENT_LEADS[encoding])
        beside_latin = kind[0] == "L" and (_is_latin(before) or _is_latin(after))
        return (1.0 if frequent else -1.0) - (0.8 if beside_latin else 0.0)
    if kind[0] not in "LM":
        between_letters = before.isalpha() and after.isalpha()
        usual = char in _PUNCTUATION
        return (0.6 if usual else -0.6) - (
            0.8 if between_letters and char not in _WITHIN_WORDS else 0.0
        )
    neighbours = [other for other in (before, after) if other.isalpha()]
    if any(_script(other) != _script(char) for other in neighbours):
        return -1.0
    if kind == "Lu" and before.islower():
        return -1.0
    return 1.0 if neighbours else 0.2


def _is_latin(char: str) -> bool:
    return char.isalpha() and char.isascii()


def _script(char: str) -> str:
    return "LATIN" if char.isascii() else unicodedata.name(char, "?").split()[0]
