"""LoRA on a causal LM, whole runs: peftlab against TRL's SFTTrainer with PEFT.

    PYTHONPATH=.:kernels python -m benchmarks.runs.causal_lm_runs --text FILE --tokenizer FOLDER \
        [--size 1B] [--sides trl,peftlab,...] [--json OUT]

A Llama of random weights in bf16 is written to a temporary folder; every side trains it from there
in a process of its own, on the same packed blocks of FILE, with the same rank, layers, dropout,
optimizer and learning rate, without gradient checkpointing. Sides alternate (A B C, C B A, ...). A
step is timed from one optimizer step's end to the next, without the first ones; memory is the peak
over all steps, weights included.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.layers.interleaving import ratio
from benchmarks.result_files import RESULTS, gpu_kind, write_result
from benchmarks.runs.causal_lm_sides import FIRST, NEEDS, SIDES, Case
from benchmarks.runs.llama import Shape

SIZES = {
    "3B": Shape(28, 3072, 8192, 24, 8, 128256, tied=True),
    "1B": Shape(16, 2048, 8192, 32, 8, 128256, tied=True),
    "20M": Shape(6, 384, 1024, 6, 3, 8192, tied=True),
}
"""The first two are Llama-3.2's."""


def write_case(folder: Path, size: str, text: Path, tokenizer: str) -> None:
    """A Llama with random weights and the tokenizer's ids, and the text as rows."""
    import transformers

    shape = SIZES[size]
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "model")
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    words.model_max_length = config.max_position_embeddings
    words.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    paragraphs = [part for part in text.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    for split, rows in (("train", paragraphs), ("validation", paragraphs[:8])):
        lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (folder / "data" / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def in_a_process(side: str, case: Case) -> dict[str, float]:
    """One side's figures; RuntimeError with the end of its error output if it fails."""
    command = [sys.executable, "-m", "benchmarks.runs.causal_lm_runs", "--side", side]
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    done = subprocess.run(
        [*command, "--case", json.dumps(asdict(case))],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-2000:]}")
    values: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return values


def summed_up(
    given: argparse.Namespace, runs: dict[str, list[dict[str, float]]], problems: list[str]
) -> dict[str, Any]:
    """The runs so far, and every side's step by peftlab's in the rounds that both ran."""
    seconds = {side: [run["step_seconds"] for run in all_] for side, all_ in runs.items()}
    ours = seconds.get("peftlab", [])
    ratios = {
        side: asdict(ratio({side: all_[:both], "peftlab": ours[:both]}, side, "peftlab"))
        for side, all_ in seconds.items()
        if side != "peftlab" and (both := min(len(all_), len(ours)))
    }
    return {
        "size": given.size, "length": given.length, "batch": given.batch, "steps": given.steps,
        "runs": runs, "problems": problems, "ratio_to_peftlab": ratios,
    }  # fmt: skip


def _median(runs: Sequence[dict[str, float]], figure: str) -> float:
    return statistics.median(run[figure] for run in runs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one side (in a child process), or all sides alternating and the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokenizer")
    parser.add_argument("--size", choices=SIZES, default="1B")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", default=";".join(SIDES), help="separated by semicolons")
    parser.add_argument("--json", type=Path, help=f"default: under {RESULTS.name}/")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.side:
        print(json.dumps(SIDES[given.side](Case(**json.loads(given.case)))))
        return
    if given.text is None or given.tokenizer is None:
        parser.error("name --text and --tokenizer")
    if given.steps < FIRST + 3:
        parser.error(f"--steps {given.steps} leaves nothing to time; {FIRST + 3} at least")
    wanted = [side for side in SIDES if side in given.sides.split(";")]
    problems = [
        f"{side}: {NEEDS[side]} is not installed"
        for side in wanted
        if side in NEEDS and importlib.util.find_spec(NEEDS[side]) is None
    ]
    sides = [side for side in wanted if not any(p.startswith(f"{side}:") for p in problems)]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    out = given.json or RESULTS / f"causal_lm_runs--{gpu_kind()}.json"
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder), given.size, given.text, given.tokenizer)
        case = Case(folder, given.length, given.batch, given.steps)
        for number in range(given.rounds):
            for side in list(sides) if number % 2 == 0 else list(reversed(sides)):
                try:
                    runs[side].append(in_a_process(side, case))
                except RuntimeError as failed:
                    problems.append(str(failed))
                    sides.remove(side)
                    continue
                print(side, runs[side][-1], file=sys.stderr, flush=True)
                # The machine may be gone before the last side has ended.
                write_result(out, summed_up(given, runs, problems))
    for side in sides:
        print(
            f"{side:16} {_median(runs[side], 'step_seconds') * 1e3:8.1f} ms a step, "
            f"{_median(runs[side], 'tokens_per_second'):9,.0f} tokens/s, "
            f"{_median(runs[side], 'peak_memory') / 2**30:6.2f} GiB"
        )
    for problem in problems:
        print("left out:", problem)
    write_result(out, summed_up(given, runs, problems))


if __name__ == "__main__":
    main()
