"""Compile every Triton kernel in every configuration, without a GPU, and check the machine code.

    python -m benchmarks.compile_gate [--fresh] [--check] [--jobs N] [--only TEXT]

Fails (exit code 1) where a kernel for sm_80, sm_86, sm_90 or sm_120 has a stack or local memory in
its loop, needs more shared memory than a program may have, or multiplies 16-bit numbers without
the target's tensor cores (HGMMA on sm_90, HMMA elsewhere). gfx942 is compiled but not checked.

The table goes to `benchmarks/results/compile_gate.json` and `.md`. Rows whose kernel source,
arguments, configuration and target have not changed since are taken from there, unless `--fresh`.
`--check` compiles nothing: it fails if the table is not of the sources and configurations.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import triton

from benchmarks.compile_gate.cases import Case, all_cases
from benchmarks.compile_gate.int8_cases import PRODUCT, WITHOUT_PRODUCTS
from benchmarks.compile_gate.machine import PER_CTA, Launch, compile_launch, launches_of

TABLE = Path(__file__).parents[1] / "results" / "compile_gate.json"

Row = dict[str, Any]


@cache
def jobs() -> dict[str, tuple[Case, Launch]]:
    """Every distinct compilation, by the digest of all that it depends on."""
    if triton.knobs.runtime.interpret:
        raise SystemExit("TRITON_INTERPRET is set, so that nothing would be compiled; unset it")
    compilations: dict[str, tuple[Case, Launch]] = {}
    for case in all_cases():
        # Sums of parts follow many a kernel; they have a case of their own.
        launch = launches_of(case.call)[0]
        compilations.setdefault(launch.digest(case.target), (case, launch))
    return compilations


def row_of(digest: str) -> Row:
    """Compile one job: its row of the table."""
    case, launch = jobs()[digest]
    row = described(digest)
    try:
        row |= compile_launch(launch, case.target)
        if case.operator != PRODUCT:  # widening other operands may well shuffle bytes
            row.pop("loop_shuffles", None)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error)[-400:]}"
    return judged(row, case)


def judged(row: Row, case: Case) -> Row:
    """The row with its failures by the gate's present rules."""
    return row | {"failures": failures(row) if case.gated or "error" in row else []}


def described(digest: str) -> Row:
    """The names of a row, which are not part of its digest."""
    case, _ = jobs()[digest]
    return {
        "target": case.target, "operator": case.operator, "dtype": case.dtype,
        "variant": case.variant, "configuration": case.configuration, "digest": digest,
    }  # fmt: skip


def failures(row: Row) -> list[str]:
    """The failures of a row, in words."""
    if "error" in row:
        return [row["error"]]
    problems = []
    if row["stack"]:
        problems.append(f"a stack of {row['stack']} bytes")
    if row["loop_local"]:
        problems.append(f"{row['loop_local']} accesses to local memory in the loop")
    if row["shared"] > (limit := PER_CTA[row["target"]] * 1024):
        problems.append(f"{row['shared']} bytes of shared memory, and a program may have {limit}")
    integer = row["operator"] == PRODUCT
    wanted = ("I" if integer else "H") + ("GMMA" if row["target"] == "sm_90" else "MMA")
    multiplies = integer or (row["dtype"] != "fp32" and row["operator"] not in WITHOUT_PRODUCTS)
    if integer and "ragged" not in row["variant"] and row["loop_shuffles"]:
        problems.append(f"{row['loop_shuffles']} byte shuffles in the loop")
    if multiplies and not any(p.startswith(wanted) for p in row["products"]):
        problems.append(f"no {wanted}")
    return problems


def committed() -> dict[str, Row]:
    """The rows of the table by digest; none if another Triton made it."""
    if not TABLE.exists():
        return {}
    table = json.loads(TABLE.read_text())
    return {r["digest"]: r for r in table["rows"]} if table["triton"] == triton.__version__ else {}


def compile_all(digests: Sequence[str], processes: int) -> Iterable[Row]:
    """Rows in the order of their digests, compiled on this many processes."""
    if processes == 1:
        return map(row_of, digests)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return list(pool.map(row_of, digests, chunksize=4))


COLUMNS = {
    "operator": "operator", "dtype": "dtype", "variant": "variant",
    "configuration": "configuration", "registers": "registers", "stack": "stack",
    "spills": "spills", "loop_local": "local in loop", "shared": "shared", "limit": "limit",
    "loop": "loop", "loop_products": "products in loop",
    "loop_conversions": "conversions in loop", "loop_shuffles": "PRMT in loop",
    "loop_shared_stores": "STS in loop",
    "occupancy": "occupancy", "products": "tensor cores", "failures": "failures",
}  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """The table for readers, a section per target."""
    lines = [
        "# The compile gate's table",
        "",
        f"Made by `python -m benchmarks.compile_gate` with Triton {triton.__version__} and no GPU.",
        "Nothing here is a time. `shared` and `limit` are bytes a program; `loop` counts the",
        "instructions of the tightest loop that multiplies; `occupancy` is programs a processor.",
    ]
    for target in dict.fromkeys(row["target"] for row in rows):
        lines += ["", f"## {target}", "", "| " + " | ".join(COLUMNS.values()) + " |"]
        lines.append("|" + "---|" * len(COLUMNS))
        for row in rows:
            if row["target"] == target:
                limit = PER_CTA.get(target)
                row = row | {"limit": limit * 1024 if limit else ""}
                lines.append("| " + " | ".join(_cell(row.get(key, "")) for key in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fresh", action="store_true", help="take no row from the table")
    parser.add_argument("--check", action="store_true", help="compile nothing, fail if stale")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="rows whose words contain this; writes nothing")
    given = parser.parse_args()
    known = {} if given.fresh else committed()
    stale = [digest for digest in jobs() if digest not in known]
    if given.check:
        gone = known.keys() - jobs().keys()
        print(f"{len(stale)} rows missing from the table, {len(gone)} of no kernel any more")
        return 1 if stale or gone else 0
    if given.only:
        stale = [d for d in jobs() if given.only in _words(jobs()[d][0])]
        known = {}
    fresh = {row["digest"]: row for row in compile_all(stale, given.jobs)}
    rows = [
        judged(known[d] | described(d), case) if d in known else fresh[d]
        for d, (case, _) in jobs().items()
        if d in known or d in fresh
    ]
    print(markdown(rows))
    failed = [row for row in rows if row["failures"]]
    for row in failed:
        named = " ".join(str(row[k]) for k in ("target", "operator", "dtype", "variant"))
        print(f"FAILED {named} {row['configuration']}: {'; '.join(row['failures'])}")
    print(f"{len(rows)} kernels, {len(stale)} of them compiled now, {len(failed)} failures")
    if not given.only:
        TABLE.write_text(_json(rows))
        TABLE.with_suffix(".md").write_text(markdown(rows))
    return 1 if failed else 0


def _words(case: Case) -> str:
    return " ".join((case.target, case.operator, case.dtype, case.variant, case.configuration))


def _json(rows: Sequence[Row]) -> str:
    """One row a line: a change shows as the rows it changes."""
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    return f'{{\n "triton": "{triton.__version__}",\n "rows": [\n{lines}\n ]\n}}\n'


if __name__ == "__main__":
    sys.exit(main())
