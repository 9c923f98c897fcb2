"""Features computed once give what the whole model gives, and training on them trains it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.methods.apply import apply_method
from peftlab.methods.method import Applied
from peftlab.model.loading import LoadedModel
from tests.methods.common import (
    CAUSAL,
    CLASSIFICATION,
    FOLDER_TASK,
    PLENTY,
    TEXTS,
    cached,
    collate,
    load,
    method,
)

datasets = pytest.importorskip("datasets")

Tiny = Callable[..., Path]
CASES = [
    ("bert", CLASSIFICATION, "auto"),
    ("bert", CLASSIFICATION, "cls"),
    ("bert", CLASSIFICATION, "model"),
    ("gpt2", CLASSIFICATION, "auto"),
    ("llama", CLASSIFICATION, "auto"),
    ("t5", CLASSIFICATION, "auto"),
    ("llama", CAUSAL, "auto"),
]


def rows_of(loaded: LoadedModel, task: str) -> datasets.Dataset:
    encoded = [loaded.tokenizer(text)["input_ids"] for text in TEXTS]
    return datasets.Dataset.from_list(
        [
            {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "labels": [-100, *ids[1:]] if task == CAUSAL else i % 2,
            }
            for i, ids in enumerate(encoded)
        ]
    )


def prepared(folder: Path, task: str, pooling: str) -> tuple[Applied, datasets.Dataset]:
    chosen = method("head", pooling=pooling)
    loaded = load(folder, task, chosen)
    return apply_method(loaded.model, chosen, task=task), rows_of(loaded, task)


@pytest.mark.parametrize(("family", "task", "pooling"), CASES)
@pytest.mark.parametrize("limit", [PLENTY, 8])
def test_features_give_the_models_logits(
    tiny_checkpoint: Tiny,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    family: str,
    task: str,
    pooling: str,
    limit: int,
) -> None:
    applied, rows = prepared(tiny_checkpoint(family, FOLDER_TASK[task]), task, pooling)
    applied.model.train()
    modes = {name: module.training for name, module in applied.model.named_modules()}
    with caplog.at_level(logging.INFO, logger="peftlab"):
        started = time.perf_counter()
        cache = cached(applied, rows, limit_bytes=limit, folder=tmp_path)
        seconds = time.perf_counter() - started
    assert cache is not None
    assert cache.seconds.keys() == {"train", "validation"}
    assert min(cache.seconds.values()) > 0
    assert sum(cache.seconds.values()) <= seconds
    assert {n: m.training for n, m in applied.model.named_modules()} == modes
    assert cache.store.mapped is (limit == 8)
    assert ("above method.cache_limit" in caplog.text) is (limit == 8)
    whole = collate([rows[i] for i in range(4)])
    for split in ("train", "validation"):
        assert len(cache.rows[split]) == 4
        batch = cache.collator(cache.rows[split][:])
        assert torch.equal(batch["labels"], whole["labels"])
        assert batch["tokens"].tolist() == whole["attention_mask"].sum(1).tolist()
        applied.model.eval()
        cache.head.eval()
        with torch.no_grad():
            ours = cache.head(**batch).logits
            theirs = applied.model(
                input_ids=whole["input_ids"], attention_mask=whole["attention_mask"]
            ).logits
        if task == CAUSAL:
            real = whole["attention_mask"].bool()
            ours, theirs = ours[real], theirs[real]
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with cache:
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("family", "task", "pooling"), CASES)
def test_training_on_features_trains_the_model_alike(
    tiny_checkpoint: Tiny, family: str, task: str, pooling: str
) -> None:
    """One step on features and one on the rows themselves, from the same start."""
    folder = tiny_checkpoint(family, FOLDER_TASK[task])
    heads = []
    for on_features in (True, False):
        applied, rows = prepared(folder, task, pooling)
        model: Any = applied.model
        if on_features:
            cache = cached(applied, rows)
            assert cache is not None
            assert {id(p) for p in cache.head.parameters()} == {
                id(p) for p in model.parameters() if p.requires_grad
            }
            model, batch = cache.head, cache.collator(cache.rows["train"][:])
            batch.pop("tokens")
        else:
            batch = collate([rows[i] for i in range(4)])
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        labels = batch.pop("labels")
        logits = model(**batch).logits
        if task == CAUSAL:
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100).backward()
        optimiser.step()
        trained = dict(applied.model.named_parameters())
        heads.append({name: trained[name].detach() for name in applied.trainable})
    for name, on_kept in heads[0].items():
        torch.testing.assert_close(on_kept, heads[1][name], rtol=1e-5, atol=1e-6)


def test_the_dropout_before_the_head_is_kept(tiny_checkpoint: Tiny) -> None:
    applied, rows = prepared(tiny_checkpoint("bert"), CLASSIFICATION, "model")
    cache = cached(applied, rows)
    assert cache is not None
    assert cache.head.dropout.p == applied.model.dropout.p == 0.1  # type: ignore[union-attr]
    batch = cache.collator(cache.rows["train"][:])
    cache.head.train()
    assert not torch.equal(cache.head(**batch).logits, cache.head(**batch).logits)


def test_hidden_states_for_losses_that_run_the_head_themselves(tiny_checkpoint: Tiny) -> None:
    applied, rows = prepared(tiny_checkpoint("llama", "causal"), CAUSAL, "auto")
    cache = cached(applied, rows)
    assert cache is not None
    head: Any = cache.head
    assert head.get_output_embeddings() is applied.model.lm_head
    batch = cache.collator(cache.rows["train"][:])
    seen = []
    head.get_decoder().register_forward_hook(lambda *a: seen.append(a[2][0]))
    few = head(**batch, logits_to_keep=torch.tensor([1, 2])).logits
    assert torch.equal(few, head(**batch).logits[:, 1:3])
    assert torch.equal(head(**batch, logits_to_keep=1).logits, head(**batch).logits[:, -1:])
    assert seen[0].shape == batch["features"].shape


@pytest.mark.parametrize(("family", "pooling"), [("llama", "model"), ("gpt2", "model")])
def test_a_head_that_reads_more_than_features_is_not_cached_aloud(
    tiny_checkpoint: Tiny, caplog: pytest.LogCaptureFixture, family: str, pooling: str
) -> None:
    """These score every token and choose afterwards."""
    applied, rows = prepared(tiny_checkpoint(family), CLASSIFICATION, pooling)
    with caplog.at_level(logging.WARNING, logger="peftlab"):
        assert cached(applied, rows) is None
    assert "features are not cached" in caplog.text


def test_no_room_on_the_disk(
    tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    applied, rows = prepared(tiny_checkpoint("bert"), CLASSIFICATION, "auto")
    assert cached(applied, rows, limit_bytes=8, folder=tmp_path) is None
    assert "the disk has no room" in caplog.text
    assert list(tmp_path.iterdir()) == []
