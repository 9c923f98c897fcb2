from __future__ import annotations

from typing import Any

import pytest

from peftlab.data.labels.spelling.bracketed import WrittenList, parse_list, parse_object

LISTS: dict[str, tuple[Any, ...]] = {
    '["a", "b"]': ("a", "b"),
    "['a', \"it's\"]": ("a", "it's"),
    "('a',)": ("a",),
    "{'a', 'b'}": ("a", "b"),
    "set()": (),
    "frozenset({'a'})": ("a",),
    "['a' 'b']": ("a", "b"),
    "['a'\n 'b c']": ("a", "b c"),
    "array(['a', 'b'], dtype='<U1')": ("a", "b"),
    "np.array([1, 0])": (1, 0),
    "[np.str_('a'), np.int64(3), np.True_]": ("a", 3, True),
    "[1 0 1]": (1, 0, 1),
    "[1. 0.]": (1.0, 0.0),
    "[ True False]": (True, False),
    "[0.5]": (0.5,),
    "[a, b c]": ("a", "b c"),
    "{a,b}": ("a", "b"),
    "(1, 0)": (1, 0),
    '["caf\\u00e9", "a\\"b", "[x], y"]': ("caf\u00e9", 'a"b', "[x], y"),
    "[null, nan, 'a']": (None, None, "a"),
    "[]": (),
}


@pytest.mark.parametrize("text", LISTS)
def test_a_list_is_read(text: str) -> None:
    assert parse_list(text) == WrittenList(LISTS[text], exact=True)
    items = parse_list(text)
    assert items is not None
    assert [type(item) for item in items.items] == [type(item) for item in LISTS[text]]


@pytest.mark.parametrize(
    "text",
    ["a, b", "Cause(e1,e2)", "(e1,e2)", "(a) and (b)", "[a] [b]", "[[1], [2]]", "['a' b]", "[", "]",
     "[a", "('a'", "['a'", "[it's, ok]", "{'a': 1}"],
)  # fmt: skip
def test_other_texts_are_no_lists(text: str) -> None:
    assert parse_list(text) is None


@pytest.mark.parametrize("text", ["[OTHER]", "[in progress]", "(3)", "{x}"])
def test_a_single_word_in_brackets_may_be_a_name(text: str) -> None:
    written = parse_list(text)
    assert written is not None
    assert not written.exact


def test_a_shortened_array_is_refused() -> None:
    with pytest.raises(ValueError, match="items are lost"):
        parse_list("[0 0 ... 1]")


def test_objects() -> None:
    assert parse_object('{"choices": ["a"]}') == parse_object("{'choices': ['a']}")
    assert parse_object("{a: 1}") is None
    assert parse_object("{'a', 'b'}") is None
