"""A base without weights: what its parameters are, and what the checkpoint calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.export.skeleton import skeleton, tied_names
from peftlab.model.checkpoint import read_checkpoint_config


def keys_of(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "classification"), ("gpt2", "causal"), ("t5", "seq2seq"), ("llama", "causal")],
)
def test_every_key_has_a_parameter_and_nothing_a_weight(
    family: str, task: str, tiny_checkpoint: Any
) -> None:
    folder = tiny_checkpoint(family, task)
    built = skeleton(
        read_checkpoint_config(str(folder)), keys_of(folder), auto_class=None, updates={}
    )
    assert set(built.names.values()) == keys_of(folder).keys()
    assert built.unread == ()
    assert built.folder == folder
    assert all(parameter.is_meta for parameter in built.model.parameters())


def test_a_bare_base_below_a_head_is_found_by_its_own_names(tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint("bert")
    built = skeleton(
        read_checkpoint_config(str(folder)), [*keys_of(folder), "left.over"],
        auto_class="AutoModelForSequenceClassification", updates={"num_labels": 5},
    )  # fmt: skip
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert built.names[name] == name.removeprefix("bert.")
    assert "classifier.weight" not in built.names
    assert built.model.get_parameter("classifier.weight").shape[0] == 5
    assert built.unread == ("left.over",)


def test_tied_names_are_listed_by_each_of_them(tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint("gpt2", "causal")
    built = skeleton(
        read_checkpoint_config(str(folder)), keys_of(folder), auto_class=None, updates={}
    )
    both = {"transformer.wte.weight", "lm_head.weight"}
    ties = tied_names(built.model)
    assert ties.keys() == both
    assert all(set(names) == both for names in ties.values())


def test_a_head_that_the_checkpoint_has_apart_is_not_tied(
    tiny_checkpoint: Any, tmp_path: Path
) -> None:
    folder = tiny_checkpoint("gpt2", "causal")
    state = keys_of(folder)
    state["lm_head.weight"] = state["transformer.wte.weight"] + 1
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    built = skeleton(read_checkpoint_config(str(tmp_path)), state, auto_class=None, updates={})
    assert tied_names(built.model) == {}
    assert built.names["lm_head.weight"] == "lm_head.weight"


def test_a_class_that_the_architecture_has_not_is_refused(tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint("bert")
    with pytest.raises(CheckFailed, match="cannot be built"):
        skeleton(
            read_checkpoint_config(str(folder)), keys_of(folder),
            auto_class="AutoModelForSeq2SeqLM", updates={},
        )  # fmt: skip
