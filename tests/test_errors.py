"""The one hint at what a mistaken name meant."""

from __future__ import annotations

import pytest

from peftlab.errors import did_you_mean

KNOWN = ("train", "test", "validation")


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("trian", "; did you mean train?"),
        ("VALIDATION", "; did you mean validation?"),
        ("quux", ""),
        ("", ""),
    ],
)
def test_a_near_name_is_named_and_nothing_else(given: str, hint: str) -> None:
    assert did_you_mean(given, KNOWN) == hint


def test_several_are_joined_nearest_first() -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert did_you_mean("v_prjo", names, most=1) == "; did you mean v_proj?"
    assert did_you_mean("v_prjo", names, most=2).startswith("; did you mean v_proj or ")
    three = did_you_mean("v_prjo", names, most=3)
    assert three.startswith("; did you mean v_proj, ")
    assert three.count("_proj") == 3
    assert " or " in three


def test_a_mapping_gives_what_is_shown() -> None:
    keys = {"lr": "train.learning_rate", "Seed": "train.seed"}
    assert did_you_mean("seeds", keys) == "; did you mean train.seed?"


def test_the_cutoff_decides_what_is_near() -> None:
    assert did_you_mean("tr", ["train"], cutoff=0.5) == "; did you mean train?"
    assert did_you_mean("tr", ["train"], cutoff=0.6) == ""


def test_names_that_differ_by_case_only_are_one() -> None:
    assert did_you_mean("bb", ["B", "b"]) in ("; did you mean B?", "; did you mean b?")
