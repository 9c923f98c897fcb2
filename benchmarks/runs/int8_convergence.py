"""8-bit QLoRA beside 16- and 32-bit LoRA: loss curves and held-out figures.

    python -m benchmarks.runs.int8_convergence [--out OUT.json] [--cases ...] [--rows ...] [--seeds 3]

Cases: MiniLM on SST-2 (accuracy), a small story Llama on E2E (loss of completions) and on
tinyshakespeare, and a Llama of 21 M parameters that is trained here first, on stories, in full and
from a fixed seed (kept in --cache), then adapted to E2E. Every row of a case has the same batches,
learning rate and adapter by seed; dropout draws differ. Finished runs are kept in OUT and skipped
by a later command. The plot is written beside OUT. Losses do not depend on the machine's load.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.result_files import RESULTS, cpu_kind, has_bf16_units, write_result
from benchmarks.runs.convergence_cases import CASES, Case
from peftlab.measure.allocator import keep_large_buffers

ROWS = ("lora fp32", "lora bf16", "w8a16", "w8a8", "auto", "bnb+PEFT")
SMOOTHED = 10


def built(row: str, case: Case, folder: Path) -> Any:
    """The base of a row, not adapted yet."""
    from transformers import BitsAndBytesConfig

    if row == "bnb+PEFT":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(case.kept))
        return case.load(
            folder, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
        )
    if row.startswith("lora"):
        dtype = torch.bfloat16 if row.endswith("bf16") else torch.float32
        return case.load(folder, dtype=dtype)
    from peftlab.model.head_spec import HeadSpec
    from peftlab.model.loading import load_model

    head = HeadSpec(case.auto_class, case.config)
    return load_model(str(folder), head, dtype="float32", load_in_8bit=True).model


def adapted(row: str, case: Case, folder: Path, seed: int) -> tuple[Any, Any]:
    """The model that a row trains, and what was fused."""
    from peft import LoraConfig, get_peft_model

    from peftlab.fusion import fuse

    torch.manual_seed(seed)
    model = built(row, case, folder)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=list(case.targets),
        modules_to_save=list(case.trained_whole) or None,
        task_type=case.task_type,
    )
    peft_model = get_peft_model(model, config)
    for name, parameter in peft_model.named_parameters():
        # The head is random, the same for every row of a seed.
        if "modules_to_save" in name and "classifier" in name:
            draw = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                parameter.data = torch.randn(parameter.shape, generator=draw).mul_(0.02)
    if row == "bnb+PEFT":
        return peft_model, None
    arithmetic: Any = row if row in {"w8a8", "w8a16"} else "auto"
    return peft_model, fuse(peft_model, arithmetic=arithmetic)


def run(row: str, case: Case, folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Train once: the loss of every step, the held-out figure, and the gate's decisions."""
    model, report = adapted(row, case, folder, seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10) * max(0.0, 1 - step / steps)
    )
    model.train()
    torch.manual_seed(seed)
    losses = []
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=row == "lora bf16")
    for batch in case.batches(folder, seed, steps):
        with narrow:
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    with torch.no_grad(), narrow:
        held_out = case.held_out(model, folder)
    kept = [] if report is None else [g for g in report.gates.values() if g.arithmetic == "w8a16"]
    gates = 0 if report is None else len(report.gates)
    return {"losses": losses, "held_out": held_out, "w8a16_layers": len(kept), "int8_layers": gates}


def summary(case: Case, runs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and deviation of each row, and its distance from fp32 in fp32's deviations over seeds."""
    figures = {row: [run["held_out"] for run in values] for row, values in runs.items()}
    base = figures.get("lora fp32", [])
    deviation = statistics.stdev(base) if len(base) > 1 else math.nan
    table = {}
    for row, values in figures.items():
        mean = statistics.mean(values)
        worse = (statistics.mean(base) - mean) * (1 if case.greater_is_better else -1)
        table[row] = {
            "mean": mean,
            "stdev": statistics.stdev(values) if len(values) > 1 else math.nan,
            "worse_than_fp32_in_deviations": worse / deviation if base else math.nan,
            "w8a16_layers": statistics.mean(run["w8a16_layers"] for run in runs[row]),
            "int8_layers": runs[row][0]["int8_layers"],
        }
    return {"figure": case.figure, "rows": table}


def plot(runs: Mapping[str, Mapping[str, list[dict[str, Any]]]], file: Path) -> None:
    """One panel a case: each row's loss, smoothed, mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for panel, (name, rows) in zip(panels, runs.items(), strict=False):
        for row, of_row in rows.items():
            steps = min(len(run["losses"]) for run in of_row)
            mean = [statistics.mean(r["losses"][i] for r in of_row) for i in range(steps)]
            smooth = [statistics.mean(mean[max(0, i - SMOOTHED + 1) : i + 1]) for i in range(steps)]
            panel.plot(smooth, label=row, linewidth=1.0)
        panel.set_title(f"{name}: training loss, mean of {len(of_row)} seeds")
        panel.set_xlabel("step")
    panels[0].legend()
    figure.savefig(file, dpi=80)


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = RESULTS / f"int8_convergence--{cpu_kind()}.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "peftlab")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="fewer than the cases' own, for a quick run")
    given = parser.parse_args()
    keep_large_buffers()
    warnings.filterwarnings("ignore", message=".*MatMul8bitLt.*")
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    rows = [row for row in given.rows if row != "lora bf16" or has_bf16_units()]
    if len(rows) < len(given.rows):
        print("lora bf16 is left out: this CPU has no bf16 instructions")
    known = json.loads(given.out.read_text()) if given.out.is_file() else {}
    runs: dict[str, dict[str, list[dict[str, Any]]]] = known.get("runs", {})
    for name in given.cases:
        case = CASES[name]
        folder = case.checkpoint(given.cache)
        steps = min(case.steps, given.steps or case.steps)
        for row in rows:
            done = runs.setdefault(name, {}).setdefault(row, [])
            for seed in range(len(done), given.seeds):
                done.append(run(row, case, folder, seed, steps))
                print(f"{name} {row} seed {seed}: {done[-1]['held_out']:.4f}", flush=True)
                tables = {n: summary(CASES[n], of_case) for n, of_case in runs.items()}
                write_result(given.out, {"summary": tables, "runs": _short(runs)})
    print(json.dumps({n: summary(CASES[n], of_case) for n, of_case in runs.items()}, indent=1))
    plot(runs, given.out.with_suffix(".png"))
    return 0


def _short(runs: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Losses with four digits, for readers of the file."""
    return {
        name: {
            row: [r | {"losses": [round(x, 4) for x in r["losses"]]} for r in repeats]
            for row, repeats in rows.items()
        }
        for name, rows in runs.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
