"""Penalties on what trains."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from peftlab.config.checks import problem_at
from peftlab.config.section import Section


class RegularizationConfig(Section):
    l1: float = Field(
        0.0, ge=0, description="Sparsity: after each step weights shrink by rate * l1, to exact 0."
    )
    l2: float = Field(
        0.0, ge=0, description="l2/2 * |W|^2 in the loss; train.weight_decay is apart from it."
    )
    l2_sp: float = Field(
        0.0,
        ge=0,
        description="l2_sp/2 * |change|^2 in the loss: towards the checkpoint; what is new, to 0.",
    )
    scope: Literal["head", "adapter", "trainable"] = Field(
        "trainable", description="Of what trains: the task's head, the adapter, or all."
    )

    @model_validator(mode="after")
    def _something_to_scope(self) -> Self:
        if self.scope != "trainable" and not self.penalises:
            raise problem_at(
                "scope", f"is {self.scope}, but l1, l2 and l2_sp are 0: nothing is penalised"
            )
        return self

    @property
    def penalises(self) -> bool:
        """Whether any strength is set."""
        return bool(self.l1 or self.l2 or self.l2_sp)
