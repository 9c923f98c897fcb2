"""LoRA through peftlab against a plain Transformers + PEFT script: time and peak memory.

    python benchmarks/runs/lora_parity.py --model FOLDER --data FOLDER --pairs 5 --out RESULT.json

Both sides train MiniLM (or any encoder) with the same rank, targets, batches, schedule, seed and
allocator setting; neither evaluates or saves while training. Every run is a fresh process; the
sides alternate (A B, B A, ...), and medians of the pairwise ratios are reported. Time and memory
are counted after the imports: loading, tokenising, training. `train` is the training loop alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RANK, ALPHA, DROPOUT = 8, 16, 0.05
ROWS = 2000
BATCH, RATE, WARMUP, DECAY, LENGTH = 16, 2e-3, 0.06, 0.01, 128


def run_plain(model_folder: str, data_folder: str, steps: int, seed: int) -> dict[str, float]:
    """The script a user would write by hand."""
    import datasets
    import peft
    import transformers

    from peftlab.measure.memory import PeakMemory, mapped_weights

    folder = Path(data_folder)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch, PeakMemory() as memory:
        started = time.perf_counter()
        transformers.set_seed(seed)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            model_folder, num_labels=2
        )
        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=DROPOUT,
            target_modules=r".*encoder\.layer\..*\.(query|key|value|dense)",
        )
        model = peft.get_peft_model(model, config)
        rows = datasets.load_dataset(
            "json", data_files=str(folder / "train.jsonl"), split="train", cache_dir=scratch
        )
        rows = rows.map(
            lambda batch: tokenizer(batch["text"], truncation=True, max_length=LENGTH),
            batched=True,
            remove_columns=["text"],
        )
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                learning_rate=RATE,
                warmup_steps=WARMUP,
                weight_decay=DECAY,
                seed=seed,
                lr_scheduler_type="linear",
                logging_steps=10,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=rows,
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        before = time.perf_counter()
        result = trainer.train()
        ended = time.perf_counter()
    return {
        "train": ended - before,
        "whole": ended - started,
        "memory": memory.peak + mapped_weights(model),
        "loss": result.training_loss,
    }


def run_peftlab(model_folder: str, data_folder: str, steps: int, seed: int) -> dict[str, float]:
    """The same run through peftlab."""
    from peftlab import pipeline
    from peftlab.config import config_from_mapping

    with tempfile.TemporaryDirectory() as scratch:
        config = config_from_mapping(
            {
                "model": {"name": model_folder, "dtype": "float32"},
                "task": "text-classification",
                "data": {
                    "source": data_folder,
                    "max_length": LENGTH,
                    "splits": {"validation": "validation", "test": None},
                },
                "method": {
                    "name": "lora",
                    "r": RANK,
                    "alpha": ALPHA,
                    "dropout": DROPOUT,
                },
                "train": {
                    "max_steps": steps,
                    "global_batch_size": BATCH,
                    "learning_rate": RATE,
                    "warmup_steps": WARMUP,
                    "weight_decay": DECAY,
                    "seed": seed,
                    "save_every": "never",
                    "allocator": "off",
                },
                "eval": {"every": "never"},
                "output": {"dir": f"{scratch}/run", "plots": False},
            }
        )
        started = time.perf_counter()
        run = pipeline.train(config)
        ended = time.perf_counter()
    train = run.metrics["train"]
    return {
        "train": train["seconds"],
        "whole": ended - started,
        "memory": train["peak_memory"]["total"],
        "loss": train["loss"],
    }


SIDES = {"plain": run_plain, "peftlab": run_peftlab}


def excerpt(source: Path, target: Path) -> str:
    """The same rows in the same order for both sides."""
    for split, count in (("train", ROWS), ("validation", 16)):
        with (source / f"{split}.jsonl").open(encoding="utf-8") as file:
            lines = [line for _, line in zip(range(count), file, strict=False)]
        (target / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return str(target)


def measure(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One side in a fresh process, with glibc's thresholds raised for both alike."""
    environment = dict(
        os.environ,
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        MALLOC_MMAP_THRESHOLD_="1073741824",
        MALLOC_TRIM_THRESHOLD_="4294967296",
    )
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--model",
        arguments.model,
        "--data",
        arguments.data,
        "--steps",
        str(arguments.steps),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    values: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return values


def main() -> None:
    """Run one side (in a child process), or all pairs and the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=sorted(SIDES))
    arguments = parser.parse_args()
    if arguments.side:
        # Imports are paid before the clock starts, on both sides.
        import datasets  # noqa: F401
        import peft  # noqa: F401
        import sklearn.metrics  # noqa: F401
        import transformers.trainer  # noqa: F401

        print(
            json.dumps(SIDES[arguments.side](arguments.model, arguments.data, arguments.steps, 42))
        )
        return

    from peftlab.measure.environment import describe_environment

    runs: dict[str, list[dict[str, float]]] = {"plain": [], "peftlab": []}
    with tempfile.TemporaryDirectory() as folder:
        arguments.data = excerpt(Path(arguments.data), Path(folder))
        for pair in range(arguments.pairs):
            for side in ("plain", "peftlab") if pair % 2 == 0 else ("peftlab", "plain"):
                runs[side].append(measure(side, arguments))
                print(side, runs[side][-1], file=sys.stderr, flush=True)
    result: dict[str, Any] = {"steps": arguments.steps, "pairs": arguments.pairs, "runs": runs}
    for figure in ("train", "whole", "memory"):
        ratios = [
            b[figure] / a[figure] for a, b in zip(runs["plain"], runs["peftlab"], strict=True)
        ]
        result[figure] = {
            "plain": statistics.median(r[figure] for r in runs["plain"]),
            "peftlab": statistics.median(r[figure] for r in runs["peftlab"]),
            "median_ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    result["environment"] = describe_environment()
    text = json.dumps(result, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
