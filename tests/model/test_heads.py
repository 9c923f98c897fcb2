"""Pooling by hand-made numbers, the pooled head's modes, and the pooling of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.errors import CheckFailed
from peftlab.model.head_spec import HeadSpec
from peftlab.model.heads import PooledClassifier
from peftlab.model.loading import load_model
from peftlab.model.pooling import pool
from tests.checkpoints import write_checkpoint

CLASSES = HeadSpec("AutoModelForSequenceClassification", {"num_labels": 2})


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [2.0, 6.5]), ("cls", [1.0, 6.0]), ("last", [3.0, 7.0])]
)
def test_pooling_reads_real_tokens_only(pooling: Any, expected: list[float]) -> None:
    hidden = torch.tensor([[1.0, 2.0, 3.0, 99.0], [99.0, 99.0, 6.0, 7.0]]).unsqueeze(-1)
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert pool(hidden, mask, pooling).squeeze(-1).tolist() == expected
    assert pool(hidden.bfloat16(), mask, pooling).dtype is torch.float32


@pytest.mark.parametrize(
    ("family", "kind"), [("bert", "mean"), ("gpt2", "last"), ("llama", "last"), ("t5", None)]
)
def test_auto_by_family(
    tiny_checkpoint: Callable[..., Path], family: str, kind: str | None
) -> None:
    loaded = load_model(str(tiny_checkpoint(family)), CLASSES, pooling="auto")
    assert loaded.pooling == kind
    assert isinstance(loaded.model, PooledClassifier) is (kind is not None)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_auto_reads_the_checkpoints_own(
    tmp_path: Path, written: dict[str, Any], expected: str
) -> None:
    folder = write_checkpoint(tmp_path / "base", "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(written))
    assert load_model(str(folder), CLASSES, pooling="auto").pooling == expected
    assert load_model(str(folder), CLASSES, pooling="last").pooling == "last"


def test_a_pooling_that_is_not_known_names_the_way_out(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(CheckFailed, match=r"pools by max.*method\.pooling"):
        load_model(str(folder), CLASSES, pooling="auto")


def test_encoder_of_an_encoder_decoder_can_be_pooled(tiny_checkpoint: Callable[..., Path]) -> None:
    loaded = load_model(str(tiny_checkpoint("t5")), CLASSES, pooling="mean", dtype="float32")
    assert isinstance(loaded.model, PooledClassifier)
    assert not any("decoder" in name for name, _ in loaded.model.named_parameters())
    inputs = loaded.tokenizer(["a good film", "bad"], padding=True, return_tensors="pt")
    assert loaded.model(**inputs).logits.shape == (2, 2)


def test_the_base_stays_in_eval_mode_and_out_of_the_graph(
    tiny_checkpoint: Callable[..., Path],
) -> None:
    loaded = load_model(str(tiny_checkpoint("bert")), CLASSES, pooling="auto", dtype="float32")
    model = loaded.model.train()
    assert model.training
    assert not any(module.training for module in model.base.modules())
    inputs = loaded.tokenizer(["a good film", "bad"], padding=True, return_tensors="pt")
    first, second = model(**inputs).logits, model(**inputs).logits
    assert torch.equal(first, second)
    first.sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        "head.weight",
        "head.bias",
    }


def test_minilm_is_pooled_as_it_was_trained(minilm: Path) -> None:
    loaded = load_model(str(minilm), CLASSES, pooling="auto", dtype="float32")
    assert loaded.pooling == "mean"
    assert loaded.hidden_size == 384
    inputs = loaded.tokenizer(
        ["a wonderful film", "a great movie", "the train leaves at nine"],
        padding=True,
        return_tensors="pt",
    )
    features = loaded.model.features(**inputs)
    near, far = torch.cosine_similarity(features[:1], features[1:])
    assert near > 0.6 > 0.3 > far
