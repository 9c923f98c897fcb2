"""What is penalised, by how much, and its gradient: against float64 by autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from peftlab.config.schema import RegularizationConfig
from peftlab.errors import ConfigError
from peftlab.methods.apply import apply_method
from peftlab.methods.method import Applied
from peftlab.methods.penalties.penalised import regularizer
from tests.methods.common import CAUSAL, CLASSIFICATION, FOLDER_TASK, load, method

METHODS: dict[str, dict[str, Any]] = {
    "head": {},
    "last_n": {"n": 1},
    "lora": {"r": 3, "alpha": 7},
    "qlora": {"r": 3, "alpha": 7},
    "full": {},
}
ALL = RegularizationConfig(l1=0.3, l2=0.7, l2_sp=1.3)


def apply(make: Any, family: str, name: str, task: str = CLASSIFICATION, **more: Any) -> Applied:
    chosen = method(name, **METHODS[name] | more)
    loaded = load(make(family, FOLDER_TASK[task]), task, chosen)
    return apply_method(loaded.model, chosen, task=task)


def move(applied: Applied, seed: int = 1) -> dict[str, torch.Tensor]:
    """Put the trained parameters elsewhere; returns where they were."""
    generator = torch.Generator().manual_seed(seed)
    before = {}
    with torch.no_grad():
        for name, parameter in applied.model.named_parameters():
            if parameter.requires_grad:
                before[name] = parameter.detach().clone()
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return before


def reference(model: nn.Module, start: dict[str, torch.Tensor], settings: Any) -> torch.Tensor:
    """Omega in the model's float64, with every LoRA change formed; `start` by name."""
    total = torch.zeros((), dtype=torch.float64)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() > 1:
            total = total + settings.l1 * parameter.abs().sum()
            total = total + settings.l2 / 2 * parameter.square().sum()
        if "lora_" not in name:
            total = total + settings.l2_sp / 2 * (parameter - start[name]).square().sum()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            change = module.scaling["default"] * b @ a
            total = total + settings.l2_sp / 2 * change.square().sum()
    return total


def is_head(name: str) -> bool:
    return any(part in {"classifier", "score", "head", "classification_head"}
               for part in name.split("."))  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_value_and_gradient(name: str, family: str, tiny_checkpoint: Any) -> None:
    if name == "qlora":
        pytest.importorskip("bitsandbytes")
    applied = apply(tiny_checkpoint, family, name)
    penalties = regularizer(applied, ALL)
    assert penalties is not None
    start = move(applied)
    # The checkpoint held no head: it is drawn to zero.
    start = {n: torch.zeros_like(t) if is_head(n) else t for n, t in start.items()}
    trained = {n: p for n, p in applied.model.named_parameters() if p.requires_grad}
    for i, parameter in enumerate(trained.values()):
        # Some have a gradient already, and some none.
        parameter.grad = torch.full_like(parameter, 0.5) if i % 2 else None
    value = penalties.add_gradient()

    exact = copy.deepcopy(applied.model).double()
    exact.zero_grad()
    reference(exact, start, ALL.model_copy(update={"l1": 0.0})).backward()
    twins = dict(exact.named_parameters())
    whole = reference(exact, start, ALL).item()
    assert value == pytest.approx(whole, rel=1e-5)
    assert penalties.penalties()["total"] == pytest.approx(whole, rel=1e-5)
    for i, (key, parameter) in enumerate(trained.items()):
        expected = twins[key].grad
        assert expected is not None
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(
            parameter.grad.double() - 0.5 * (i % 2), expected, rtol=1e-5, atol=1e-6, msg=key
        )
    assert not any(p.grad is not None for p in applied.model.parameters() if not p.requires_grad)


def test_soft_thresholding_by_hand() -> None:
    matrix = nn.Parameter(torch.tensor([[0.5, -0.5, 0.04, -0.04, 0.0, 0.1]]))
    other = nn.Parameter(torch.ones(1, 1))
    penalties = penalised(matrix, l1=0.2)
    penalties.shrink([(matrix, 0.5), (other, 0.5)])  # the threshold is 0.1
    assert matrix.tolist() == [pytest.approx([0.4, -0.4, 0, 0, 0, 0])]
    assert torch.count_nonzero(matrix) == 2
    assert other.item() == 1
    assert penalties.zeros() == (4, 6)
    assert penalties.report()["sparsity"] == pytest.approx(4 / 6)
    penalties.shrink([(matrix, 0.0)])
    assert torch.count_nonzero(matrix) == 2


def penalised(*matrices: nn.Parameter, **strengths: float) -> Any:
    from peftlab.methods.penalties.regularization import Regularizer

    return Regularizer(RegularizationConfig(**strengths), matrices, (), ())


SCOPES = [
    ("lora", "head", lambda n: "modules_to_save" in n),
    ("lora", "adapter", lambda n: "lora_" in n),
    ("lora", "trainable", lambda n: True),
    ("last_n", "head", lambda n: n.startswith("classifier")),
    ("full", "head", lambda n: n.startswith("classifier")),
    ("head", "head", lambda n: True),
]


