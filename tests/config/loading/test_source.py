from __future__ import annotations

import math
from pathlib import Path

import pytest

from peftlab.config.loading.source import parse_mapping, parse_value, read_yaml
from peftlab.errors import ConfigError


def test_scalars_follow_yaml_1_2() -> None:
    text = (
        "rate: 5e-4\nbig: 1E5\nno: no\nclock: 1:30\nday: 2020-01-01\nleading: 010\n"
        "hex: 0x1F\noctal: 0o17\nnone: ~\nempty:\nyes: TRUE\nquoted: '5e-4'\nforced: !!str 5\n"
        "dot: .5\nlow: -.inf\nunderscored: 1_000\n"
    )
    assert parse_mapping(text, "a.yaml").values == {
        "rate": 5e-4,
        "big": 1e5,
        "no": "no",
        "clock": "1:30",
        "day": "2020-01-01",
        "leading": 10,
        "hex": 31,
        "octal": 15,
        "none": None,
        "empty": None,
        "yes": True,
        "quoted": "5e-4",
        "forced": "5",
        "dot": 0.5,
        "low": -math.inf,
        "underscored": "1_000",
    }
    assert math.isnan(parse_value(".nan", "v"))


def test_scalars_that_yaml_readers_disagree_on() -> None:
    for text in ("0b11", "0x1_F", "-0x1F", "1_0.5", "-_", "+_", "._", "=", "2020-01-01 10:00:00"):
        assert parse_value(text, "v") == text
    assert parse_value(".5e3", "v") == 500.0
    # A directive does not bring YAML 1.1 back.
    assert parse_mapping("%YAML 1.1\n---\na: no\n", "f").values == {"a": "no"}


def test_keys_and_items_know_their_lines() -> None:
    source = parse_mapping("a: 1\nb:\n  c: 2\n  d:\n  - x\n  - {e: 3}\n", "run.yaml")
    assert source.origin(("b", "c")) == "run.yaml:3"
    assert source.origin(("b", "d", 1, "e")) == "run.yaml:6"
    # What is not written is laid to what it would stand in, or to what stands in it.
    assert source.origin(("b", "missing")) == "run.yaml:2"
    assert source.origin(("z",)) == "run.yaml"


def test_aliases_and_merges_are_fine_and_own_keys_win() -> None:
    source = parse_mapping("a: &a {x: 1, y: 2}\nb: *a\nc:\n  <<: *a\n  y: 3\n", "m")
    assert source.values["b"] == {"x": 1, "y": 2}
    assert source.values["c"] == {"x": 1, "y": 3}
    assert source.origin(("c", "y")) == "m:5"
    # An override of one key must not reach another through their alias.
    source.values["b"]["x"] = 9
    assert source.values["a"]["x"] == source.values["c"]["x"] == 1


BAD = {
    "same key twice": ("a:\n  b: 1\n  b: 2\n", "f:3: a.b is set twice; it is set in line 2 too"),
    "same key twice in flow style": ("a: {b: 1, b: 2}", "a.b is set twice"),
    "same key twice beside a merge": (
        "a: &a {x: 1}\nb:\n  <<: *a\n  y: 1\n  y: 2\n",
        "f:5: b.y is set twice; it is set in line 4 too",
    ),
    "same key twice at the top": ("a: 1\na: 2\n", "f:2: a is set twice"),
    "a list": ("- a\n", "f:1: holds a list"),
    "a word": ("lora\n", "f:1: holds a single value"),
    "tab": ("a:\n\tb: 1\n", "f:2: is indented with a tab"),
    "open bracket": ("a: 1\nb: [1,\n", "f:"),
    "two documents": ("a: 1\n---\nb: 2\n", "f:2: a second document"),
    "number as key": ("5: a\n", "f:1: keys are text, and this one is 5"),
    "null as key": ("~: a\n", "keys are text"),
    "mapping as key": ("? {a: 1}\n: 2\n", "keys are text"),
    "python object": ("a: !!python/object/apply:os.system [ls]\n", "f:1: the tag"),
    "tag of a set": ("a: !!set {b}\n", "f:1: the tag"),
    "tag that does not fit": ("a: !!int x\n", "f:1: 'x' is no number"),
    "own tag": ("a: !foo 1\n", "f:1: the tag '!foo'"),
    "self reference": ("a: &a [*a]\n", "f:1: the alias refers to what it stands in"),
    "unknown alias": ("a: *b\n", "undefined alias"),
    "deep nesting": ("a: " + "[" * 1000, "nested too deeply"),
    "endless digits": ("a: " + "9" * 5000, "is no number"),
    "control character": ("a: \x07\n", "f:1: the character '\\x07'"),
    "forgotten colon": ("seed 5\nb: 3\n", "f:2:"),
    "merge of a number": ("<<: 3\n", "f:1: `<<` takes an alias"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_yaml_is_named_by_line(name: str) -> None:
    text, expected = BAD[name]
    with pytest.raises(ConfigError) as caught:
        parse_mapping(text, "f")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bomb_of_aliases_is_refused() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for name, previous in zip("bcdefgh", "abcdefg", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{previous}'] * 10)}]")
    with pytest.raises(ConfigError, match="more than 20000 values"):
        parse_mapping("\n".join(lines), "f")


def test_empty_files_are_empty() -> None:
    for text in ("", "\n", "# nothing\n", "---\n", "~"):
        assert parse_mapping(text, "f").values == {}


def test_files_that_are_no_text(tmp_path: Path) -> None:
    missing = tmp_path / "rnu.yaml"
    (tmp_path / "run.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"rnu.yaml: there is no such file; did you mean .*run"):
        read_yaml(missing)
    with pytest.raises(ConfigError, match="is a folder"):
        read_yaml(tmp_path)
    binary = tmp_path / "model.safetensors"
    binary.write_bytes(b"\x00\x01\x02")
    with pytest.raises(ConfigError, match="binary"):
        read_yaml(binary)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("a: 1\nb: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.yaml:2: byte 0xe9 is not UTF-8"):
        read_yaml(latin)
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_yaml(huge)


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb:\r\n  c: 2\r\n")
    source = read_yaml(file)
    assert source.values == {"a": 1, "b": {"c": 2}}
    assert source.origin(("b", "c")) == f"{file}:3"
