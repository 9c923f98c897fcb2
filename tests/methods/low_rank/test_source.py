"""Training that goes on from an adapter: rows of embeddings keep their tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.methods.adapter_files import WEIGHTS, adapter_tensors
from peftlab.methods.apply import apply_method, save_trained
from peftlab.methods.method import Applied
from tests.methods.common import CLASSIFICATION, load, method

Tiny = Callable[..., Path]


def made(folder: Path, rows: Any = None, tokens: Any = (), **settings: Any) -> Applied:
    chosen = method("lora", r=2, trainable_token_indices=rows, **settings)
    return apply_method(
        load(folder, CLASSIFICATION, chosen).model, chosen, task=CLASSIFICATION, tokens=tokens
    )


def trained_rows(applied: Applied) -> torch.Tensor:
    tensors = adapter_tensors(applied.model)  # type: ignore[arg-type]
    (rows,) = [t for name, t in tensors.items() if "trainable_tokens_delta" in name]
    return rows


def saved(applied: Applied, run: Path) -> torch.Tensor:
    """Rows that all differ, saved as they are."""
    rows = trained_rows(applied)
    with torch.no_grad():
        rows.copy_(torch.arange(1.0, len(rows) + 1)[:, None].expand_as(rows))
    save_trained(applied, run)
    return rows.clone()


def test_tokens_that_the_task_adds_start_anew(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert")
    first = made(folder)
    save_trained(first, tmp_path / "none")
    again = made(folder, None, (7, 9), init_from=str(tmp_path / "none"))
    table = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert torch.equal(trained_rows(again), table[[7, 9]])
    assert "rows 7 9 of bert.embeddings.word_embeddings did not fit" in again.notes[1]

    kept = saved(made(folder, [5, 8]), tmp_path / "some")
    again = made(folder, [8, 5], (7,), init_from=str(tmp_path / "some"))
    assert torch.equal(trained_rows(again), torch.stack([kept[0], table[7], kept[1]]))
    assert "row 7 of" in again.notes[1]


def test_a_list_and_the_mapping_of_that_table_mean_the_same(
    tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    folder = tiny_checkpoint("bert")
    kept = saved(made(folder, [5, 8]), tmp_path)
    for rows in ([5, 8], {"word_embeddings": [8, 5]}):
        again = made(folder, rows, init_from=str(tmp_path))
        assert torch.equal(trained_rows(again), kept)
        assert len(again.notes) == 1


def test_markers_that_an_adapter_trained_go_on(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert")
    kept = saved(made(folder, None, (7, 9)), tmp_path)
    again = made(folder, None, (7, 9), init_from=str(tmp_path))
    assert torch.equal(trained_rows(again), kept)


def test_other_rows_are_refused(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("bert")
    saved(made(folder, [5, 8]), tmp_path)
    for rows, words in (
        (None, "names row 5 of .*, which would not train here"),
        ([5, 9], "names row 8 of .*, which would not train here"),
        ([5, 6, 8], "names no row 6 of .*, which would train here"),
    ):
        with pytest.raises(CheckFailed, match=words):
            made(folder, rows, init_from=str(tmp_path))
    file = tmp_path / "adapter" / WEIGHTS
    tensors = load_file(file)
    shorter = {n: t[:1] if "trainable_tokens" in n else t for n, t in tensors.items()}
    save_file({n: t.contiguous() for n, t in shorter.items()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckFailed, match=r"has 1 rows of .*configuration names 2"):
        made(folder, [5, 8], init_from=str(tmp_path))
