"""Memory for loading a 16-bit checkpoint in 8 bits, by peftlab and by bitsandbytes.

    python -m benchmarks.runs.int8_loading [--json OUT] [--layers 10]

A random bf16 Llama in shards (d=2048, FFN 5632, vocabulary 32,000), 1.3 GB with 10 layers, written
to a temporary folder. Each row is a process of its own; its peak is anonymous memory above that of
the libraries, so mapped pages of the checkpoint do not count. Fails (exit code 1) if ours takes more
than the 8-bit model, two of its largest tensors and 100 MB.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.result_files import REPOSITORY, write_result
from peftlab.measure.memory import PeakMemory, weight_bytes

ROWS = ("ours", "bitsandbytes")
ALLOWANCE = 100_000_000


def write_llama(folder: Path, layers: int) -> dict[str, int]:
    """A random checkpoint of bf16 shards, one a layer; the bytes of all and of its largest tensor.

    Written shard by shard: the whole is never in memory.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.checkpoints import write_tokenizer

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in LlamaForCausalLM(config).state_dict().items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        place = name.split(".")[2] if ".layers." in name else name.split(".")[-2]
        shards.setdefault(f"model-{place}.safetensors", []).append(name)
    torch.manual_seed(0)
    largest = total = 0
    for file, names in shards.items():
        tensors = {name: torch.randn(shapes[name]).mul_(0.02).bfloat16() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        sizes = [t.nbytes for t in tensors.values()]
        largest, total = max(largest, *sizes), total + sum(sizes)
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    write_tokenizer(folder, "llama")
    return {"checkpoint": total, "largest_tensor": largest}


def load(row: str, folder: Path) -> Any:
    """The model that a row loads from the checkpoint."""
    if row == "ours":
        from peftlab.model.head_spec import HeadSpec
        from peftlab.model.loading import load_model

        return load_model(str(folder), HeadSpec("AutoModelForCausalLM"), load_in_8bit=True).model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    return AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
    )


def measure(row: str, folder: Path, warm_up: Path) -> dict[str, float]:
    """In this process: bytes of the model at rest, peak anonymous bytes and seconds of loading."""
    load(row, warm_up)  # imports, and what libraries keep
    gc.collect()
    started = time.perf_counter()
    with PeakMemory(interval=0.002) as memory:
        model = load(row, folder)
    seconds = time.perf_counter() - started
    at_rest = weight_bytes(model)
    codes = sum(p.nbytes for p in model.parameters() if p.dtype is torch.int8)
    return {"at_rest": at_rest, "codes": codes, "peak": memory.peak, "seconds": seconds}


def in_own_process(row: str, folder: Path, warm_up: Path) -> dict[str, float]:
    """`measure` in a fresh interpreter."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.runs.int8_loading",
            "--row",
            row,
            str(folder),
            str(warm_up),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def worse(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """The higher peak and the shorter time of two runs: the first reads from a cold disk."""
    worst = {name: max(first[name], second[name]) for name in first}
    return worst | {"seconds": min(first["seconds"], second["seconds"])}


def judge(sizes: dict[str, int], ours: dict[str, float]) -> dict[str, Any]:
    """The bar, in bytes."""
    limit = ours["at_rest"] + 2 * sizes["largest_tensor"] + ALLOWANCE
    return {"row": "ours", "limit": limit, "measured": ours["peak"], "met": ours["peak"] <= limit}


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        row, folder, warm_up = given.row
        print(json.dumps(measure(row, Path(folder), Path(warm_up))))
        return 0
    with tempfile.TemporaryDirectory() as place:
        folder, warm_up = Path(place) / "model", Path(place) / "warm-up"
        folder.mkdir()
        warm_up.mkdir()
        sizes = write_llama(folder, given.layers)
        write_llama(warm_up, 1)
        first = {row: in_own_process(row, folder, warm_up) for row in ROWS}
        second = {row: in_own_process(row, folder, warm_up) for row in reversed(ROWS)}
        rows = {row: worse(first[row], second[row]) for row in ROWS}
    bar = judge(sizes, rows["ours"])
    print(f"checkpoint {sizes['checkpoint'] / 1e6:.0f} MB, its largest tensor "
          f"{sizes['largest_tensor'] / 1e6:.0f} MB")  # fmt: skip
    for row, figures in rows.items():
        print(
            f"{row:14} at rest {figures['at_rest'] / 1e6:6.0f} MB (in 8 bits "
            f"{figures['codes'] / 1e6:.0f})   peak {figures['peak'] / 1e6:6.0f} MB"
            f"   {figures['seconds']:5.1f} s"
        )
    print(
        f"{'met   ' if bar['met'] else 'MISSED'} ours: {bar['measured'] / 1e6:.0f} MB, "
        f"bar <= {bar['limit'] / 1e6:.0f} MB"
    )
    if given.json:
        case = {"layers": given.layers, "dtype": "bfloat16", **sizes}
        write_result(given.json, {"case": case, "loading": rows, "bars": [bar]})
    return 0 if bar["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
