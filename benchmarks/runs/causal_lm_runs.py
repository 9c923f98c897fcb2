"""LoRA on a causal LM, whole runs: peftlab against TRL's SFTTrainer with PEFT.

    PYTHONPATH=.:kernels python -m benchmarks.runs.causal_lm_runs --text FILE --tokenizer FOLDER \
        [--size 1B] [--sides trl,peftlab,...] [--json OUT]

A Llama of random weights in bf16 is written to a temporary folder; every side trains it from there
in a process of its own, on the same packed blocks of FILE, with the same rank, layers, dropout,
optimizer and rate, no gradient checkpointing. Sides take turns (A B C, C B A, ...). A step is timed
from one optimizer step's end to the next, the first ones left out; memory is the highest of all
steps, weights included.
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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.layers.interleaving import ratio
from benchmarks.result_files import RESULTS, gpu_kind, write_result
from benchmarks.runs.llama import TARGETS, Shape

RANK, ALPHA, DROPOUT, RATE = 16, 32, 0.05, 1e-4
FIRST = 5
"""Steps not timed: compiling, choosing, filling caches."""

SIZES = {
    "3B": Shape(28, 3072, 8192, 24, 8, 128256, tied=True),
    "1B": Shape(16, 2048, 8192, 32, 8, 128256, tied=True),
    "20M": Shape(6, 384, 1024, 6, 3, 8192, tied=True),
}
"""The first two are Llama-3.2's."""


@dataclass(frozen=True, slots=True)
class Case:
    """What every side trains, and on what; `folder` holds `model`, and `data` with the rows."""

    folder: str
    length: int
    batch: int
    steps: int


@dataclass(slots=True)
class Steps:
    """When each optimizer step ended, in seconds, and the highest memory until then, in bytes."""

    ends: list[float] = field(default_factory=list)
    memory: int = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note every step that accelerate's optimizer takes inside, as both sides use it."""
        from accelerate.optimizer import AcceleratedOptimizer

        from peftlab.measure.memory import anonymous_memory

        inner = AcceleratedOptimizer.step

        def step(optimizer: Any, closure: Any = None) -> None:
            inner(optimizer, closure)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                self.memory = max(self.memory, torch.cuda.max_memory_allocated())
            else:
                self.memory = max(self.memory, anonymous_memory())
            self.ends.append(time.perf_counter())

        AcceleratedOptimizer.step = step
        try:
            yield
        finally:
            AcceleratedOptimizer.step = inner

    def result(self, case: Case, loss: float) -> dict[str, float]:
        """Median seconds of a step, tokens a second by it, the highest memory, the loss."""
        taken = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)][FIRST:]
        middle = statistics.median(taken)
        return {
            "step_seconds": middle,
            "tokens_per_second": case.batch * case.length / middle,
            "peak_memory": self.memory,
            "loss": loss,
        }


def run_trl(case: Case, *, liger: bool = False, bits: int | None = None) -> dict[str, float]:
    """The script a user of TRL would write."""
    import datasets
    import peft
    import transformers
    import trl

    where = Path(case.folder)
    datasets.disable_progress_bars()
    more = {}
    if bits == 8:
        more["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        where / "model",
        dtype=torch.bfloat16,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"} if bits else None,
        **more,
    )
    rows = datasets.load_dataset(
        "json", data_files=str(where / "data" / "train.jsonl"), split="train",
        cache_dir=str(where / "cache"),
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(where / "trl"),
            max_steps=case.steps,
            per_device_train_batch_size=case.batch,
            max_length=case.length,
            packing=True,
            packing_strategy="wrapped",
            learning_rate=RATE,
            gradient_checkpointing=False,
            use_liger_kernel=liger,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=rows,
        processing_class=transformers.AutoTokenizer.from_pretrained(where / "model"),
        peft_config=peft.LoraConfig(
            task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT,
            target_modules=list(TARGETS),
        ),
    )  # fmt: skip
    steps = Steps()
    with steps.watched():
        done = trainer.train()
    return steps.result(case, done.training_loss)


def run_peftlab(case: Case, *, method: str = "lora") -> dict[str, float]:
    """The same run through peftlab."""
    from peftlab import pipeline
    from peftlab.config import config_from_mapping

    where = Path(case.folder)
    config = config_from_mapping(
        {
            "model": {"name": str(where / "model")},
            "task": "causal-lm",
            "data": {
                "source": str(where / "data"),
                "max_length": case.length,
                "packing": True,
                "splits": {"validation": "validation", "test": None},
            },
            "method": {
                "name": method, "r": RANK, "alpha": ALPHA, "dropout": DROPOUT,
                "target_modules": list(TARGETS),
            },
            "train": {
                "max_steps": case.steps,
                "global_batch_size": case.batch,
                "micro_batch_size": case.batch,
                "learning_rate": RATE,
                "gradient_checkpointing": False,
                "save_every": "never",
            },
            "eval": {"every": "never"},
            "output": {"dir": str(where / "run"), "overwrite": True, "plots": False},
        }
    )  # fmt: skip
    steps = Steps()
    with steps.watched():
        run = pipeline.train(config)
    return steps.result(case, run.metrics["train"]["loss"])


SIDES: dict[str, Callable[[Case], dict[str, float]]] = {
    "trl": run_trl,
    "trl, liger": lambda case: run_trl(case, liger=True),
    "peftlab": run_peftlab,
    "trl, 8-bit": lambda case: run_trl(case, bits=8),
    "peftlab, 8-bit": lambda case: run_peftlab(case, method="qlora"),
}
NEEDS = {"trl, liger": "liger_kernel", "trl, 8-bit": "bitsandbytes"}


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
    """One side's figures; RuntimeError with the end of what it said if it fails."""
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
    seconds = {side: [run["step_seconds"] for run in found] for side, found in runs.items()}
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
    """Run one side (in a child), or all sides in turns and the summary."""
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
                # A lent machine may be gone before the last side has ended.
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