@pytest.mark.parametrize(("name", "scope", "belongs"), SCOPES)
def test_scopes(name: str, scope: Any, belongs: Any, tiny_checkpoint: Any) -> None:
    applied = apply(tiny_checkpoint, "bert", name)
    penalties = regularizer(applied, RegularizationConfig(l1=1.0, l2_sp=1.0, scope=scope))
    assert penalties is not None
    expected = {n: p for n, p in applied.model.named_parameters() if p.requires_grad and belongs(n)}
    assert {id(p) for p in penalties.matrices} == {id(p) for p in expected.values() if p.dim() > 1}
    drawn = {id(entry.parameter) for entry in penalties.anchored}
    drawn |= {id(p) for change in penalties.changes for p in (change.a, change.b)}
    assert drawn == {id(p) for p in expected.values()}


def test_a_module_of_the_checkpoint_that_trains_beside_an_adapter_is_drawn_to_it(
    tiny_checkpoint: Any,
) -> None:
    """PEFT keeps the original: no copy is made, and the distance is zero at the start."""
    applied = apply(
        tiny_checkpoint, "bert", "lora", modules_to_save=["bert.pooler.dense", "classifier"]
    )
    penalties = regularizer(applied, RegularizationConfig(l2_sp=1.0))
    assert penalties is not None
    starts = [entry.start for entry in penalties.anchored]
    assert [start is None for start in starts] == [False, False, True, True]
    held = {p.data_ptr() for p in applied.model.parameters()}
    assert all(start.data_ptr() in held for start in starts if start is not None)
    head = [p for n, p in applied.model.named_parameters() if "classifier.modules_to" in n]
    squares = sum(float(p.detach().square().sum()) for p in head)
    assert penalties.penalties()["l2_sp"] == pytest.approx(squares / 2)


def test_a_language_model_head_is_drawn_to_the_checkpoint(tiny_checkpoint: Any) -> None:
    applied = apply(tiny_checkpoint, "llama", "head", CAUSAL)
    penalties = regularizer(applied, RegularizationConfig(l2_sp=1.0))
    assert penalties is not None
    assert penalties.penalties() == {"l2_sp": 0.0, "total": 0.0}
    assert "towards the checkpoint" in penalties.describe()


def test_rows_that_train_are_drawn_to_the_checkpoint(tiny_checkpoint: Any) -> None:
    chosen = method("lora", r=3)
    loaded = load(tiny_checkpoint("bert"), CLASSIFICATION, chosen)
    table = loaded.model.get_input_embeddings().weight.detach()[[5, 6]].clone()
    applied = apply_method(loaded.model, chosen, task=CLASSIFICATION, tokens=(5, 6))
    penalties = regularizer(applied, RegularizationConfig(l2_sp=1.0))
    assert penalties is not None
    (rows,) = [
        entry for entry in penalties.anchored if entry.parameter.shape == (2, table.shape[1])
        and entry.start is not None
    ]  # fmt: skip
    assert rows.start is not None
    assert torch.equal(rows.start, table)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_start_is_held_in_16_bits_where_they_suffice(dtype: str) -> None:
    from peftlab.methods.penalties.penalised import _snapshot

    values = torch.randn(3, 5).to(getattr(torch, dtype)).float()
    kept = _snapshot(nn.Parameter(values))
    assert kept.dtype == getattr(torch, dtype)
    assert torch.equal(kept.float(), values)
    assert kept.data_ptr() != values.data_ptr()


def test_no_strength_no_penalty(tiny_checkpoint: Any) -> None:
    applied = apply(tiny_checkpoint, "bert", "lora")
    assert regularizer(applied, RegularizationConfig()) is None


def test_shapes_alone_are_enough_to_choose(tiny_checkpoint: Any) -> None:
    chosen = method("lora", r=3)
    loaded = load(tiny_checkpoint("bert"), CLASSIFICATION, chosen, empty=True)
    applied = apply_method(loaded.model, chosen, task=CLASSIFICATION)
    penalties = regularizer(applied, ALL)
    assert penalties is not None
    assert "l1 0.3 on" in penalties.describe()
    assert "12 adapted layers towards no change" in penalties.describe()


def test_what_cannot_be_penalised_is_refused(tiny_checkpoint: Any) -> None:
    causal = apply(tiny_checkpoint, "llama", "lora", CAUSAL)
    with pytest.raises(ConfigError, match="but nothing in it trains under method lora for causal"):
        regularizer(causal, RegularizationConfig(l2=1.0, scope="head"))
    full = apply(tiny_checkpoint, "bert", "full")
    with pytest.raises(ConfigError, match=r"scope is adapter, but nothing in it trains"):
        regularizer(full, RegularizationConfig(l2=1.0, scope="adapter"))
    dora = apply(tiny_checkpoint, "bert", "lora", use_dora=True)
    with pytest.raises(ConfigError, match=r"lora_magnitude_vector.*set method\.use_dora=false"):
        regularizer(dora, RegularizationConfig(l2_sp=1.0))
    # A norm's or DoRA's vector is no matrix: the other penalties leave it alone.
    penalties = regularizer(dora, RegularizationConfig(l1=1.0, l2=1.0))
    assert penalties is not None
    assert all(p.dim() == 2 for p in penalties.matrices)
