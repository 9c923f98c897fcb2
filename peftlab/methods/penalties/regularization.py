"""Penalties on the parameters that train: the loss is L = L_task + Omega(theta).

    Omega = l1 |W|_1  +  l2 / 2 |W|^2  +  l2_sp / 2 (|theta - theta_0|^2 + |s B A|^2)

`l1` and `l2` are of matrices W alone: like weight decay they leave out biases, norms and other
vectors, which zero would break. `l2_sp` is of every parameter in scope, towards the start theta_0
of Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning with convolutional
networks" (ICML 2018), their alpha and beta being one number: what the checkpoint held is drawn to
the checkpoint, what is new (a task's head) to zero. An adapter is drawn to no change at all: with
A [r, K] and B [N, r] the change s B A is never formed, since

    |s B A|^2 = s^2 tr(B'B AA'),    d/dA = 2 s^2 (B'B) A,    d/dB = 2 s^2 B (AA'),

where B'B and AA' are r x r. The factors of a half make every gradient of a square lambda times its
distance, as `weight_decay` of `torch.optim.SGD` has it.

The quadratic penalties enter the gradient, once an optimizer step and in fp32. The L1 penalty has
no gradient at zero and is taken by a proximal step after the optimizer's own: soft-thresholding,
which leaves exact zeros. Its threshold is the step's learning rate times `l1`, for adaptive
optimizers too: that is proximal gradient descent for SGD, and for AdamW a shrinkage decoupled from
the gradient's scale, as its weight decay is (Zhuang, Liu, Cutkosky and Orabona, "Understanding
AdamW through proximal methods and scale-freeness", TMLR 2022). Under AdamW `l1` therefore weighs
against a step of about one learning rate, not against the gradient: from 1 on little survives.
Dividing the threshold by Adam's sqrt(v) + eps, as ProxGen does (Yun, Lozano and Yang, "Adaptive
proximal gradient methods for structured neural networks", NeurIPS 2021), would make AdamW minimise
L itself, but has no bound where gradients are zero: LoRA's A, which has none while B is zero, would
be gone after one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

from peftlab.config.schema import RegularizationConfig


@dataclass(frozen=True, slots=True)
class LoraChange:
    """What an adapter adds to one layer's weight, s B A, by its factors: a [r, K], b [N, r]."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float


@dataclass(slots=True)
class Anchored:
    """A parameter and what it is drawn to: `start`, of its shape, or zero where that is None."""

    parameter: nn.Parameter
    start: torch.Tensor | None

    def distance(self) -> torch.Tensor:
        """The parameter minus its start, in the parameter's dtype."""
        if self.start is None:
            return self.parameter
        # The model was moved since; its start follows once.
        self.start = self.start.to(self.parameter.device)
        return self.parameter - self.start


