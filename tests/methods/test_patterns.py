"""Patterns mean what the user wrote, also after PEFT sorted them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from peftlab.errors import CheckFailed
from peftlab.methods.apply import apply_method, save_trained
from peftlab.methods.patterns import pattern_for, sortable
from tests.methods.common import CAUSAL, batch, load, method, step

Tiny = Callable[..., Path]
NAMES = tuple(f"model.layers.{n}.{leaf}" for n in (0, 1) for leaf in ("q_proj", "mlp.up_proj"))


@pytest.mark.parametrize(
    "patterns",
    [
        {},
        {"q_proj": 1, "up_proj": 2},
        {r"layers\.1\..*": 1, "q_proj": 2},  # sorted already
        {"q_proj": 2, r"layers\.1\..*": 1},
        {r"layers\.1.*proj": 1, "[a-z]*_proj": 2, ".*": 3},
        {"up_proj": 7, ".*": 7},  # another pattern, the same value
    ],
)
def test_sorted_patterns_give_every_layer_its_own(patterns: dict[str, int]) -> None:
    found = sortable("rank_pattern", patterns, NAMES)

    def chosen(of: dict[str, int], order: list[str]) -> list[int | None]:
        return [of.get(pattern_for(order, name) or "") for name in NAMES]

    assert chosen(found, sorted(found)) == chosen(patterns, list(patterns))
    assert chosen(found, list(found)) == chosen(patterns, list(patterns))


def test_patterns_that_sorting_leaves_alone_are_kept_as_they_are() -> None:
    patterns = {"up_proj": 2, "q_proj": 1}
    assert list(sortable("rank_pattern", patterns, NAMES)) == ["up_proj", "q_proj"]


def test_names_that_end_alike_are_refused() -> None:
    patterns = {r"z\.a": 1, ".*": 2}
    with pytest.raises(CheckFailed, match="of which several match one layer"):
        sortable("alpha_pattern", patterns, ["a", "z.a"])


@pytest.mark.parametrize("settings", [{"name": "lora", "r": 4}, {"name": "peft"}])
def test_plain_peft_reloads_what_was_trained(
    settings: dict[str, Any], tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    """The first pattern counts, and sorts behind the other."""
    patterns = {r"layers\.1\..*_proj": 2, r"[a-z]*_proj": 3}
    alphas = {r"layers\.1\..*_proj": 50.0, r"[a-z]*_proj": 1.0}
    more = {"peft_type": "LOHA", "r": 4} if settings["name"] == "peft" else {}
    chosen = method(**settings, **more, rank_pattern=patterns, alpha_pattern=alphas)
    folder = tiny_checkpoint("llama", "causal")
    base = load(folder, CAUSAL, chosen)
    applied = apply_method(base.model, chosen, task=CAUSAL)
    step(applied.model, batch(base), CAUSAL, 0.01)
    again = PeftModel.from_pretrained(
        load(folder, CAUSAL, chosen).model, str(save_trained(applied, tmp_path))
    )
    inputs = batch(base)
    with torch.no_grad():
        want = applied.model.eval()(**inputs).logits
        assert torch.equal(again.eval()(**inputs).logits, want)
