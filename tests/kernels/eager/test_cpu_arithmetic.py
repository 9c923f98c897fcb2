"""Which products a CPU may take and which it takes unmeasured; also on one held to AVX2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from peftlab_kernels import autotune
from peftlab_kernels.eager import cpu_arithmetic
from peftlab_kernels.eager.cpu_arithmetic import (
    CPU_PRODUCTS,
    QUESTIONS,
    cpu_answer,
    has_int8_units,
    int8_engine,
    why_not_int_mm,
    why_not_qlinear,
)
from peftlab_kernels.eager.int8_products import ENGINES

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    autotune.forget()
    why_not_qlinear.cache_clear()
    yield
    autotune.forget()
    why_not_qlinear.cache_clear()


def vnni(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: there)


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("held_to", "expected"),
    [
        (None, True), ("ALL", True), ("DEFAULT", True), ("AVX512_CORE_VNNI", True),
        ("avx512_core_bf16", True), ("AVX512_CORE_FP16", True), ("AVX512_CORE_AMX", True),
        ("AVX10_1_512", True), ("AVX512_CORE", False), ("AVX2", False), ("AVX2_VNNI", False),
        ("AVX2_VNNI_2", False), ("SSE41", False), ("", True),
    ],
)  # fmt: skip
def test_units_are_there_where_onednn_may_use_them(
    held_to: str | None, expected: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vnni(monkeypatch, True)
    if held_to is not None:
        monkeypatch.setenv(variable, held_to)
    assert has_int8_units() == expected
    assert (why_not_int_mm() is None) == expected
    vnni(monkeypatch, False)
    assert not has_int8_units()
    assert why_not_int_mm() is None  # torch's own loop is exact


@cache
def tried(held_to: str | None) -> str | None:
    """The probe's answer on a processor held to this: a process for each, not for each test."""
    with pytest.MonkeyPatch.context() as patch:
        if held_to:
            patch.setenv("ONEDNN_MAX_CPU_ISA", held_to)
        why_not_qlinear.cache_clear()
        return why_not_qlinear()


def test_the_probe_answers_in_words_or_not_at_all() -> None:
    """On a torch whose private product still works it finds nothing against it."""
    reason = tried(None)
    assert reason is None or reason


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "was ended by signal",
        ),
        ("raise AttributeError('no operator onednn::other')", "no operator onednn::other"),
        ("raise SystemExit(3)", "its trial run failed silently"),
        ("pass", None),
    ],
)
def test_a_probe_that_ends_badly_is_a_reason(
    probe: str, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_arithmetic, "_QLINEAR_PROBE", probe)
    reason = why_not_qlinear()
    if words is None:
        assert reason is None
    else:
        assert reason is not None
        assert words in reason


def test_a_probe_that_cannot_be_started_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert "it could not be tried" in str(why_not_qlinear())


@pytest.mark.parametrize(
    ("units", "works", "expected"),
    [(True, True, "int_mm"), (True, False, "int_mm"), (False, True, "qlinear"),
     (False, False, "fp32")],
)  # fmt: skip
@pytest.mark.parametrize("product", CPU_PRODUCTS)
def test_unmeasured_engines(
    units: bool, works: bool, expected: str, product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vnni(monkeypatch, units)
    monkeypatch.setattr(cpu_arithmetic, "why_not_qlinear", lambda: None if works else "broken")
    assert int8_engine(product) == expected
    assert cpu_answer(f"int8 {product}") == expected


@pytest.mark.parametrize(
    ("units", "held_to", "works", "expected"),
    [
        (True, None, True, {"int_mm", "fp32"}),  # qlinear would cost precision and buy nothing
        (True, "AVX2", True, {"qlinear", "fp32"}),  # int_mm would saturate
        (False, None, True, {"int_mm", "qlinear", "fp32"}),
        (False, None, False, {"int_mm", "fp32"}),
    ],
)
@pytest.mark.parametrize("product", CPU_PRODUCTS)
def test_candidates_are_those_that_are_right(
    units: bool,
    held_to: str | None,
    works: bool,
    expected: set[str],
    product: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vnni(monkeypatch, units)
    if held_to:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", held_to)
    monkeypatch.setattr(cpu_arithmetic, "why_not_qlinear", lambda: None if works else "broken")
    monkeypatch.setattr(cpu_arithmetic, "_PROBE", (4, 24, 16))
    candidates = cpu_arithmetic._int8_candidates(product)
    assert set(candidates) == expected
    for name, run in candidates.items():
        if name != "qlinear" or not tried(held_to):
            actual = run()
            assert isinstance(actual, torch.Tensor)
            assert actual.shape == ((4, 24) if product == "dy @ W" else (4, 16))


def test_replayed_engines_are_obeyed_where_they_are_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vnni(monkeypatch, True)
    monkeypatch.setattr(cpu_arithmetic, "why_not_qlinear", lambda: tried(None))
    for engine in ENGINES:
        with autotune.replay({"int8 x @ W.T": engine}):
            assert int8_engine("x @ W.T") == engine
    with autotune.replay({"int8 x @ W.T": "of another version"}):
        assert int8_engine("x @ W.T") == "int_mm"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with autotune.replay({"int8 x @ W.T": "int_mm"}):
        assert int8_engine("x @ W.T") == "fp32"


def test_every_question_has_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_arithmetic, "why_not_qlinear", lambda: tried(None))
    assert len(QUESTIONS) == 6
    for question in QUESTIONS:
        expected = set(ENGINES) if question.startswith("int8") else {"native", "fp32"}
        assert cpu_answer(question) in expected


def test_the_operator_on_a_processor_held_to_avx2() -> None:
    """7-bit activations by default there, and every engine that is offered is exact."""
    held = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    hidden = ("PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS")
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | held
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            "tests/kernels/eager/test_int8_products.py", "tests/kernels/test_int8_lora_linear.py",
            "-k", "test_int8_products or test_every_engine and shape1 or same_bits or auto_is_one"
            " or values_and_every_gradient and shape1",
        ],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    if torch.cpu._is_vnni_supported():
        assert "sums in 16 bits, which saturate" in done.stdout  # of int_mm, which is skipped
