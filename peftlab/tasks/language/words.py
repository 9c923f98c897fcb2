r"""Words of a text in any script, for ROUGE, and the BLEU tokenizer that a set of texts takes.

A word is a run of letters, marks and digits, `[\p{L}\p{M}\p{N}]+`, of the lower-cased text in
Unicode's form NFC; in scripts that are written without spaces it is one character with its marks.
ASCII texts give the words of `rouge_score`, whose own tokenizer drops every other character.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

BleuTokenizer = Literal["13a", "zh", "char"]

_HAN_AND_KANA = r"\p{Han}\p{scx=Hiragana}\p{scx=Katakana}"
_SOUTH_EAST_ASIAN = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LONGEST_UNSTEMMED = 3
"""`rouge_score` stems no word of at most so many letters."""


@cache
def _patterns() -> tuple[Any, Any, Any]:
    """A word, and a character of either group of scripts without spaces."""
    import regex

    # An intersection: marks that some of these scripts share with others follow a character.
    alone = rf"[[{_HAN_AND_KANA}{_SOUTH_EAST_ASIAN}]&&[\p{{L}}\p{{N}}]]"
    word = rf"{alone}\p{{M}}*|(?:(?!{alone})[\p{{L}}\p{{M}}\p{{N}}])+"
    groups = (rf"[[{group}]&&[\p{{L}}\p{{N}}]]" for group in (_HAN_AND_KANA, _SOUTH_EAST_ASIAN))
    zh, char = (regex.compile(group, regex.V1) for group in groups)
    return regex.compile(word, regex.V1), zh, char


def words_of(text: str) -> list[str]:
    """The words of a text, lower-cased, in order."""
    return _patterns()[0].findall(unicodedata.normalize("NFC", text.lower()))  # type: ignore[no-any-return]


class Words:
    """`words_of` as a tokenizer of `rouge_score`; `stemmer`: stems of English words."""

    def __init__(self, stemmer: bool = False) -> None:
        self._stem: Any = None
        if stemmer:
            from nltk.stem.porter import PorterStemmer

            self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        """The words of a text; Porter's stems of those in ASCII letters and digits."""
        words = words_of(text)
        if self._stem is None:
            return words
        return [
            self._stem(word) if word.isascii() and len(word) > _LONGEST_UNSTEMMED else word
            for word in words
        ]


def bleu_tokenizer_for(texts: Iterable[str]) -> BleuTokenizer:
    """sacreBLEU's tokenizer for the scripts in which most words of `texts` are written.

    `zh` for Han and Kana, `char` for Thai, Lao, Khmer and Burmese, else `13a`, which cuts at
    spaces and would take a whole sentence of these as one word.
    """
    _, zh, char = _patterns()
    han = south_east = spaced = 0
    for text in texts:
        for word in words_of(text):
            if zh.match(word):
                han += 1
            elif char.match(word):
                south_east += 1
            else:
                spaced += 1
    if max(han, south_east) <= spaced:
        return "13a"
    return "zh" if han >= south_east else "char"
