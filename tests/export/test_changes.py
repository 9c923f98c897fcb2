"""What a trained part changes: every tensor of it is one change, or it is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.export.changes import Changes, adapter_changes, whole_changes

from .adapters import Made

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WEIGHTS = "adapter_model.safetensors"


def read(made: Made) -> Changes:
    return adapter_changes(made.adapter, made.adapter / WEIGHTS)


def test_adapted_layers_saved_heads_and_single_rows(tmp_path: Path) -> None:
    made = Made(
        tmp_path, "llama", tied=False, target_modules=["q_proj"], modules_to_save=["lm_head"],
        trainable_token_indices={"embed_tokens": [3, 5]},
    )  # fmt: skip
    result = read(made)
    layers = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert sorted(result.adapted) == layers
    assert set(result.adapted[layers[0]]) == {"lora_A.weight", "lora_B.weight"}
    assert set(result.replaced) == {"lm_head.weight"}
    assert {name: rows for name, (rows, _) in result.rows.items()} == {
        "model.embed_tokens.weight": (3, 5)
    }
    assert result.tensors == len(load_file(made.adapter / WEIGHTS))


def test_an_adapted_table_that_was_resized_keeps_what_it_was_adapted_from(tmp_path: Path) -> None:
    made = Made(
        tmp_path, "llama", target_modules=["embed_tokens", "q_proj"],
        prepare=lambda model: model.resize_token_embeddings(53),
    )  # fmt: skip
    result = read(made)
    assert set(result.bases) == {"model.embed_tokens.weight"}
    assert result.bases["model.embed_tokens.weight"].shape == (53, 32)
    assert set(result.adapted["model.embed_tokens"]) == {"lora_embedding_A", "lora_embedding_B"}
    assert result.tensors == len(load_file(made.adapter / WEIGHTS))


def test_a_part_that_was_trained_whole_has_the_models_names(tmp_path: Path) -> None:
    save_file({"classifier.weight": torch.ones(3, 4)}, tmp_path / "w.safetensors")
    result = whole_changes(tmp_path, tmp_path / "w.safetensors")
    assert (result.tensors, set(result.replaced), result.peft) == (1, {"classifier.weight"}, None)


def setting(key: str, value: Any) -> Callable[[Made], None]:
    def edit(made: Made) -> None:
        file = made.adapter / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Any:
    def edit(made: Made) -> None:
        save_file(change(load_file(made.adapter / WEIGHTS)), made.adapter / WEIGHTS)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (setting("layer_replication", [[0, 2]]), "layers are repeated"),
        (setting("target_parameters", ["a.b"]), "adapts parameters, not layers"),
        (setting("peft_type", "LILY"), "is LILY, which cannot be merged|cannot be used"),
        (setting("peft_type", "NOTHING"), "adapter_config.json cannot be used"),
        (tensors(lambda t: {**t, "mine": torch.ones(2)}), "mine, which is not a name of PEFT"),
        (tensors(lambda t: {}), "holds no tensor"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(edit: Any, message: str, tmp_path: Path) -> None:
    made = Made(tmp_path, "llama", target_modules=["q_proj"])
    edit(made)
    with pytest.raises(CheckFailed, match=message):
        read(made)


def test_rows_without_their_indices_are_refused(tmp_path: Path) -> None:
    made = Made(
        tmp_path, "llama", target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": [3]},
    )  # fmt: skip
    setting("trainable_token_indices", None)(made)
    with pytest.raises(CheckFailed, match=r"does not name the trained rows of .*embed_tokens"):
        read(made)


def test_rows_are_those_of_the_longest_name(tmp_path: Path) -> None:
    made = Made(
        tmp_path, "llama", target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": [3, 5]},
    )  # fmt: skip
    setting("trainable_token_indices", {"embed_tokens": [1], "model.embed_tokens": [3, 5]})(made)
    assert read(made).rows["model.embed_tokens.weight"][0] == (3, 5)
