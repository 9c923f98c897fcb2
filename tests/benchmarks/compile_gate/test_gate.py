"""The committed table belongs to the kernels as they are, and a part of it is made anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

import benchmarks.compile_gate.__main__ as compile_gate  # noqa: E402
from benchmarks.compile_gate.int8_cases import WITHOUT_PRODUCTS  # noqa: E402
from benchmarks.compile_gate.machine import _main_loop, _occupancy  # noqa: E402

RENEW = "run `python -m benchmarks.compile_gate` and commit what it writes"


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, Any]]:
    rows = compile_gate.committed()
    if not rows:
        pytest.skip(f"the table was made by another Triton than {triton.__version__}")
    return rows


def test_the_table_is_of_these_kernels(table: dict[str, dict[str, Any]]) -> None:
    now = compile_gate.jobs().keys()
    missing, gone = now - table.keys(), table.keys() - now
    assert not missing, f"{len(missing)} kernels are not in the table; {RENEW}"
    assert not gone, f"{len(gone)} rows are of kernels that are no more; {RENEW}"


def test_nothing_in_the_table_fails(table: dict[str, dict[str, Any]]) -> None:
    gated = [row for row in table.values() if row["target"] in compile_gate.PER_CTA]
    assert {row["target"] for row in gated} == compile_gate.PER_CTA.keys()
    assert len(gated) > 500
    assert {row["digest"]: actual for row in gated if (actual := compile_gate.failures(row))} == {}


def test_the_readable_table_says_the_same(table: dict[str, dict[str, Any]]) -> None:
    rows = [table[digest] for digest in compile_gate.jobs() if digest in table]
    assert compile_gate.TABLE.with_suffix(".md").read_text() == compile_gate.markdown(rows), RENEW


def test_a_part_of_it_compiles_to_the_same(table: dict[str, dict[str, Any]]) -> None:
    """Of each operator and of each target the row whose digest comes first.

    Others with every change. Products, for which targets have instructions of their own, are
    compiled for each; `python -m benchmarks.compile_gate --fresh` compiles everything.
    """
    jobs = sorted(compile_gate.jobs().items(), key=lambda job: job[0])
    chosen: dict[tuple[str, ...], str] = {}
    for digest, (case, _) in jobs:
        product = case.operator in {"product", compile_gate.PRODUCT}
        chosen.setdefault((case.operator, case.target) if product else (case.operator,), digest)
    of_all = {case.target for _, (case, _) in jobs}
    assert {compile_gate.jobs()[digest][0].target for digest in chosen.values()} == of_all
    for digest in chosen.values():
        assert compile_gate.row_of(digest) == table[digest], RENEW


GOOD = {
    "target": "sm_90", "operator": "product", "dtype": "bf16", "variant": "", "stack": 0,
    "loop_local": 0, "shared": 200_000, "products": ["HGMMA.64x256x16"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stack": 8}, "a stack of 8 bytes"),
        ({"loop_local": 2}, "2 accesses to local memory"),
        ({"shared": 227 * 1024 + 1}, "bytes of shared memory"),
        ({"target": "sm_86", "shared": 100 * 1024, "products": ["HMMA.16816"]}, "shared memory"),
        ({"products": ["HMMA.16816"]}, "no HGMMA"),
        ({"products": []}, "no HGMMA"),
        ({"target": "sm_80", "shared": 0, "products": ["HGMMA.64x256x16"]}, "no HMMA"),
        ({"error": "it did not compile"}, "it did not compile"),
    ],
)
def test_what_the_gate_holds_against_a_row(change: dict[str, Any], words: str) -> None:
    assert compile_gate.failures(GOOD) == []
    actual = compile_gate.failures(GOOD | change)
    assert len(actual) == 1
    assert words in actual[0]


INT8 = GOOD | {
    "operator": "int8 product", "loop_shuffles": 0,
    "products": ["HGMMA.64x256x16", "IGMMA.64x128x32"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"products": ["HGMMA.64x256x16"]}, "no IGMMA"),
        ({"target": "sm_80", "shared": 0}, "no IMMA"),
        ({"dtype": "fp32", "products": []}, "no IGMMA"),
        ({"variant": "backward, r=16", "loop_shuffles": 3}, "3 byte shuffles"),
    ],
)
def test_what_the_gate_holds_against_an_integer_product(change: dict[str, Any], words: str) -> None:
    assert compile_gate.failures(INT8) == []
    actual = compile_gate.failures(INT8 | change)
    assert len(actual) == 1
    assert words in actual[0]


def test_bytes_loaded_one_by_one_may_be_shuffled() -> None:
    ragged = {"variant": "backward, r=16, ragged", "loop_shuffles": 96}
    assert compile_gate.failures(INT8 | ragged) == []


@pytest.mark.parametrize("operator", sorted(WITHOUT_PRODUCTS))
def test_what_multiplies_nothing_needs_no_tensor_cores(operator: str) -> None:
    assert compile_gate.failures(GOOD | {"operator": operator, "products": []}) == []


def test_products_of_fp32_need_no_tensor_cores() -> None:
    assert compile_gate.failures(GOOD | {"dtype": "fp32", "products": []}) == []


def test_the_main_loop() -> None:
    """A low-rank loop beside it, and a wait that jumps back over everything, are not it."""
    code = [
        (0x00, "MOV R1, R2"),
        (0x10, "HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24"),
        (0x20, "HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24"),
        (0x30, "STL [R1], R3"),
        (0x40, "@P0 BRA 0x10"),
        (0x50, "HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24"),
        (0x60, "@!UP0 BRA.U UP0, 0x50"),
        (0x70, "@!P1 BRA 0x0"),
    ]
    assert _main_loop(code) == [text for at, text in code if 0x10 <= at <= 0x40]
    assert _main_loop(code[5:6]) == []


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "programs"),
    [("sm_90", 168, 147_480, 8, 1), ("sm_80", 223, 49_152, 4, 2), ("sm_86", 32, 0, 4, 12),
     ("sm_80", 255, 1024, 4, 2), ("sm_90", 64, 100_000, 4, 2)],
)  # fmt: skip
def test_occupancy(target: str, registers: int, shared: int, warps: int, programs: int) -> None:
    assert _occupancy(target, registers, shared, warps) == programs


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(SystemExit, match="TRITON_INTERPRET"):
        compile_gate.jobs.__wrapped__()


def test_the_digest_sees_what_matters_and_nothing_else() -> None:
    from benchmarks.compile_gate.machine import Launch

    case, launch = next(iter(compile_gate.jobs().values()))
    digest = launch.digest(case.target)
    assert digest == Launch(launch.kernel, launch.arguments, launch.options).digest(case.target)
    assert digest != launch.digest("sm_86")
    for change in ({"P": 14337}, {"GROUP": 4}):
        other = Launch(launch.kernel, launch.arguments | change, launch.options)
        assert other.digest(case.target) != digest
    more_rows = Launch(launch.kernel, launch.arguments | {"M": 77}, launch.options)
    assert more_rows.digest(case.target) == digest, "M is not specialized on"
    stages = Launch(launch.kernel, launch.arguments, launch.options | {"num_stages": 9})
    assert stages.digest(case.target) != digest
    assert Path(compile_gate.TABLE).is_file()
