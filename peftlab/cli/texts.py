"""The commands' answers as text for people."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftlab.cli.screen import Screen, shown

_GIB = 1 << 30
_MOST_LABELS = 40


def show_json(screen: Screen, value: Any) -> None:
    """A document that is JSON with and without `--json`."""
    screen.line(json.dumps(value, indent=2, ensure_ascii=False))


def show_plan(screen: Screen, plan: Mapping[str, Any]) -> None:
    """Data, targets and steps of a planned run."""
    config = plan["config"]
    screen.line(
        f"{config['method']['name']} on {config['model']['name']} for {config['task']['name']}, "
        f"data {config['data']['source']}, into {plan['output']}"
    )
    _splits(screen, plan["data"])
    _dropped(screen, plan.get("dropped", {}))
    _labels(screen, plan["labels"])
    if plan.get("understood"):
        screen.line(plan["understood"])
    screen.heading("Trained parameters")
    rows = plan["coverage"]["rows"]
    if rows:
        screen.table(list(rows[0]), [list(row.values()) for row in rows])
    trained, total = plan["trained_parameters"], plan["total_parameters"]
    screen.line(f"{trained:,} of {total:,} parameters ({trained / max(total, 1):.2%})")
    screen.heading("Steps")
    micro, parts = plan["micro_batch_size"], plan["accumulation_steps"]
    screen.line(
        f"{plan['steps']:,} steps, {plan['steps_per_epoch']:,} per epoch, of {micro * parts} rows "
        f"each ({parts} x {micro}), at most {plan['max_length']} tokens per row"
    )
    dtypes = plan["dtypes"]
    rates = ", ".join(f"{rate:.3g}" for rate in plan["other_learning_rates"])
    others = f" ({rates} for some parameters)" if rates else ""
    screen.line(
        f"learning rate {plan['learning_rate']:.3g}{others}; "
        f"weights stored in {dtypes['at_rest']}, computed in {dtypes['compute']}"
    )
    _fusion(screen, plan["fusion"])
    for note in plan["notes"]:
        screen.line(f"note: {note}")


def show_data(screen: Screen, preview: Mapping[str, Any]) -> None:
    """Decoded samples, then lengths and labels."""
    screen.line(f"{preview['source']}, at most {preview['max_length']} tokens per row")
    for number, sample in enumerate(preview["samples"], start=1):
        screen.heading(f"Row {number}, {sample['tokens']} tokens")
        screen.line(sample["text"])
        for key, value in sample.items():
            if key not in ("tokens", "text"):
                screen.line(f"{key}: {shown(value)}")
    _splits(screen, preview["splits"])
    _dropped(screen, preview.get("dropped", {}))
    _labels(screen, preview["labels"])
    if preview.get("understood"):
        screen.line(preview["understood"])


def _splits(screen: Screen, splits: Mapping[str, Mapping[str, Any]]) -> None:
    screen.heading("Data (lengths in tokens)")
    heads = [
        name
        for name in next(iter(splits.values()), {})
        # Shown where conversations and rows differ in number.
        if name != "conversations" or any(values[name] for values in splits.values())
    ]
    screen.table(
        ["split", *heads],
        [[split, *(values[name] for name in heads)] for split, values in splits.items()],
    )


def _dropped(screen: Screen, dropped: Mapping[str, Mapping[str, int]]) -> None:
    """The rows that are left out, by split and cause."""
    rows: list[list[str | int | float | None]] = [
        [split, count, cause]
        for split, causes in dropped.items()
        for cause, count in causes.items()
    ]
    if rows:
        screen.heading("Rows left out")
        screen.table(["split", "rows", "cause"], rows)


def _labels(screen: Screen, labels: Mapping[str, int]) -> None:
    if not labels:
        return
    total = sum(labels.values())
    screen.heading("Labels in train")
    shown = list(labels.items())
    if len(shown) > _MOST_LABELS:
        shown = sorted(shown, key=lambda item: -item[1])[:_MOST_LABELS]
        others = total - sum(count for _, count in shown)
        shown.append((f"{len(labels) - len(shown):,} others", others))
    screen.table(
        ["label", "rows", "share"],
        [[name, count, f"{count / max(total, 1):.1%}"] for name, count in shown],
    )


def show_run(screen: Screen, result: Mapping[str, Any], example: str) -> None:
    """A finished run: its cost, its metrics, and the next command.

    `example` is an input for `predict`, as words of a command line.
    """
    metrics = result["metrics"]
    train = metrics.get("train", {})
    parts = []
    if (seconds := train.get("seconds")) is not None:
        parts.append(f"{seconds:.1f} s")
    if (speed := train.get("tokens_per_second")) is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    if (memory := (train.get("peak_memory") or {}).get("total")) is not None:
        parts.append(f"peak memory {memory / _GIB:.2f} GiB")
    if (trained := train.get("trained_parameters")) is not None:
        parts.append(f"{trained:,} parameters trained")
    screen.line(f"Run in {result['folder']}: {', '.join(parts) or 'done'}")
    if penalties := train.get("regularization"):
        _penalties(screen, penalties)
    held_out = {name: metrics[name] for name in ("validation", "test") if metrics.get(name)}
    show_metrics(screen, held_out)
    screen.line(f"\nNext: peftlab predict {shlex.quote(result['folder'])} {example}")


def _penalties(screen: Screen, penalties: Mapping[str, Any]) -> None:
    """The penalties of the saved weights, and the number of weights that L1 set to zero."""
    terms = ", ".join(f"{name} {value:.4g}" for name, value in penalties["penalty"].items())
    screen.line(f"Penalties added to the loss: {terms}")
    if "sparsity" in penalties:
        screen.line(
            f"L1 set {penalties['zeros']:,} of {penalties['penalised']:,} weights to exactly zero "
            f"({penalties['sparsity']:.1%})"
        )


def show_metrics(screen: Screen, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Metrics by split, with 95 % intervals where known."""
    for split, metrics in splits.items():
        screen.heading(f"Metrics on {split}")
        intervals = metrics.get("interval") or {}
        rows = []
        for name, value in metrics.items():
            if name == "interval":
                continue
            low_high = intervals.get(name)
            between = f"{low_high[0]:.4g} to {low_high[1]:.4g}" if low_high else ""
            rows.append([name, value, between])
        screen.table(["metric", "value", "95 % interval"], rows)


