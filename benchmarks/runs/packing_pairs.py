"""Tokens per second of LoRA steps on instructions: padded, grouped by length, or packed.

    PEFTLAB_DATA=FOLDER python -m benchmarks.runs.packing_pairs [--rows 256] [--pairs 7] [--json OUT]

FOLDER holds `alpaca_1k` and `model_tinystories656k`. Every row of the table trains on the same rows
of data once: forward, loss on the answers, backward, one AdamW step a batch. Padded batches have 8
rows, in the data's order or grouped by length; packed ones 4 sequences of 512 tokens, about as
many positions. Padding does not count.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.layers.interleaving import summary, table, take_turns
from benchmarks.result_files import RESULTS, cpu_kind, write_result
from peftlab.measure.allocator import keep_large_buffers

LENGTH = 512
PADDED_ROWS, PACKED_ROWS = 8, 4

Batches = list[dict[str, torch.Tensor]]


def batches_of(rows: int, folder: Path, model: Any) -> tuple[Any, dict[str, Batches]]:
    """The task, and the batches of each row of the table."""
    import transformers

    from peftlab.config.tasks.causal_lm import CausalLMOptions
    from peftlab.data.loading import load_splits
    from peftlab.tasks.language.causal_lm import CausalLM

    options = CausalLMOptions(name="causal-lm")
    splits = load_splits(
        str(folder / "alpaca_1k"), formats=options.formats, roles=options.roles,
        max_train_samples=rows,
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model_tinystories656k")
    tokenizer.pad_token = tokenizer.unk_token
    task = CausalLM.from_splits(splits, options).attach(tokenizer, model)
    collate = task.collator(tokenizer)
    padded = list(task.encode(splits.train, tokenizer, max_length=LENGTH).rows)
    grouped = sorted(padded, key=lambda row: len(row["input_ids"]))
    packed = list(task.encode(splits.train, tokenizer, max_length=LENGTH, packing=True).rows)

    def cut(all_: Sequence[Any], size: int) -> Batches:
        return [collate(all_[start : start + size]) for start in range(0, len(all_), size)]

    return task, {
        "padded": cut(padded, PADDED_ROWS),
        "padded, grouped by length": cut(grouped, PADDED_ROWS),
        "packed": cut(packed, PACKED_ROWS),
    }


def epoch(task: Any, model: Any, batches: Batches) -> Callable[[], None]:
    """One pass over the batches."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def run() -> None:
        for batch in batches:
            (task.loss_sum(model, batch) / task.count_items(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--json", type=Path, help=f"default: under {RESULTS.name}/")
    given = parser.parse_args(arguments)
    if "PEFTLAB_DATA" not in os.environ:
        parser.error("set PEFTLAB_DATA to the folder of alpaca_1k and model_tinystories656k")
    folder = Path(os.environ["PEFTLAB_DATA"])
    torch.set_num_threads(given.threads)
    keep_large_buffers()
    import peft
    import transformers

    from peftlab.fusion import fuse

    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model_tinystories656k", dtype=torch.float32
    )
    settings = peft.LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, settings)
    fuse(model)
    task, rows = batches_of(given.rows, folder, model)
    seconds = take_turns(
        {name: epoch(task, model, batches) for name, batches in rows.items()}, given.pairs
    )
    print(table(seconds))
    figures: dict[str, dict[str, float]] = {}
    for name, batches in rows.items():
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        positions = sum(batch["input_ids"].numel() for batch in batches)
        figures[name] = {
            "batches": len(batches),
            "tokens": tokens,
            "padding_share": 1 - tokens / positions,
            "tokens_per_second": tokens / statistics.median(seconds[name]),
        }
        print(
            f"  {name:30} {figures[name]['tokens_per_second']:8,.0f} tokens/s, "
            f"{figures[name]['padding_share']:.1%} padding, {len(batches)} batches"
        )
    write_result(
        given.json or RESULTS / f"packing--{cpu_kind()}.json",
        {"rows": given.rows, "note": given.note, "figures": figures, **summary(seconds)},
    )


if __name__ == "__main__":
    main()
