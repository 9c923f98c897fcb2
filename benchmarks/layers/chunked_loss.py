"""Time and peak memory of the chunked causal loss against whole logits.

    python benchmarks/layers/chunked_loss.py [--repeats 9] [--json FILE]

One training step (forward, backward) of a small random Llama, the losses interleaved, medians of
their times. Memory is the growth of the process' anonymous memory over one step, each loss in a
process of its own in which glibc gives large buffers back at once (else what the heap keeps from
earlier steps hides what a step needs). `plain` is peftlab's own loss from whole logits,
`transformers` the model's own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Case:
    """A model and a batch; `trained` is the share of tokens that carry a label."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    rows: int
    length: int
    trained: float = 1.0
    adapted: str = "none"


CASES = (
    Case("small vocabulary", 512, 64, 5, 16, 128),
    Case("8k", 8_000, 256, 4, 4, 256),
    Case("8k, completion only", 8_000, 256, 4, 4, 256, trained=0.4),
    Case("32k", 32_000, 256, 4, 4, 256),
    Case("32k, completion only", 32_000, 256, 4, 4, 256, trained=0.4),
    Case("32k, LoRA in the blocks", 32_000, 256, 4, 4, 256, adapted="blocks"),
    Case("32k, LoRA on the head", 32_000, 256, 4, 4, 256, adapted="head"),
)


def build(case: Case) -> tuple[Any, dict[str, torch.Tensor]]:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=case.vocabulary, hidden_size=case.hidden, intermediate_size=3 * case.hidden,
        num_hidden_layers=case.layers, num_attention_heads=8, num_key_value_heads=4,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if case.adapted != "none":
        import peft

        targets = ["q_proj", "v_proj"] + ["lm_head"] * (case.adapted == "head")
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM")
        )
    ids = torch.randint(3, case.vocabulary, (case.rows, case.length))
    labels = ids.clone()
    labels[:, : round(case.length * (1 - case.trained))] = -100
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def losses() -> dict[str, Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]]:
    from peftlab.tasks.language.loss.chunked_loss import CausalLoss, plain_loss_sum

    chunked = CausalLoss("chunked")
    return {
        "transformers": lambda model, batch: model(**batch, use_cache=False).loss,
        "plain": plain_loss_sum,
        "chunked": chunked.loss_sum,
    }


def step(compute: Callable[..., torch.Tensor], model: Any, batch: dict[str, torch.Tensor]) -> float:
    start = time.perf_counter()
    compute(model, batch).backward()
    seconds = time.perf_counter() - start
    model.zero_grad()
    return seconds


def times(case: Case, repeats: int) -> dict[str, float]:
    """Median seconds of a step, the losses interleaved."""
    model, batch = build(case)
    taken: dict[str, list[float]] = {name: [] for name in losses()}
    computed = losses()
    for repeat in range(repeats + 2):
        for name, compute in computed.items():
            seconds = step(compute, model, batch)
            if repeat >= 2:
                taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def anonymous() -> int:
    """Bytes of this process's anonymous memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(x.split()[1]) for x in lines if x.startswith(("RssAnon", "RssShmem")))


@contextmanager
def peak() -> Iterator[list[int]]:
    before, largest, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            largest[0] = max(largest[0], anonymous() - before)
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield largest
    finally:
        done.set()
        thread.join()


def measure_peak(case: Case, name: str, answer: Any) -> None:
    torch.set_num_threads(1)
    model, batch = build(case)
    compute = losses()[name]
    compute(model, {key: value[:1, :] for key, value in batch.items()}).backward()  # proof, set-up
    model.zero_grad()
    with peak() as largest:
        compute(model, batch).backward()
    answer.put(largest[0])


@contextmanager
def large_buffers_returned() -> Iterator[None]:
    """Child processes started inside map every buffer above 1 MB, and unmap it when it is freed."""
    key = "MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get(key)
    os.environ[key] = "1000000"
    try:
        yield
    finally:
        os.environ.pop(key) if before is None else os.environ.update({key: before})


def peak_bytes(case: Case, name: str) -> int:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=measure_peak, args=(case, name, answer))
    with large_buffers_returned():
        process.start()
    bytes_ = int(answer.get(timeout=300))
    process.join()
    return bytes_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    print(
        f"{'case':26} {'chunked/plain':>13} {'/transformers':>13}   "
        "peak MB: transformers, plain, chunked"
    )
    for case in CASES:
        seconds = times(case, options.repeats)
        peaks = {name: peak_bytes(case, name) for name in seconds}
        results.append({"case": asdict(case), "seconds": seconds, "peak_bytes": peaks})
        print(
            f"{case.name:26} {seconds['chunked'] / seconds['plain']:13.2f} "
            f"{seconds['chunked'] / seconds['transformers']:13.2f}   "
            f"{peaks['transformers'] / 1e6:.0f}, {peaks['plain'] / 1e6:.0f}, "
            f"{peaks['chunked'] / 1e6:.0f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
