"""Over which form of an 8-bit base a merged model is nearest to the model as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peftlab.export.merge import laid_out
from peftlab.export.source import Source
from peftlab.export.streamed import logits
from peftlab.export.verify import as_merged

_EQUAL = 1.02
"""A divergence this much larger than the least is no other: the base at hand first."""


@dataclass(frozen=True, slots=True)
class Table:
    """The mean KL divergence, in nats, from the model as trained to each merged one.

    `agree` is the share of outputs whose likeliest entry is the same.
    """

    divergence: Mapping[str, float]
    agree: Mapping[str, float]

    @property
    def best(self) -> str:
        """The first whose divergence is the least, or hardly more."""
        least = min(self.divergence.values())
        return next(name for name, kl in self.divergence.items() if kl <= least * _EQUAL)

    def lines(self) -> tuple[str, ...]:
        """The table for people."""
        rows = [
            f"  {name:<9} KL {kl:.3g} nats, same answer {100 * self.agree[name]:.1f} %"
            f"{'   <- chosen, the nearest' if name == self.best else ''}"
            for name, kl in self.divergence.items()
        ]
        return ("Merged models against the model as it was trained over 8 bits:", *rows)

    def provenance(self) -> dict[str, object]:
        """What a model card says of the choice."""
        told = ", ".join(f"{name} {kl:.3g}" for name, kl in self.divergence.items())
        return {"merged into": f"the {self.best} base (KL to the trained model: {told})"}


@torch.no_grad()
def table_of(
    trained: Tensor, candidates: Mapping[str, Source], inputs: Mapping[str, Tensor]
) -> Table:
    """Compare outputs for one batch with the trained model's; each candidate merged on the fly."""
    written = inputs.get("decoder_input_ids")
    # A decoder's outputs are not of the places that the mask is of.
    mask = inputs["attention_mask"] if written is None else torch.ones_like(written)
    kept = mask.bool()
    divergence, agree = {}, {}
    for name, source in candidates.items():
        built, plan = laid_out(source)
        with as_merged(built, source.changes, plan.outputs) as model:
            found = logits(model, inputs)
        p, q = _rows(trained, kept), _rows(found, kept)
        # Of equal models, rounding may make it hardly negative.
        kl = float(F.kl_div(q, p, log_target=True, reduction="batchmean"))
        divergence[name] = max(0.0, kl)
        agree[name] = float((p.argmax(-1) == q.argmax(-1)).float().mean())
    return Table(divergence, agree)


def _rows(outputs: Tensor, kept: Tensor) -> Tensor:
    """Log-probabilities [rows, classes] of every output that is not padding's."""
    rows = outputs[kept] if outputs.dim() == 3 and outputs.shape[:2] == kept.shape else outputs
    return F.log_softmax(rows.reshape(-1, rows.shape[-1]), dim=-1)
