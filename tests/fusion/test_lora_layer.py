"""A fused layer against PEFT's own: outputs and every gradient, and that the kernels ran."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from peftlab.fusion import fuse, unfuse

from .common import K, N, R, adapted, assert_same, layer_of, outcome, some_input

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, randomised": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal", "r": 6},
    "gaussian": {"init_lora_weights": "gaussian"},
    "rank pattern": {"rank_pattern": {"layer": 11}},
    "alpha pattern": {"alpha_pattern": {"layer": 3}},
    "lora_bias": {"lora_bias": True},
    "bias, lora_only": {"bias": "lora_only"},
    "bias, all": {"bias": "all", "lora_bias": True},
    "rank 1": {"r": 1},
    "rank above K": {"r": 70},
}


def relative(dtype: torch.dtype) -> float:
    """What two ways to round the same sum may differ by."""
    return {torch.float64: 1e-13, torch.float32: 2e-6}.get(dtype, 2e-2)


# PEFT's olora factors the weight of a Conv1D the wrong way round and fails in forward.
CASES = [(n, k) for n in CONFIGS for k in ("linear", "conv1d") if (n, k) != ("olora", "conv1d")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_equal_to_peft(name: str, kind: str, calls: Any) -> None:
    config = CONFIGS[name]
    # Some initialisations refuse float64, which the comparison wants.
    model = adapted(kind, torch.float32, **config).double()
    if model.peft_config["default"].lora_bias:
        nn.init.normal_(layer_of(model).lora_B["default"].bias)
    expected = outcome(model)
    assert calls.take() == 0
    report = fuse(model)
    assert report.not_fused == ()
    result = outcome(model)
    assert calls.take() == 1
    assert_same(result, expected)
    assert {"y", "x"} < result.keys()
    assert any("lora_A" in name for name in result)


def test_a_base_without_a_bias(calls: Any) -> None:
    for config in ({}, {"lora_bias": True}):
        with pytest.warns(match="merging") if config else _quiet():
            model = adapted(bias_of_base=False, **config)
        expected = outcome(model)
        fuse(model)
        assert_same(outcome(model), expected)
        assert calls.take() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast_adapters", [True, False], ids=["fp32 adapters", "adapters as base"])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_dtypes_stay_as_peft_has_them(
    kind: str, cast_adapters: bool, dtype: torch.dtype, calls: Any
) -> None:
    model = adapted(kind, dtype, cast_adapters=cast_adapters, lora_bias=True)
    x = some_input((4, K), dtype)
    expected = outcome(model, x)
    fuse(model)
    result = outcome(model, x)
    assert calls.take() == 1
    assert result["y"].dtype == dtype
    assert_same(result, expected, relative(dtype))


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast_on_a_cpu(base: torch.dtype, x_dtype: torch.dtype, calls: Any) -> None:
    model = adapted("linear", base)
    x = some_input((4, K), x_dtype)
    with torch.autocast("cpu", torch.bfloat16):
        expected = outcome(model, x)
        fuse(model)
        result = outcome(model, x)
    assert calls.take() == 1
    assert result["y"].dtype == torch.bfloat16
    assert_same(result, expected, 2e-2)


@pytest.mark.parametrize("shape", [(0, K), (2, 0, K), (K,), (1, 1, 1, K)])
def test_shapes_of_x(shape: tuple[int, ...], calls: Any) -> None:
    model = adapted(bias="lora_only")
    expected = outcome(model, shape=shape)
    fuse(model)
    assert_same(outcome(model, shape=shape), expected)
    assert calls.take() == 1


def test_x_that_is_not_contiguous(calls: Any) -> None:
    model = adapted()
    x = some_input((K, 4), torch.float64).t()
    expected = outcome(model, x)
    fuse(model)
    assert_same(outcome(model, x), expected)
    assert calls.take() == 1


def test_scaling_may_be_a_tensor_and_the_rank_another_than_configured(calls: Any) -> None:
    """As `peft.utils.hotswap` leaves a layer: padded matrices, scaling in a tensor."""
    model = adapted()
    layer = layer_of(model)
    for half, shape, dim in (("lora_A", (3, K), 0), ("lora_B", (N, 3), 1)):
        part = getattr(layer, half)["default"]
        part.weight.data = torch.cat([part.weight.data, torch.zeros(shape).double()], dim)
    layer.scaling["default"] = torch.tensor(0.7)
    expected = outcome(model)
    fuse(model)
    result = outcome(model)
    assert calls.take() == 1
    assert layer.r["default"] == R
    assert result["base_model.model.layer.lora_A.default.weight"].shape == (R + 3, K)
    assert_same(result, expected)


def test_hotswapping_into_a_fused_model(calls: Any, tmp_path: Any) -> None:
    from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

    torch.manual_seed(3)
    other = adapted(r=8, lora_alpha=3)
    for part in (layer_of(other).lora_A, layer_of(other).lora_B):
        nn.init.normal_(part["default"].weight)
    other.save_pretrained(tmp_path / "other")

    model = adapted()
    fuse(model)
    prepare_model_for_compiled_hotswap(model, target_rank=8, config=model.peft_config)
    before = outcome(model)
    hotswap_adapter(model, tmp_path / "other", adapter_name="default")
    result = outcome(model)
    assert calls.take() == 2
    assert not torch.equal(before["y"], result["y"])
    unfuse(model)
    assert_same(result, outcome(model))
    assert_same({"y": result["y"]}, {"y": outcome(other)["y"]})


def test_dropout_drops_the_adapters_input_only_and_only_in_training(calls: Any) -> None:
    model = adapted(lora_dropout=0.25)
    layer = layer_of(model)
    with torch.no_grad():
        # y becomes dropout(x), on the first R features.
        layer.base_layer.weight.zero_()
        layer.base_layer.bias.zero_()
        layer.lora_A["default"].weight.copy_(torch.eye(R, K))
        layer.lora_B["default"].weight.copy_(torch.eye(N, R))
    layer.scaling["default"] = 1.0
    fuse(model)
    x = torch.ones(4000, K, dtype=torch.float64, requires_grad=True)
    model.train()
    y = model(x)
    y.sum().backward()
    dropped = y[:, :R].detach()
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs((dropped == 0).double().mean() - 0.25) < 0.02
    assert torch.equal(x.grad[:, :R], dropped), "backward uses another mask than forward"
    model.eval()
    assert torch.equal(model(x)[:, :R], torch.ones(4000, R).double())
    assert calls.take() == 2


def test_dropout_is_the_generators(calls: Any) -> None:
    model = adapted(lora_dropout=0.5).train()
    fuse(model)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(outcome(model))
    assert_same(drawn[0], drawn[1], 0)
    assert not torch.equal(drawn[0]["y"], drawn[2]["y"])
    assert calls.take() == 3


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing(dropout: float, reentrant: bool, calls: Any) -> None:
    model = adapted(lora_dropout=dropout).train()
    expected = outcome(model) if not dropout else None
    fuse(model)
    torch.manual_seed(5)
    plain = outcome(model)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    calls.take()
    torch.manual_seed(5)
    result = {name.removeprefix("inner."): t for name, t in outcome(Checkpointed()).items()}
    assert calls.take() == 2
    assert_same(result, plain, 0)
    if expected is not None:
        assert_same(result, expected)


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B", "both"])
def test_frozen_halves_get_no_gradient(frozen: str, calls: Any) -> None:
    model = adapted()
    layer = layer_of(model)
    for half in ("lora_A", "lora_B"):
        if frozen in (half, "both"):
            getattr(layer, half).requires_grad_(False)
    expected = outcome(model)
    fuse(model)
    assert_same(outcome(model), expected)
    assert calls.take() == 1


def test_without_gradients(calls: Any) -> None:
    model = adapted()
    x = some_input((3, K), torch.float64)
    for context in (torch.no_grad, torch.inference_mode):
        unfuse(model)
        with context():
            expected = model(x)
            fuse(model)
            assert_same({"y": model(x)}, {"y": expected})
    assert calls.take() == 2


def test_x_without_a_gradient_saves_its_product(calls: Any) -> None:
    model = adapted()
    fuse(model)
    model(some_input((3, K), torch.float64)).sum().backward()
    assert layer_of(model).lora_A["default"].weight.grad is not None
    assert calls.take() == 1


def test_a_hook_that_kept_the_forward_calls_pefts_after_unfuse(calls: Any) -> None:
    model = adapted()
    expected = outcome(model)
    fuse(model)
    layer = layer_of(model)
    layer.forward = layer.forward  # as accelerate's hooks do: an instance attribute
    outcome(model)
    assert calls.take() == 1
    unfuse(model)
    assert_same(outcome(model), expected, 0)
    assert calls.take() == 0


def test_a_forward_that_hooks_left_behind_does_not_hide_the_kernels(calls: Any) -> None:
    model = adapted()
    layer = layer_of(model)
    layer.forward = layer.forward  # as accelerate leaves it when it removes its hooks
    assert fuse(model).not_fused == ()
    outcome(model)
    assert calls.take() == 1


def _quiet() -> Any:
    import contextlib

    return contextlib.nullcontext()
