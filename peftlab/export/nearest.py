"""The form of an 8-bit base over which a merged model is nearest to the trained one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftlab.export.merge import laid_out
from peftlab.export.source import Source
from peftlab.export.streamed import logits
from peftlab.export.verify import as_merged

_EQUAL = 1.02
"""Divergences within this factor of the least count as equal: the first form is chosen."""

TRAINED = "trained"
"""The model as it was trained, among the rows of a table."""


@dataclass(frozen=True, slots=True)
class Table:
    """The mean KL divergence, in nats, from the model as trained to each merged one.

    `agree` is the share of outputs whose likeliest entry is the same. `scores` are the task's
    `metric` of each on the sample's rows, and of the model as trained.
    """

    divergence: Mapping[str, float]
    agree: Mapping[str, float]
    metric: str
    scores: Mapping[str, float]

    @property
    def best(self) -> str:
        """The first form whose divergence is the least, within `_EQUAL`."""
        least = min(self.divergence.values())
        return next(name for name, kl in self.divergence.items() if kl <= least * _EQUAL)

    def lines(self) -> tuple[str, ...]:
        """The table for people."""
        rows = [
            f"  {name:<9} KL {kl:.3g} nats, same answer {100 * self.agree[name]:.1f} %, "
            f"{self._scored(name)}{'   <- chosen, the nearest' if name == self.best else ''}"
            for name, kl in self.divergence.items()
        ]
        return (
            "Merged models against the model as it was trained over 8 bits, which has "
            f"{self._scored(TRAINED)} on these rows:",
            *rows,
        )

    def to_json(self) -> dict[str, Any]:
        """The table in JSON values, for the report."""
        return {
            "chosen": self.best,
            "metric": self.metric,
            TRAINED: {self.metric: self.scores[TRAINED]},
            **{
                name: {"kl": kl, "agree": self.agree[name], self.metric: self.scores[name]}
                for name, kl in self.divergence.items()
            },
        }

    def _scored(self, name: str) -> str:
        return f"{self.metric} {self.scores[name]:.4g}"

    def provenance(self) -> dict[str, object]:
        """The choice, for the model card."""
        divergences = ", ".join(f"{name} {kl:.3g}" for name, kl in self.divergence.items())
        return {"merged into": f"the {self.best} base (KL to the trained model: {divergences})"}


@torch.no_grad()
def table_of(
    trained: Tensor,
    score: float,
    candidates: Mapping[str, Source],
    inputs: Mapping[str, Tensor],
    metric: str,
    measure: Callable[[nn.Module], float],
) -> Table:
    """Compare outputs for one batch with the trained model's; each candidate merged on the fly.

    `measure` is a model's `metric` on these rows, of which the trained one's is `score`.
    """
    written = inputs.get("decoder_input_ids")
    # A decoder's outputs are not at the positions of the attention mask.
    mask = inputs["attention_mask"] if written is None else torch.ones_like(written)
    kept = mask.bool()
    divergence, agree, scores = {}, {}, {TRAINED: score}
    for name, source in candidates.items():
        built, plan = laid_out(source)
        with as_merged(built, source.changes, plan.outputs) as model:
            outputs = logits(model, inputs)
            scores[name] = measure(model)
        p, q = _rows(trained, kept), _rows(outputs, kept)
        # For equal models, rounding may make it slightly negative.
        kl = float(F.kl_div(q, p, log_target=True, reduction="batchmean"))
        divergence[name] = max(0.0, kl)
        agree[name] = float((p.argmax(-1) == q.argmax(-1)).float().mean())
    return Table(divergence, agree, metric, scores)


def _rows(outputs: Tensor, kept: Tensor) -> Tensor:
    """Log-probabilities [rows, classes] of all outputs except padding."""
    rows = outputs[kept] if outputs.dim() == 3 and outputs.shape[:2] == kept.shape else outputs
    return F.log_softmax(rows.reshape(-1, rows.shape[-1]), dim=-1)
