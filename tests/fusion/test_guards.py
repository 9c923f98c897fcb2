"""Every reason to leave a call to PEFT: no kernel runs, and the result is PEFT's bit by bit."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from peftlab.fusion import fuse, unfuse
from peftlab.fusion.guards import why_not

from .common import K, N, R, adapted, assert_same, layer_of, outcome, some_input

HALVES = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_dropout": "dropout"}
PARTS = ("base_layer", *HALVES)
HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


def part_of(layer: Any, name: str) -> nn.Module:
    part: nn.Module = layer.base_layer if name == "base_layer" else getattr(layer, name)["default"]
    return part


def assert_falls_back(model: Any, calls: Any, reason: str, **settings: Any) -> None:
    """PEFT's result bit by bit, without the kernels; `reason` is in the report."""
    unfuse(model)
    expected = outcome(model, **settings)
    report = fuse(model)
    assert report.fused == ()
    (layer,) = report.not_fused
    assert reason in layer.reason
    assert layer.kind == "lora.Linear"
    calls.clear()
    assert_same(outcome(model, **settings), expected, 0)
    assert calls.take() == 0


def assert_fuses(model: Any, calls: Any) -> None:
    """The kernels compute the model: what made it fall back was that and nothing else."""
    assert fuse(model).not_fused == ()
    calls.clear()
    outcome(model)
    assert calls.take() == 1


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("part", PARTS)
def test_hooks(part: str, hook: str, calls: Any) -> None:
    model = adapted()
    seen = []
    target = part_of(layer_of(model), part)
    handle = getattr(target, hook)(lambda *_: seen.append(part))
    assert_falls_back(model, calls, f"{HALVES.get(part, part)} has a hook")
    assert seen == [part, part], "PEFT's run, then the fused one"
    handle.remove()
    assert_fuses(model, calls)


def test_a_hook_that_changes_what_it_sees(calls: Any) -> None:
    model = adapted()
    fuse(model)
    plain = outcome(model)
    layer_of(model).lora_A["default"].register_forward_hook(lambda _m, _x, y: 2 * y)
    assert_falls_back(model, calls, "lora_A has a hook")
    assert not torch.equal(outcome(model)["y"], plain["y"])


@pytest.mark.parametrize("part", PARTS)
def test_a_forward_of_the_instance(part: str, calls: Any) -> None:
    model = adapted()
    target = part_of(layer_of(model), part)
    own = target.forward
    target.forward = lambda *args: own(*args)  # type: ignore[method-assign]
    assert_falls_back(model, calls, "is replaced on the instance")
    del target.forward
    assert_fuses(model, calls)


def test_the_forward_of_another_instance(calls: Any) -> None:
    model = adapted()
    other = nn.Linear(K, R, bias=False).double()
    layer_of(model).lora_A["default"].forward = other.forward
    assert_falls_back(model, calls, "forward of its lora_A is replaced")


def test_a_hook_on_all_modules(calls: Any) -> None:
    model = adapted()
    handle = torch_module.register_module_forward_hook(lambda *_: None)
    try:
        assert_falls_back(model, calls, "all modules of the process")
    finally:
        handle.remove()
    assert_fuses(model, calls)


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("base_layer", "its base is a Doubled"),
        ("lora_A", "A and B are Doubled and Linear"),
        ("lora_B", "A and B are Linear and Doubled"),
    ],
)
def test_a_subclass_of_linear(part: str, reason: str, calls: Any) -> None:
    model = adapted()
    target = part_of(layer_of(model), part)
    target.__class__ = Doubled
    assert_falls_back(model, calls, reason)
    target.__class__ = nn.Linear
    assert_fuses(model, calls)


@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B"])
def test_a_parametrized_weight(part: str, calls: Any) -> None:
    model = adapted()
    target = part_of(layer_of(model), part)
    torch.nn.utils.parametrizations.weight_norm(target)
    assert_falls_back(model, calls, "Parametrized")


@pytest.mark.parametrize(
    ("dropout", "reason"),
    [
        (nn.AlphaDropout(0.0), "its dropout is AlphaDropout"),
        (nn.Dropout(0.0, inplace=True), "inplace=True"),
        (nn.Dropout(1.0), "dropout probability is 1"),
    ],
)
def test_other_dropouts(dropout: nn.Module, reason: str, calls: Any) -> None:
    model = adapted()
    layer_of(model).lora_dropout["default"] = dropout
    if reason == "inplace=True":
        # In place on the caller's input, which must not be a leaf that wants a gradient.
        fuse(model)
        assert reason in (why_not(layer_of(model)) or "")
        model(some_input((3, K), torch.float64))
        assert calls.take() == 0
    else:
        assert_falls_back(model, calls, reason)


