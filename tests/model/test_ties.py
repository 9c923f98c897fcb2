"""What a checkpoint holds apart is apart in a model without weights, as in the loaded one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.export.skeleton import skeleton, tied_names
from peftlab.model.checkpoint import read_checkpoint_config, tensor_shapes
from peftlab.model.head_spec import HeadSpec
from peftlab.model.loading import load_model
from peftlab.model.structure import is_tied
from tests.tasks.language.seq2seq_models import write_model

HEAD = HeadSpec("AutoModelForSeq2SeqLM")


@pytest.mark.parametrize("head", ["tied", "a copy", "its own"])
def test_a_head_beside_its_embeddings(head: str, tmp_path: Path) -> None:
    write_model(tmp_path, ["a good cat"], d_model=32)
    file = tmp_path / "model.safetensors"
    if head != "tied":
        tensors = load_file(file)
        tensors["lm_head.weight"] = tensors["shared.weight"] + (1.0 if head == "its own" else 0.0)
        save_file(tensors, file, {"format": "pt"})
    apart = head == "its own"
    loaded, empty = (
        load_model(str(tmp_path), HEAD, weights=weights).model for weights in (True, False)
    )
    assert is_tied(loaded, "lm_head") == is_tied(empty, "lm_head") == (not apart)
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in (loaded, empty)]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in empty.parameters())
    checkpoint = read_checkpoint_config(str(tmp_path))
    built = skeleton(
        checkpoint, tensor_shapes(checkpoint.files), auto_class=HEAD.auto_class, updates={}
    )
    assert ("lm_head.weight" in tied_names(built.model)) == (not apart)
    # The embeddings of both stacks are one tensor all the same.
    assert is_tied(empty, "encoder.embed_tokens")
    if apart:
        difference = loaded.lm_head.weight - loaded.shared.weight  # type: ignore[union-attr]
        torch.testing.assert_close(difference, torch.ones_like(difference))
