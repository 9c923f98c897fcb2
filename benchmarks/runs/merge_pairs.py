"""Merging a LoRA adapter into a sharded Llama, by peftlab and by PEFT's merge_and_unload.

    python -m benchmarks.runs.merge_pairs [--json OUT] [--layers 18] [--pairs 3]

A random bf16 Llama in shards (d=2048, FFN 5632, vocabulary 32,000), 2.1 GB with 18 layers, and an
adapter of rank 16 on every linear layer of its blocks, in a temporary folder. PEFT loads the model,
merges and saves it; peftlab streams, with its structural checks on. Both with and without comparing
logits. Each run is a process of its own, interleaved; seconds are wall time after imports, the peak
is anonymous memory above that of the libraries. Fails (exit code 1) where a bar that is no time is
missed: the peak, and that both write the same tensors.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.result_files import REPOSITORY, write_result
from benchmarks.runs.int8_loading import write_llama
from peftlab.measure.memory import PeakMemory

ROWS = ("ours", "PEFT", "ours, logits compared")
ALLOWANCE = 100_000_000
TIMES_BAR = 0.33


def write_adapter(base: Path, folder: Path) -> None:
    """A random rank-16 adapter, made from the base's shapes alone."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = LoraConfig(
        r=16,
        lora_alpha=32,
        task_type="CAUSAL_LM",
        target_modules=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        base_model_name_or_path=str(base),
    )
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
        model = get_peft_model(model, config)
    torch.manual_seed(1)
    tensors = {
        name.replace(".default", ""): torch.randn(p.shape).mul_(0.02)
        for name, p in model.named_parameters()
        if "lora_" in name
    }
    folder.mkdir()
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def merged(row: str, base: Path, adapter: Path, out: Path) -> dict[str, float]:
    """Merge once; returns further figures of the row."""
    if row.startswith("ours"):
        from peftlab.export.merge import merge

        report = merge(adapter, out, base=str(base), verify=row != "ours")
        return {"logit_error": report.verified.get("logits", {}).get("error", 0.0)}
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    bare: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    bare.save_pretrained(out)
    return {}


def measure(row: str, base: Path, adapter: Path, out: Path, warm_up: Path) -> dict[str, float]:
    """In this process: peak anonymous bytes and seconds."""
    merged(row, warm_up / "base", warm_up / "adapter", warm_up / f"out-{time.time_ns()}")
    gc.collect()
    started = time.perf_counter()
    with PeakMemory(interval=0.002) as memory:
        more = merged(row, base, adapter, out)
    return {"peak": memory.peak, "seconds": time.perf_counter() - started, **more}


def in_own_process(row: str, *paths: Path) -> dict[str, float]:
    """`measure` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.runs.merge_pairs", "--row", row, *map(str, paths)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tensors bit by bit."""
    from safetensors import safe_open

    def index(folder: Path) -> dict[str, Path]:
        files = sorted(folder.glob("*.safetensors"))
        by_name = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                by_name.update(dict.fromkeys(opened.keys(), file))
        return by_name

    first, second = index(one), index(other)
    if first.keys() != second.keys():
        return False
    for name, file in first.items():
        with safe_open(file, framework="pt") as a, safe_open(second[name], framework="pt") as b:
            if not torch.equal(a.get_tensor(name), b.get_tensor(name)):
                return False
    return True


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--row", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        row, *paths = given.row
        print(json.dumps(measure(row, *map(Path, paths))))
        return 0
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        base, adapter, warm_up = root / "base", root / "adapter", root / "warm-up"
        sizes = write_llama_in(base, given.layers)
        write_adapter(base, adapter)
        write_llama_in(warm_up / "base", 1)
        write_adapter(warm_up / "base", warm_up / "adapter")
        runs: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
        equal = False
        for pair in range(given.pairs):
            order = ROWS if pair % 2 == 0 else ROWS[::-1]
            for row in order:
                runs[row].append(in_own_process(row, base, adapter, root / row, warm_up))
            if pair == 0:
                equal = same_tensors(root / "ours", root / "PEFT")
            for row in ROWS:
                shutil.rmtree(root / row)
    ratios = [
        ours["seconds"] / theirs["seconds"]
        for ours, theirs in zip(runs["ours"], runs["PEFT"], strict=True)
    ]
    limit = 3 * sizes["largest_tensor"] + ALLOWANCE
    peak = max(run["peak"] for run in runs["ours"])
    result = {
        "case": {"layers": given.layers, "dtype": "bfloat16", **sizes},
        "runs": runs,
        "median_seconds": {r: statistics.median(x["seconds"] for x in runs[r]) for r in ROWS},
        "peak": {r: max(x["peak"] for x in runs[r]) for r in ROWS},
        "same_tensors_as_PEFT": equal,
        "bars": [
            {"what": "peak", "limit": limit, "measured": peak, "met": peak <= limit},
            {
                "what": "seconds of ours / PEFT",
                "limit": TIMES_BAR,
                "measured": statistics.median(ratios),
                "met": statistics.median(ratios) <= TIMES_BAR,
            },
        ],
    }
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=1))
    if given.json:
        write_result(given.json, result)
    return 0 if equal and peak <= limit else 1


def write_llama_in(folder: Path, layers: int) -> dict[str, int]:
    """`write_llama` into a folder that is made."""
    folder.mkdir(parents=True)
    return write_llama(folder, layers)


if __name__ == "__main__":
    raise SystemExit(main())
