"""A whole step of a small Llama with LoRA, ours and PEFT's on a CPU, interleaved.

    python -m benchmarks.runs.llama_step_pairs [--int8] [--pairs 9] [--json OUT] [--tiny]

Four layers, d=1024, FFN 2816, a vocabulary of 8000, 512 tokens, r=16 on every linear layer of the
blocks: forward, loss, backward, AdamW. The base is stored in bf16. Where the CPU multiplies bf16,
`ours` computes in it; where it does not, `ours, fp32 activations` computes what PEFT needs an fp32
base for, and PEFT on the bf16 base runs once, on few tokens.

Reported beside time: weights, the step's peak (of torch's storages, and of the process's memory in
a process of its own), bytes saved, the loss.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.layers.interleaving import Bar, summary, table, take_turns
from benchmarks.result_files import RESULTS, cpu_kind, has_bf16_units, write_result
from benchmarks.runs.llama import ModelCase, ModelStep, Shape
from peftlab.measure.allocator import keep_large_buffers
from peftlab.measure.memory import PeakMemory, weight_bytes
from peftlab_kernels import autotune

CASE = ModelCase(Shape(4, 1024, 2816, 16, 16, 8000), 1, 512)
TINY = ModelCase(Shape(2, 64, 176, 4, 4, 200), 1, 24, rank=4)
ROWS = {
    True: (
        "ours", "PEFT, fp32", "PEFT", "PEFT, 16-bit adapters", "ours, 16-bit adapters",
        "ours, fp32 activations",
    ),
    False: ("ours, fp32 activations", "PEFT, fp32"),
}  # fmt: skip
"""By whether the CPU multiplies bf16; the first row is compared with the others."""
INT8_CASES = {
    True: ModelCase(Shape(8, 1024, 2816, 16, 16, 8000), 1, 512, dropout=0.05),
    False: ModelCase(Shape(4, 1024, 2816, 16, 16, 8000), 1, 512, dropout=0.05),
}
INT8_ROWS_OF_KIND = {
    True: ("ours, w8a8", "bnb+PEFT", "ours, w8a16", "PEFT", "ours"),
    False: (
        "ours, w8a8, fp32 activations", "PEFT, fp32", "bnb+PEFT, fp32 activations",
    ),
}  # fmt: skip
INT8_BARS = {
    True: Bar("bnb+PEFT", "ours, w8a8", 1.3, at_most=False),
    False: Bar("PEFT, fp32", "ours, w8a8, fp32 activations", 1.25, at_most=False),
}
"""With --int8: the blocks rest in 8 bits, p=.05."""
TIME = 1.05
"""At most this times the step of PEFT on an fp32 base ..."""
WEIGHTS = 0.55
"""... in at most this share of its weights' memory."""


def hopeless(case: ModelCase) -> dict[str, Any]:
    """PEFT on the bf16 base of a CPU that cannot multiply bf16: one step on few tokens."""
    small = replace(case, length=max(8, case.length // 16))
    steps = {name: ModelStep(name, small) for name in ("ours, fp32 activations", "PEFT")}
    seconds = take_turns(steps, rounds=1, warm_up=1)
    print(f"once, {small.tokens} tokens")
    print(table(seconds), flush=True)
    return {"tokens": small.tokens, **summary(seconds)}


def memory_of(
    steps: Mapping[str, ModelStep], tiny: bool, *, int8: bool
) -> dict[str, dict[str, Any]]:
    """Weights, peaks and counts of each row."""
    figures: dict[str, dict[str, Any]] = {}
    for name, step in steps.items():
        counts = asdict(step.counts())
        # Tiny sizes only check that everything runs: once is enough.
        measured = not (tiny and figures)
        figures[name] = {
            "weight_bytes": weight_bytes(step.model),
            "peak_anonymous_bytes": peak_in_a_process(name, tiny, int8=int8) if measured else 0,
            **counts,
            "loss": float(step.loss().detach()),
        }
        print(
            f"  {name:24} weights {figures[name]['weight_bytes'] / 2**20:7.1f} MiB, step's peak "
            f"{counts['peak_live_bytes'] / 2**20:7.1f} MiB alive, "
            f"{figures[name]['peak_anonymous_bytes'] / 2**20:7.1f} MiB taken, saved "
            f"{counts['saved_bytes'] / 2**20:7.1f} MiB, loss {figures[name]['loss']:.4f}",
            flush=True,
        )
    return figures


def peak_in_a_process(name: str, tiny: bool, *, int8: bool) -> int:
    """Anonymous memory that one step takes beside the weights, in a fresh process.

    glibc gives large buffers back at once there: what the heap keeps would hide what a step needs.
    """
    command = [sys.executable, "-m", "benchmarks.runs.llama_step_pairs", "--peak-of", name]
    done = subprocess.run(
        [*command, *["--tiny"] * tiny, *["--int8"] * int8],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the peak of {name} could not be measured:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def peak_of(name: str, case: ModelCase) -> int:
    """This process's peak over one step that is not its first."""
    step = ModelStep(name, case)
    step()
    with PeakMemory(interval=0.002) as memory:
        step()
    return memory.peak


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--json", type=Path, help=f"default: under {RESULTS.name}/")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that all runs")
    parser.add_argument("--int8", action="store_true", help="blocks in 8 bits, against bnb+PEFT")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    native = has_bf16_units()
    whole = INT8_CASES[native] if given.int8 else CASE
    case = TINY if given.tiny else whole
    if given.peak_of:
        print(peak_of(given.peak_of, case))
        return
    keep_large_buffers()  # for every row alike
    rows = INT8_ROWS_OF_KIND[native] if given.int8 else ROWS[native]
    bars = (INT8_BARS[native] if given.int8 else Bar(rows[0], "PEFT, fp32", TIME),)
    steps = {name: ModelStep(name, case) for name in rows}
    print(f"{case.tokens} tokens a step, {torch.get_num_threads()} threads, on {cpu_kind()}")
    seconds = take_turns(steps, given.pairs)
    print(table(seconds, bars), flush=True)
    memory = memory_of(steps, given.tiny, int8=given.int8)
    result = {
        "case": asdict(case) | {"dtype": str(case.dtype), "tokens": case.tokens},
        **summary(seconds, bars),
        "memory": memory,
        "choices": autotune.answers(),
    }
    if not given.int8:
        result["weights_bar"] = weights_bar(rows[0], memory)
        if not native:
            result["hopeless"] = hopeless(case)
    what = "int8_step" if given.int8 else "llama_step"
    write_result(given.json or RESULTS / f"{what}--{cpu_kind()}.json", result)


def weights_bar(row: str, memory: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The share of PEFT's fp32 weights that a row's take."""
    share = memory[row]["weight_bytes"] / memory["PEFT, fp32"]["weight_bytes"]
    met = share <= WEIGHTS
    said = "met   " if met else "MISSED"
    print(f"  {said} weights of {row} / PEFT, fp32 = {share:.3f}, bar <= {WEIGHTS}")
    return {"limit": WEIGHTS, "measured": share, "met": met}


if __name__ == "__main__":
    main()
