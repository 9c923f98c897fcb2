"""The counters themselves, on steps whose counts one can do by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.layers.counting import SavedBytes, Watch, count

# NaN in fresh memory would count as an operator.
pytestmark = pytest.mark.poison_empty(False)


def test_products_in_place_count_as_those_that_are_not() -> None:
    total, a, b = torch.zeros(10, 30), torch.ones(10, 7), torch.ones(7, 30)
    with Watch() as watch:
        total.addmm_(a, b)
        torch.mm(a, b, out=total)
        torch.nn.functional.linear(a, b.T, total[0])
        a.view(2, 5, 7) @ b.expand(2, 7, 30)
    assert watch.flops == 4 * 2 * 10 * 7 * 30


def test_products_count_where_autograd_is_off() -> None:
    with Watch() as watch, torch.inference_mode():
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert watch.flops == 2 * 3 * 4 * 5


def test_views_and_allocations_are_no_operators() -> None:
    x = torch.ones(4, 6)
    with Watch() as watch:
        x.view(6, 4).T[1:].detach().unsqueeze(0)
        room = x.new_empty(4, 6)
        room.copy_(x).mul_(2)
    assert watch.names == {"copy_": 1, "mul_": 1}
    assert watch.operators == 2
    assert watch.bytes_moved == 4 * 24 * (2 + 1 + 1 + 1)  # copy_ takes both sides


def test_the_peak_is_of_what_lives_at_a_time() -> None:
    x = torch.ones(1000)  # was there before: its own bytes do not count
    with Watch() as watch:
        a = x + 1
        b = a.view(10, 100)
        del a
        c = b.t().exp()
        del b
        x.mul_(2)
        c.add_(1)
        d = torch.zeros(250)
    assert watch.peak_live_bytes == 8000
    assert d.shape == (250,)


def test_saved_is_what_backward_still_has_weights_aside() -> None:
    weight = torch.ones(30, 20)
    x = torch.ones(10, 20, requires_grad=True)

    def forward() -> torch.Tensor:
        torch.exp(torch.ones(500, requires_grad=True))  # its graph dies at once
        hidden = (x @ weight.T).sigmoid()  # saves its result
        return hidden * hidden  # saves the very same, twice

    counts = count(forward, [weight])
    assert counts.saved_bytes == 10 * 30 * 4
    assert counts.flops == 2 * 2 * 10 * 20 * 30


def test_saved_by_layers_is_told_apart_and_a_shared_storage_counts_once() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.v = nn.Linear(20, 30), nn.Linear(20, 30)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total: torch.Tensor = (self.q(x) * self.v(x)).sum()
            return total

    model = Model()
    weights = [*model.parameters()]
    with SavedBytes(weights, layers=[model.q, model.v]) as saved:
        y = model(torch.ones(10, 20))
        assert saved.bytes_of_layers == 10 * 20 * 4
        assert saved.bytes == 10 * 20 * 4 + 2 * 10 * 30 * 4
        y.backward()
    assert all(p.grad is not None for p in weights)
    assert not model.q._forward_hooks
    assert saved.bytes == 0