@dataclass(frozen=True, slots=True)
class Regularizer:
    """The penalised parameters: `matrices` by l1 and l2, `anchored` and `changes` by l2_sp."""

    settings: RegularizationConfig
    matrices: tuple[nn.Parameter, ...]
    anchored: tuple[Anchored, ...]
    changes: tuple[LoraChange, ...]

    @torch.no_grad()
    def add_gradient(self) -> float:
        """Add the quadratic penalties' gradient to `.grad`; returns Omega at these parameters.

        For after the last backward pass of an optimizer step and before clipping: what is clipped
        is the gradient of L without its L1 term.
        """
        values = list(self._absolutes())
        # One after the other: all gradients at once would be as large as what trains.
        for term in chain(self._squares(), self._distances()):
            values.append(term.value)
            for parameter, direction in term.directions:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.add_(direction, alpha=term.strength)
        return _total(values)

    @torch.no_grad()
    def shrink(self, rates: Iterable[tuple[nn.Parameter, float]]) -> None:
        """The proximal step of l1 in place; `rates` are parameters with their learning rates.

        Every weight of a penalised matrix moves towards zero by rate * l1, and no further.
        """
        if not self.settings.l1:
            return
        mine = {id(p) for p in self.matrices}
        for parameter, rate in rates:
            if id(parameter) in mine:
                shrunk = nn.functional.softshrink(parameter, rate * self.settings.l1)
                parameter.copy_(shrunk)

    @torch.no_grad()
    def penalties(self) -> dict[str, float]:
        """Omega's terms of the strengths that are set: `l1`, `l2`, `l2_sp`, and `total`."""
        terms: dict[str, float] = {}
        if self.settings.l1:
            terms["l1"] = _total(self._absolutes())
        if self.settings.l2:
            terms["l2"] = _total(term.value for term in self._squares())
        if self.settings.l2_sp:
            terms["l2_sp"] = _total(term.value for term in self._distances())
        return terms | {"total": sum(terms.values())}

    @torch.no_grad()
    def zeros(self) -> tuple[int, int]:
        """How many weights of the matrices are exactly zero, and how many there are."""
        nonzero = sum(int(torch.count_nonzero(p)) for p in self.matrices)
        scalars = sum(p.numel() for p in self.matrices)
        return scalars - nonzero, scalars

    @property
    def sparsity(self) -> float | None:
        """The share of exact zeros in what l1 penalises; None without l1."""
        if not self.settings.l1:
            return None
        zeros, scalars = self.zeros()
        return zeros / scalars

    def report(self) -> dict[str, Any]:
        """Penalties at the present weights and, with l1, the sparsity reached; JSON values."""
        report: dict[str, Any] = {"penalty": self.penalties()}
        if self.settings.l1:
            zeros, scalars = self.zeros()
            report |= {"zeros": zeros, "penalised": scalars, "sparsity": zeros / scalars}
        return report

    def describe(self) -> str:
        """A sentence for people: what is penalised, and how strongly."""
        settings, phrases = self.settings, []
        scalars = sum(p.numel() for p in self.matrices)
        phrases += [
            f"{name} {strength:g} on {scalars:,} weights"
            for name, strength in (("l1", settings.l1), ("l2", settings.l2))
            if strength
        ]
        if settings.l2_sp:
            to_start = sum(e.parameter.numel() for e in self.anchored if e.start is not None)
            to_zero = sum(e.parameter.numel() for e in self.anchored if e.start is None)
            parts = [
                f"{to_start:,} parameters towards the checkpoint" * bool(to_start),
                f"{to_zero:,} new ones towards zero" * bool(to_zero),
                f"{len(self.changes)} adapted layers towards no change" * bool(self.changes),
            ]
            phrases.append(
                f"l2_sp {settings.l2_sp:g} on {', '.join(part for part in parts if part)}"
            )
        return f"penalised: {'; '.join(phrases)}"

    def _absolutes(self) -> Iterator[torch.Tensor]:
        for parameter in self.matrices if self.settings.l1 else ():
            yield self.settings.l1 * torch.linalg.vector_norm(parameter, ord=1)

    def _squares(self) -> Iterator[_Term]:
        strength = self.settings.l2
        for parameter in self.matrices if strength else ():
            yield _Term(_half_square(parameter, strength), strength, ((parameter, parameter),))

    def _distances(self) -> Iterator[_Term]:
        strength = self.settings.l2_sp
        if not strength:
            return
        for entry in self.anchored:
            distance = entry.distance()
            value = _half_square(distance, strength)
            yield _Term(value, strength, ((entry.parameter, distance),))
        for change in self.changes:
            a, b, factor = change.a, change.b, strength * change.scaling**2
            gram_a, gram_b = a @ a.T, b.T @ b
            value = factor / 2 * (gram_a * gram_b).sum()
            yield _Term(value, factor, ((a, gram_b @ a), (b, b @ gram_a)))


class _Term(NamedTuple):
    """A penalty's value, and its gradient: `strength` times a direction for each parameter."""

    value: torch.Tensor
    strength: float
    directions: tuple[tuple[nn.Parameter, torch.Tensor], ...]


def _half_square(distance: torch.Tensor, strength: float) -> torch.Tensor:
    flat = distance.flatten()
    return strength / 2 * torch.dot(flat, flat)


def _total(values: Iterable[torch.Tensor]) -> float:
    """The sum of scalars of one device, read back once."""
    return torch.stack(list(values)).sum().item()
