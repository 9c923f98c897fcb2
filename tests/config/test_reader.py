"""`data.reader`: what its keys take, and what is said of anything else."""

from __future__ import annotations

import pytest

from peftlab.config import load_config
from peftlab.config.reader import ReaderConfig
from peftlab.errors import ConfigError

WHOLE = ["model.name=m", "task=text-classification", "method=head", "data.source=d"]


def reader(*overrides: str) -> ReaderConfig:
    return load_config(None, [*WHOLE, *overrides]).config.data.reader


def test_what_the_keys_take() -> None:
    assert reader() == ReaderConfig()
    for said, mark in (("tab", "\t"), ("semicolon", ";"), ("'|'", "|"), ("^", "^")):
        assert reader(f"data.reader.delimiter={said}").delimiter == mark
    assert reader("data.reader.quotechar=null").quotechar is None
    assert reader("data.reader.header=false").header is False
    assert reader("data.reader.header=3").header == 3
    assert reader("data.reader.sheet=2").sheet == 2
    assert reader("data.reader.sheet=Reviews").sheet == "Reviews"
    assert reader("data.reader.encoding=latin-1").encoding == "latin-1"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("delimiter=;;", "data.reader.delimiter is ';;'; allowed: auto or a single character, tab"),
        ("quotechar=''", "data.reader.quotechar is ''; allowed: auto, a single character"),
        ("encoding=cp1251x", "data.reader.encoding is 'cp1251x'; did you mean cp1251?"),
        ("encoding=base64", "data.reader.encoding is 'base64'"),
        ("header=0", "whole number of at least 1"),
        ("delimeter=;", "did you mean data.reader.delimiter?"),
    ],
)
def test_what_is_said_of_other_values(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reader(f"data.reader.{override}")
    assert said in str(caught.value)


def test_columns_by_number_are_names() -> None:
    loaded = load_config(None, [*WHOLE, "data.columns={text: 1, label: [2, 3]}"])
    assert loaded.config.data.columns == {"text": "1", "label": ["2", "3"]}
