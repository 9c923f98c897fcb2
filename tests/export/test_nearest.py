"""The nearest of several merged models: by divergence, the first one where several are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.export.merge import adapter_source
from peftlab.export.nearest import TRAINED, Table, table_of

from .adapters import Made


def table(**divergence: float) -> Table:
    scores = {TRAINED: 0.5} | dict.fromkeys(divergence, 0.25)
    return Table(divergence, dict.fromkeys(divergence, 0.75), "accuracy", scores)


@pytest.mark.parametrize(
    ("divergence", "best"),
    [
        ({"original": 3e-3, "dequant": 2e-3, "requant": 4e-3}, "dequant"),
        ({"original": 2.03e-3, "dequant": 2e-3, "requant": 4e-3}, "original"),
        ({"original": 2.05e-3, "dequant": 2e-3, "requant": 4e-3}, "dequant"),
        ({"original": 0.0, "dequant": 0.0}, "original"),
    ],
)
def test_the_least_divergence_wins_and_hardly_more_is_as_good(
    divergence: dict[str, float], best: str
) -> None:
    assert table(**divergence).best == best


def test_the_table_as_text_and_as_json() -> None:
    compared = table(original=3e-3, dequant=2e-3)
    first, *rows = compared.lines()
    assert "has accuracy 0.5 on these rows" in first
    assert [row.split()[0] for row in rows] == ["original", "dequant"]
    assert "KL 0.002 nats, same answer 75.0 %, accuracy 0.25" in rows[1]
    assert [row for row in rows if "chosen" in row] == rows[1:]
    assert compared.to_json() == {
        "chosen": "dequant", "metric": "accuracy", "trained": {"accuracy": 0.5},
        "original": {"kl": 3e-3, "agree": 0.75, "accuracy": 0.25},
        "dequant": {"kl": 2e-3, "agree": 0.75, "accuracy": 0.25},
    }  # fmt: skip
    assert "the dequant base" in str(compared.provenance()["merged into"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_padding_has_no_say_in_the_divergence(tmp_path: Path) -> None:
    """Against a model that differs only where the mask is 0."""
    made = Made(tmp_path, "llama", target_modules=["q_proj"])
    source = adapter_source(made.adapter, str(made.base))
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        trained: Any = made.model.eval()(**inputs).logits.float()
    measured: list[torch.nn.Module] = []

    def measure(model: torch.nn.Module) -> float:
        measured.append(model)
        return 7.0

    def compare(outputs: torch.Tensor) -> Table:
        return table_of(outputs, 8.0, {"original": source}, inputs, "loss", measure)

    same = compare(trained)
    assert same.divergence["original"] < 1e-6
    assert same.agree["original"] == 1.0
    assert (same.scores, len(measured)) == ({"trained": 8.0, "original": 7.0}, 1)
    other = trained.clone()
    other[1, 5:] = torch.randn(4, 50) * 9
    assert compare(other).divergence["original"] < 1e-6
    other[1, 4] = torch.randn(50) * 9
    assert compare(other).divergence["original"] > 0.1