def test_a_base_weight_that_trains(calls: Any) -> None:
    model = adapted()
    weight = layer_of(model).base_layer.weight.requires_grad_()
    assert_falls_back(model, calls, "its base weight trains")
    assert "base_model.model.layer.base_layer.weight" in outcome(model)
    weight.requires_grad_(False)
    assert_fuses(model, calls)


def test_disabled_adapters(calls: Any) -> None:
    model = adapted()
    fuse(model)
    with model.disable_adapter():
        assert_falls_back(model, calls, "its adapters are disabled")
        fuse(model)
    assert_fuses(model, calls)


def test_merged_adapters(calls: Any) -> None:
    model = adapted()
    fuse(model)
    model.merge_adapter()
    assert_falls_back(model, calls, "merged into its base: default")
    model.unmerge_adapter()
    assert_fuses(model, calls)


def test_several_adapters_at_once(calls: Any) -> None:
    model = adapted()
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    assert_falls_back(model, calls, "2 adapters are active: default, other")
    for name in ("other", "default"):
        model.set_adapter(name)
        assert_fuses(model, calls)


def test_no_adapter_of_the_layer_is_active(calls: Any) -> None:
    model = adapted()
    model.base_model.set_adapter([])
    assert_falls_back(model, calls, "0 adapters are active")


def test_deepspeeds_sharded_parameters(calls: Any) -> None:
    for part in ("base_layer", "lora_A", "lora_B"):
        model = adapted()
        part_of(layer_of(model), part).weight.ds_id = 0  # type: ignore[assignment, union-attr]
        assert_falls_back(model, calls, "DeepSpeed")


class Marked(torch.Tensor):
    """A tensor subclass, such as DTensor or a quantised weight."""


@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B"])
def test_tensor_subclasses(part: str, calls: Any) -> None:
    model = adapted()
    target = part_of(layer_of(model), part)
    weight: Any = target.weight
    marked = weight.detach().as_subclass(Marked).requires_grad_(weight.requires_grad)
    target.weight = nn.Parameter(marked, requires_grad=weight.requires_grad)
    assert type(target.weight) is Marked
    assert_falls_back(model, calls, "is a Marked")


def test_an_input_that_is_a_tensor_subclass(calls: Any) -> None:
    model = adapted()
    x = some_input((3, K), torch.float64).as_subclass(Marked)
    expected = model(x)
    fuse(model)
    assert torch.equal(model(x), expected)
    assert calls.take() == 0


def test_a_weight_that_is_no_parameter(calls: Any) -> None:
    """FSDP1 without original parameters leaves views of its flat tensor on the modules."""
    model = adapted()
    base = layer_of(model).base_layer
    weight = base.weight.detach()
    del base.weight
    base.weight = weight
    assert_falls_back(model, calls, "not a parameter of its own", shape=(3, K))


