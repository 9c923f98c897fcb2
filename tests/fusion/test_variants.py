"""LoRA variants and other kinds of adapters: PEFT computes them, and they are reported."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import config as lora_config
from torch import Tensor, nn

from peftlab.fusion import fuse, unfuse

from .common import K, N, R, adapted, assert_same, layer_of, outcome

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("DoraLinearVariant", {"use_dora": True}),
    "mica": ("MiCALinearVariant", {"init_lora_weights": "mica"}),
    "velora": ("VeloraLinearVariant", {"velora_config": lora_config.VeloraConfig(num_groups=1)}),
    "kasa": ("KasaLinearVariant", {"kasa_config": lora_config.KasaConfig()}),
    "monteclora": (
        "MontecloraLinearVariant",
        {"monteclora_config": lora_config.MontecloraConfig(buffer_size=4)},
    ),
    "alora": (
        "ALoraLinearVariant",
        {"alora_invocation_tokens": [1, 2]},
    ),
    "bdlora": (
        "BdLoraLinearVariant",
        {"r": 4, "use_bdlora": lora_config.BdLoraConfig(target_modules_bd_a=["layer"])},
    ),
}


# aLoRA is meant for causal models, which one layer is not.
pytestmark = pytest.mark.filterwarnings("ignore:aLoRA is currently only supported")


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, dropout: float, calls: Any) -> None:
    kind, config = VARIANTS[name]
    model = adapted("linear", torch.float32, lora_dropout=dropout, **config).train()
    twin = copy.deepcopy(model)  # some have a state that goes on from call to call
    torch.manual_seed(3)
    expected = outcome(twin)
    report = fuse(model)
    (layer,) = report.not_fused
    assert layer.reason == f"the adapter 'default' is a variant, {kind}"
    torch.manual_seed(3)
    assert_same(outcome(model), expected, 0)
    assert calls.take() == 0


def test_alora_with_its_offsets(calls: Any) -> None:
    model = adapted("linear", torch.float32, **VARIANTS["alora"][1])
    layer = layer_of(model)
    x = torch.randn(2, 5, K)
    expected = layer(x.clone(), alora_offsets=[2, None])
    fuse(model)
    assert torch.equal(layer(x.clone(), alora_offsets=[2, None]), expected)
    assert calls.take() == 0


def test_a_variant_and_a_plain_adapter_on_one_layer(calls: Any) -> None:
    model = adapted(use_dora=True)
    plain = LoraConfig(r=R, target_modules=["layer"], init_lora_weights=False)
    model.add_adapter("plain", plain)
    model.double()
    fuse(model)
    outcome(model)
    assert calls.take() == 0
    model.set_adapter("plain")
    result = outcome(model)
    assert calls.take() == 1
    unfuse(model)
    assert_same(result, outcome(model))


class Matrix(nn.Module):
    """A module with parameters of its own, `[..., K] -> [..., N]`."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(N, K))
        self.second = nn.Parameter(torch.randn(N, N))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x @ self.matrix.T @ self.second.T
        return y


@pytest.mark.parametrize("targets", [["matrix"], ["matrix", "second"]])
def test_target_parameters(targets: list[str], calls: Any) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(Matrix())
    config = LoraConfig(
        r=R,
        target_modules=[],
        target_parameters=[f"0.{name}" for name in targets],
        init_lora_weights=False,
    )
    model = get_peft_model(inner, config)
    expected = outcome(model)
    report = fuse(model)
    assert len(report.not_fused) == len(targets)
    assert {layer.reason for layer in report.not_fused} == {
        "it adapts a parameter (target_parameters), not a layer"
    }
    assert_same(outcome(model), expected, 0)
    assert calls.take() == 0
