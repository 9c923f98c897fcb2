"""The error gate: what it measures, when it decides, and that a verdict changes nothing halfway."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftlab.fusion import fuse
from peftlab.fusion.int8.gate import MEASURED_CALLS, Int8Gate, gate_of, on_verdict
from tests.fusion.common import K, assert_same, batch, layer_of, model_outcome, outcome, some_input
from tests.fusion.eight_bits import adapted_layer, adapted_model

LONG = 512


class Wide(torch.nn.Module):
    """Two 8-bit layers of 512 features; the second sees what the first is given, and outliers."""

    def __init__(self, outlier: float) -> None:
        super().__init__()
        from peftlab_kernels.int8_linear import Int8Linear

        torch.manual_seed(0)
        weights = torch.randn(2, LONG, LONG) * 0.02
        self.plain, self.planted = (Int8Linear.from_weight(weight) for weight in weights)
        self.register_buffer("gain", torch.ones(LONG))
        self.gain[7] = outlier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.planted(self.plain(x) * 2 * self.gain)
        return y


def rows(seed: int) -> torch.Tensor:
    return torch.randn(40, LONG, generator=torch.Generator().manual_seed(seed))


def test_a_planted_outlier_stays_in_w8a16_bit_by_bit() -> None:
    gated, accurate, fast = Wide(100.0), Wide(100.0), Wide(100.0)
    report = fuse(gated)
    fuse(accurate, arithmetic="w8a16")
    fuse(fast, arithmetic="w8a8")
    for seed in range(MEASURED_CALLS):
        assert torch.equal(gated(rows(seed)), accurate(rows(seed)))
    gated(rows(9))
    verdicts = {name: gate.verdict for name, gate in report.gates.items()}
    assert verdicts == {"plain": "w8a8", "planted": "w8a16"}
    assert "planted: w8a8's error is" in str(report)
    x = rows(10)
    assert torch.equal(gated.plain(x), fast.plain(x))
    assert not torch.equal(gated.plain(x), accurate.plain(x))
    assert torch.equal(gated.planted(x), accurate.planted(x))
    assert report.gates["planted"].error > 2 * report.gates["plain"].error


def test_without_outliers_every_layer_is_w8a8() -> None:
    model = Wide(1.0)
    report = fuse(model)
    for seed in range(MEASURED_CALLS + 1):
        model(rows(seed))
    assert {gate.verdict for gate in report.gates.values()} == {"w8a8"}
    assert all(0.5 < gate.error < 2 for gate in report.gates.values())


def test_tolerance_decides() -> None:
    for tolerance, verdict in ((0.0, "w8a16"), (1e6, "w8a8")):
        model = Wide(100.0)
        report = fuse(model, tolerance=tolerance)
        for seed in range(MEASURED_CALLS + 1):
            model(rows(seed))
        assert {gate.verdict for gate in report.gates.values()} == {verdict}


def test_training_waits_for_gradients_and_an_evaluation_does_not_decide() -> None:
    model = adapted_layer("ours")
    (gate,) = fuse(model).gates.values()
    x = some_input((2, 3, K), torch.float32)
    for step in range(MEASURED_CALLS):
        assert gate.verdict is None
        assert len(gate.backward_errors) == step
        outcome(model, x)
    assert len(gate.forward_errors) == len(gate.backward_errors) == MEASURED_CALLS
    assert gate.verdict is None, "the verdict comes between passes"
    model(x)
    assert gate.verdict == "w8a8"

    other = adapted_layer("ours")
    (gate,) = fuse(other).gates.values()
    outcome(other, x)
    with torch.no_grad():
        for _ in range(40):
            other(x)
    assert gate.verdict is None


def test_a_gradient_of_outliers_is_seen() -> None:
    model = adapted_layer("ours")
    (gate,) = fuse(model, tolerance=1.5).gates.values()
    for _ in range(MEASURED_CALLS + 1):
        x = some_input((2, 3, K), torch.float32).requires_grad_()
        y = model(x)
        dy = torch.randn_like(y)
        dy[..., 5] = 40.0
        (y * dy).sum().backward()
    assert max(gate.forward_errors) < 1.5 < min(gate.backward_errors)
    assert gate.verdict == "w8a16"


def test_a_loss_without_backward_decides_by_forward_in_the_end() -> None:
    model = adapted_layer("ours")
    (gate,) = fuse(model).gates.values()
    x = some_input((2, 3, K), torch.float32).requires_grad_()
    for _ in range(40):
        model(x)
    assert gate.verdict == "w8a8"


def test_verdicts_are_reported_once_and_fusing_again_keeps_them() -> None:
    model = Wide(100.0)
    reported: list[tuple[str, str | None]] = []

    def listen(gate: Int8Gate) -> None:
        reported.append((gate.layer, gate.verdict))

    fuse(model)
    with on_verdict(listen):
        for seed in range(MEASURED_CALLS + 3):
            model(rows(seed))
    assert sorted(reported) == [("plain", "w8a8"), ("planted", "w8a16")]
    kept = fuse(model).gates
    assert {gate.verdict for gate in kept.values()} == {"w8a8", "w8a16"}
    assert fuse(model, arithmetic="w8a8").gates["planted"].arithmetic == "w8a8"


def test_deciding_now_keeps_the_arithmetic() -> None:
    model = adapted_layer("ours")
    (gate,) = fuse(model).gates.values()
    gate.decide_now()
    assert gate.verdict == "w8a16"
    explicit = Int8Gate("layer", requested="w8a8")
    explicit.decide_now()
    assert (explicit.verdict, explicit.arithmetic) == (None, "w8a8")
    assert gate.to_json() == {
        "arithmetic": "w8a16", "decided": True, "forward_error": None, "backward_error": None
    }  # fmt: skip


def test_a_compiled_model_is_not_measured() -> None:
    model = adapted_layer("ours")
    fuse(model)
    plain = outcome(model, some_input((2, 3, K), torch.float32))
    gate = gate_of(layer_of(model).base_layer)
    assert gate is not None
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(6):
        result = outcome(compiled, some_input((2, 3, K), torch.float32))
    assert gate.verdict is None
    assert_same({"y": result["y"]}, {"y": plain["y"]}, 1e-6)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_loss_stays_near_w8a16(family: str) -> None:
    gated, accurate = adapted_model("ours", family), adapted_model("ours", family)
    fuse(gated)
    fuse(accurate, arithmetic="w8a16")
    inputs = batch(family)
    for _ in range(MEASURED_CALLS + 2):
        result, expected = model_outcome(gated, inputs), model_outcome(accurate, inputs)
    assert not torch.equal(result["logits"], expected["logits"])
    assert abs(float(result["loss"] - expected["loss"])) < 2e-2 * float(expected["loss"])