def test_adapters_of_two_dtypes(calls: Any) -> None:
    model = adapted(dtype=torch.float32)
    layer_of(model).lora_B["default"].to(torch.bfloat16)
    x = some_input((3, K), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert_falls_back(model, calls, "A is torch.float32 and B torch.bfloat16", x=x)


def test_float64_under_autocast(calls: Any) -> None:
    model = adapted()
    with torch.autocast("cpu", torch.bfloat16):
        expected = outcome(model)
        fuse(model)
        assert_same(outcome(model), expected, 0)
    assert expected["y"].dtype == torch.float64
    assert calls.take() == 0


def test_a_bias_of_a(calls: Any) -> None:
    model = adapted()
    layer_of(model).lora_A["default"] = nn.Linear(K, R).double()
    assert_falls_back(model, calls, "A has a bias")


def test_a_rank_above_the_kernels(calls: Any) -> None:
    assert_falls_back(adapted(r=257), calls, "its rank is 257; the kernels take up to 256")


def test_a_base_in_8_bit_floats() -> None:
    model = adapted(dtype=torch.float32)
    base = layer_of(model).base_layer
    base.weight = nn.Parameter(base.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    (layer,) = fuse(model).not_fused
    assert "torch.float8_e4m3fn" in layer.reason


def fate(call: Callable[[], torch.Tensor]) -> tuple[Any, ...]:
    """The error that a call raises, or its result's device, dtype and shape."""
    try:
        y = call()
    except (RuntimeError, NotImplementedError) as error:
        return type(error), str(error)
    return y.device, y.dtype, y.shape


@pytest.mark.parametrize(
    ("x_dtype", "base"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_dtypes_that_torch_refuses_stay_refused(
    x_dtype: torch.dtype, base: torch.dtype, calls: Any
) -> None:
    model = adapted(dtype=base)
    x = some_input((3, K), x_dtype)
    expected = fate(lambda: model(x))
    assert expected[0] is RuntimeError
    fuse(model)
    assert fate(lambda: model(x)) == expected
    assert calls.take() == 0


def test_without_peft_casting_the_input(calls: Any) -> None:
    from peft.helpers import disable_input_dtype_casting

    model = adapted(dtype=torch.bfloat16)
    x = some_input((3, K), torch.bfloat16)
    with disable_input_dtype_casting(model):
        expected = fate(lambda: model(x))
        assert expected[0] is RuntimeError
        fuse(model)
        assert fate(lambda: model(x)) == expected
        assert calls.take() == 0
    model(x)
    assert calls.take() == 1


@pytest.mark.parametrize("part", ["base_layer", "lora_A", "lora_B"])
def test_a_part_on_another_device(part: str, calls: Any) -> None:
    model = adapted()
    target = part_of(layer_of(model), part)
    target.to_empty(device="meta")
    x = some_input((3, K), torch.float64)
    expected = fate(lambda: model(x))
    report = fuse(model)
    assert [layer.reason for layer in report.not_fused] in (
        ["its tensors are on meta and cpu"],
        ["its tensors are on cpu and meta"],
    )
    assert fate(lambda: model(x)) == expected
    assert calls.take() == 0


def test_a_model_on_meta_runs_peft(calls: Any) -> None:
    model = adapted().to("meta")
    assert fuse(model).not_fused == ()
    y = model(torch.empty(3, K, dtype=torch.float64, device="meta"))
    assert y.shape == (3, N)
    assert calls.take() == 0


def test_an_input_elsewhere(calls: Any) -> None:
    model = adapted()
    x = torch.empty(3, K, dtype=torch.float64, device="meta")
    expected = fate(lambda: model(x))
    fuse(model)
    assert fate(lambda: model(x)) == expected
    assert calls.take() == 0


def test_names_of_adapters_in_a_call(calls: Any) -> None:
    model = adapted()
    model.add_adapter("other", model.peft_config["default"])
    model.eval()
    x = some_input((3, 2, K), torch.float64)
    names = ["default", "__base__", "other"]
    expected = model(x, adapter_names=names)
    fuse(model)
    assert torch.equal(model(x, adapter_names=names), expected)
    assert calls.take() == 0
    model(x)
    assert calls.take() == 1


def test_functional_transforms(calls: Any) -> None:
    model = adapted()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    x = some_input((3, K), torch.float64)

    def loss(trained: dict[str, torch.Tensor]) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(model, trained, (x,))
        return y.square().sum()

    expected = torch.func.grad(loss)(parameters)
    fuse(model)
    assert_same(torch.func.grad(loss)(parameters), expected, 0)
    assert calls.take() == 0
    # Called with other tensors, but without a transform, the kernels take those.
    assert torch.allclose(loss({n: 0 * p for n, p in parameters.items()}), _base_loss(model, x))
    assert calls.take() == 1


def test_forward_mode_derivatives(calls: Any) -> None:
    model = adapted()
    x = some_input((3, K), torch.float64)

    def derivative() -> torch.Tensor:
        with forward_ad.dual_level():
            y = model(forward_ad.make_dual(x, torch.ones_like(x)))
            tangent: torch.Tensor = forward_ad.unpack_dual(y).tangent
            return tangent.detach()

    expected = derivative()
    fuse(model)
    assert torch.equal(derivative(), expected)
    assert calls.take() == 0


def test_export_writes_down_pefts_operators(calls: Any) -> None:
    model = adapted()
    x = some_input((3, K), torch.float64)
    expected = model(x)
    fuse(model)
    program = torch.export.export(model, (x,), strict=False)
    assert calls.take() == 0
    assert torch.equal(program.module()(x), expected)


@pytest.mark.filterwarnings("ignore:.*jit.trace")
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_a_trace_can_be_saved(calls: Any) -> None:
    model = adapted()
    x = some_input((3, K), torch.float64)
    expected = model(x)
    fuse(model)
    traced = torch.jit.trace(model, (x,), check_trace=False)
    assert calls.take() == 0
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    assert torch.allclose(torch.jit.load(file)(x), expected)


def test_second_derivatives_are_refused() -> None:
    model = adapted()
    fuse(model)
    x = some_input((3, K), torch.float64).requires_grad_()
    (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.sum().backward()


def test_nested_tensors(calls: Any) -> None:
    model = adapted()
    with _nested_warning():
        x = torch.nested.nested_tensor([torch.ones(2, K), torch.ones(3, K)], dtype=torch.float64)
    expected = model(x)
    fuse(model)
    result = model(x)
    assert calls.take() == 0
    for got, want in zip(result.unbind(), expected.unbind(), strict=True):
        assert torch.equal(got, want)


def _base_loss(model: Any, x: torch.Tensor) -> torch.Tensor:
    with model.disable_adapter():
        loss: torch.Tensor = model(x).square().sum()
    return loss


@contextlib.contextmanager
def _nested_warning() -> Iterator[None]:
    with pytest.warns(UserWarning, match="nested tensors"):
        yield
