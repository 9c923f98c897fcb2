from __future__ import annotations

import pytest

from peftlab.data.labels.spelling.separators import SEPARATORS, evidence

CELLS = [["a"], ["b"], ["c"], ["a", "b"], ["b", "c"], ["a", "c"]]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_parts_that_stand_alone_and_combine_are_labels(separator: str) -> None:
    seen = evidence([separator.join(cell) for cell in CELLS], separator)
    assert seen is not None
    assert seen.likely


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["Arts, Crafts", "Health, Beauty", "Sports"], ","),
        (["World", "Sports", "Sci/Tech"], "/"),
        (["very positive", "positive", "very negative", "negative"], " "),
        (["Arts & Crafts", "Food & Drink", "Food"], " "),
        (["student loan", "payday loan", "mortgage"], " "),
        (["card arrival", "card linking", "lost card", "top up", "top up failed"], " "),
        (["Cause(e1,e2)", "Cause(e2,e1)", "Part(e1,e2)"], ","),
        (["a", "b"], ","),
        (["a,", "b"], ","),
    ],
)
def test_characters_of_names(cells: list[str], separator: str) -> None:
    assert evidence(cells, separator) is None


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["New York, NY", "Albany, NY", "Boston, MA"], ","),
        (["positive", "negative", "positive/negative"], "/"),
        (["student loan", "payday loan", "loan"], " "),
        (["red blue", "blue green", "red green", "none"], " "),
        (["a,b", "a", "c,d"], ","),
        (["a,b", "b,a", "a"], ","),
        (["1,1", "1", "2,1", "2"], ","),
    ],
)
def test_cells_that_may_be_either(cells: list[str], separator: str) -> None:
    seen = evidence(cells, separator)
    assert seen is not None
    assert not seen.likely