def show_answers(
    screen: Screen, answers: Sequence[Mapping[str, Any]], lines: Sequence[str]
) -> None:
    """Labels in a table with their inputs; else each input with its answer below."""
    if all({"label", "probability"} <= answer.keys() for answer in answers):
        screen.table(
            ["label", "probability", "text"],
            [
                [a["label"], f"{a.get('probability', float('nan')):.1%}", _input(a["input"])]
                for a in answers
            ],
        )
        return
    for answer, line in zip(answers, lines, strict=True):
        screen.heading(_input(answer["input"]))
        screen.line(line)


def _input(row: Any) -> str:
    return " | ".join(map(_column, row.values())) if isinstance(row, Mapping) else str(row)


def _column(value: Any) -> str:
    """One column of an input; turns of a conversation on a line each."""
    turns: list[Any] = value if isinstance(value, list) and value else [None]
    if not all(isinstance(turn, Mapping) and len(turn) == 2 for turn in turns):
        return shown(value)
    return "\n".join(": ".join(map(shown, turn.values())) for turn in turns)


def show_environment(screen: Screen, environment: Mapping[str, Any]) -> None:
    """Versions and devices, memory in GiB, and why optional packages are not usable."""
    plain = {
        key: value
        for key, value in environment.items()
        if key not in ("optional", "devices", "kernels")
    }
    if isinstance(cpu := plain.get("cpu"), Mapping) and isinstance(cpu.get("memory"), int):
        plain["cpu"] = {**cpu, "memory": f"{cpu['memory'] / _GIB:.1f} GiB"}
    screen.tree(plain)
    devices = [
        {**device, "memory": f"{device['memory'] / _GIB:.1f} GiB"}
        for device in environment["devices"]
    ]
    screen.tree({"devices": devices})
    screen.heading("Optional packages")
    rows = [
        [name, "yes" if state["usable"] else "no", state["why_not"] or ""]
        for name, state in environment["optional"].items()
    ]
    screen.table(["package", "usable", "why not"], rows)
    _kernels(screen, environment["kernels"])


