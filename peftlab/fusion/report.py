"""What was fused, and for everything else why not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from peftlab.fusion.fp32.widen import WidenReport
from peftlab.fusion.int8.gate import Int8Gate

Activations = Literal["keep", "fp32"]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class NotFused:
    """A layer that PEFT's own forward computes: its name, its class and the reason in words."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class FusionReport:
    """The layers that the kernels compute, by their names in the model, and those they do not.

    It tells how the model stood when `fuse` returned. A fused layer still falls back to PEFT's
    forward for single calls, and a layer that was not fused may be one later: adapters that are
    merged, disabled, or active together are. `widened`: with fp32 activations, how the rest of the
    model computes. `gates`: the 8-bit layers by name, adapted or not, each with its arithmetic;
    they are the layers' own, and show a verdict as soon as it is there.
    """

    activations: Activations
    fused: tuple[str, ...]
    not_fused: tuple[NotFused, ...]
    widened: WidenReport | None = None
    gates: Mapping[str, Int8Gate] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report in JSON values."""
        return {
            "activations": self.activations,
            "fused": list(self.fused),
            "not_fused": [asdict(layer) for layer in self.not_fused],
            "widened": None if self.widened is None else asdict(self.widened),
            "int8": {name: gate.to_json() for name, gate in self.gates.items()},
        }

    def __str__(self) -> str:
        total = len(self.fused) + len(self.not_fused)
        lines = [f"{len(self.fused)} of {total} adapted layers fused"]
        lines += [
            f"  fused      {_times(pattern, count)}"
            for pattern, count in Counter(map(_pattern, self.fused)).items()
        ]
        reasons = Counter((_pattern(o.name), o.kind, o.reason) for o in self.not_fused)
        lines += [
            f"  not fused  {_times(pattern, count)} ({kind}): {reason}"
            for (pattern, kind, reason), count in reasons.items()
        ]
        return "\n".join([*lines, *_widened(self.widened), *_gates(self.gates)])


def _pattern(name: str) -> str:
    """The name with block numbers as `*`: one line for what is the same in every block."""
    return _NUMBER.sub("*", name)


def _times(pattern: str, count: int) -> str:
    return pattern if count == 1 else f"{pattern} (x{count})"


def _widened(report: WidenReport | None) -> list[str]:
    if report is None:
        return []
    lines = [
        f"fp32 activations: {len(report.linears)} linear layers and {len(report.embeddings)} "
        f"embeddings keep 16-bit weights, {report.bytes_added / 2**20:.1f} MiB more for the rest"
    ]
    rest = Counter((_pattern(module.name), module.kind, module.reason) for module in report.widened)
    lines += [
        f"  fp32       {_times(pattern, count)} ({kind}): {reason}"
        for (pattern, kind, reason), count in rest.items()
    ]
    return lines


def _gates(gates: Mapping[str, Int8Gate]) -> list[str]:
    """How many 8-bit layers compute by what, and those that were refused w8a8, by name."""
    if not gates:
        return []
    states = Counter(_state(gate) for gate in gates.values())
    lines = [f"8-bit layers: {', '.join(f'{n} {state}' for state, n in sorted(states.items()))}"]
    refused = [g for g in gates.values() if g.asked == "auto" and g.verdict == "w8a16"]
    lines += [
        f"  w8a16      {gate.layer}: by w8a8 {gate.error:.1f} times the error on Gaussian data, "
        f"{gate.tolerance:g} let through"
        for gate in refused
    ]
    return lines


def _state(gate: Int8Gate) -> str:
    if gate.asked == "auto" and gate.verdict is None:
        return "not decided yet (w8a16)"
    return gate.arithmetic