def show_export(screen: Screen, out: Path, report: Mapping[str, Any]) -> None:
    """The written files, their verification, and how to load them."""
    counts = ", ".join(f"{count} {kind}" for kind, count in report["counts"].items())
    files = _counted(len(report["files"]), "file")
    screen.line(
        f"Merged model in {out}: {report['total_bytes'] / 2**20:,.1f} MiB in "
        f"{files}, {counts} tensors, {report['seconds']['merge']:.1f} s"
    )
    verified = report["verified"]
    screen.line(f"Read back: {verified['copied_equal']} copied tensors are identical byte for byte")
    if logits := verified.get("logits"):
        screen.line(
            f"Logits differ from the adapter's by {logits['error']:.2g}, within the rounding bound "
            f"{logits['tolerance']:g} ({report['seconds']['verify']:.1f} s)"
        )
    else:
        screen.line("Logits were not compared (--no-verify)")
    if report["untied"]:
        screen.line("Input and output embeddings differ now and are stored separately")
    if report["dropped"]:
        screen.line(f"Dropped, as this model does not use it: {', '.join(report['dropped'])}")
    kind = report["auto_class"]
    screen.line(f"Load it: transformers.{kind}.from_pretrained({str(out)!r})")


def _fusion(screen: Screen, fusion: Mapping[str, Any] | None) -> None:
    """The number of adapted layers that the kernels compute, and why they skip the others."""
    if fusion is None:
        return
    fused, others = len(fusion["fused"]), fusion["not_fused"]
    if fused or others:
        screen.line(f"The kernels compute {fused} of {fused + len(others)} adapted layers")
    for reason, count in Counter(layer["reason"] for layer in others).items():
        screen.line(f"  {count} not fused: {reason}")
    for state, count in Counter(
        _state_of(layer) for layer in fusion.get("int8", {}).values()
    ).items():
        screen.line(f"{count} 8-bit layers {state}")
    if widened := fusion["widened"]:
        screen.line(
            f"{_counted(len(widened['linears']), 'linear layer')} and "
            f"{_counted(len(widened['embeddings']), 'embedding')} "
            "keep 16-bit weights and compute in fp32"
        )


def _state_of(layer: Mapping[str, Any]) -> str:
    if not layer["decided"]:
        return "choose w8a8 or w8a16 by the error on their first batches"
    return f"compute with {layer['arithmetic']}"


def _kernels(screen: Screen, kernels: Mapping[str, Any]) -> None:
    """The backend of LoRA layers here, and the autotuned choices."""
    screen.heading("Kernels")
    reasons = "".join(
        f"; not by {name}: {reason}" for name, reason in kernels["why_not"].items() if reason
    )
    screen.line(f"LoRA layers are computed by {kernels['backend']}{reasons}")
    if qlinear := kernels["why_not_qlinear"]:
        screen.line(f"8-bit products on this CPU are slow, as oneDNN's are not usable ({qlinear})")
    rows = [
        [
            choice["question"],
            choice["answer"],
            ", ".join(f"{name} {1e3 * took:.1f} ms" for name, took in choice["seconds"].items()),
            choice["source"],
        ]
        for choice in kernels["choices"]
    ]
    if rows:
        screen.table(["product", "fastest", "measured", "source"], rows)
        screen.line(f"Stored in {kernels['choices_file']}")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
