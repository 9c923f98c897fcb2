"""The verbs' answers as people read them."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftlab.cli.screen import Screen, shown

_GIB = 1 << 30


def show_json(screen: Screen, value: Any) -> None:
    """A document that is JSON whatever the flags."""
    screen.line(json.dumps(value, indent=2, ensure_ascii=False))


def show_plan(screen: Screen, plan: Mapping[str, Any]) -> None:
    """Data, targets and steps of a run that has not begun."""
    config = plan["config"]
    screen.line(
        f"{config['method']['name']} on {config['model']['name']} for {config['task']['name']}, "
        f"data {config['data']['source']}, into {plan['output']}"
    )
    _splits(screen, plan["data"])
    _labels(screen, plan["labels"])
    screen.heading("What is trained")
    rows = plan["coverage"]["rows"]
    if rows:
        screen.table(list(rows[0]), [list(row.values()) for row in rows])
    trained, total = plan["trained_parameters"], plan["total_parameters"]
    screen.line(f"{trained:,} of {total:,} parameters ({trained / max(total, 1):.2%})")
    screen.heading("Steps")
    micro, parts = plan["micro_batch_size"], plan["accumulation_steps"]
    screen.line(
        f"{plan['steps']:,} steps, {plan['steps_per_epoch']:,} an epoch, each of "
        f"{micro * parts} rows ({parts} x {micro}), {plan['max_length']} tokens at most a row"
    )
    dtypes = plan["dtypes"]
    screen.line(
        f"learning rate {plan['learning_rate']:.3g}; weights rest in {dtypes['at_rest']}, "
        f"arithmetic in {dtypes['compute']}"
    )
    _fusion(screen, plan["fusion"])
    for note in plan["notes"]:
        screen.line(f"note: {note}")


def show_data(screen: Screen, found: Mapping[str, Any]) -> None:
    """Decoded samples, then lengths and labels."""
    screen.line(f"{found['source']}, {found['max_length']} tokens at most a row")
    for number, sample in enumerate(found["samples"], start=1):
        screen.heading(f"Row {number}, {sample['tokens']} tokens")
        screen.line(sample["text"])
        for key, value in sample.items():
            if key not in ("tokens", "text"):
                screen.line(f"{key}: {shown(value)}")
    _splits(screen, found["splits"])
    _labels(screen, found["labels"])


def _splits(screen: Screen, splits: Mapping[str, Mapping[str, Any]]) -> None:
    screen.heading("Data (lengths in tokens)")
    heads = ["split", *next(iter(splits.values()), {})]
    screen.table(heads, [[name, *found.values()] for name, found in splits.items()])


def _labels(screen: Screen, labels: Mapping[str, int]) -> None:
    if not labels:
        return
    total = sum(labels.values())
    screen.heading("Labels in train")
    screen.table(
        ["label", "rows", "share"],
        [[name, count, f"{count / max(total, 1):.1%}"] for name, count in labels.items()],
    )


def show_run(screen: Screen, found: Mapping[str, Any], example: str) -> None:
    """A finished run: what it cost, how good it is, what to do with it.

    `example` is what to ask it, as words of a command line.
    """
    metrics = found["metrics"]
    train = metrics.get("train", {})
    parts = []
    if (seconds := train.get("seconds")) is not None:
        parts.append(f"{seconds:.1f} s")
    if (rate := train.get("tokens_per_second")) is not None:
        parts.append(f"{rate:,.0f} tokens/s")
    if (memory := (train.get("peak_memory") or {}).get("total")) is not None:
        parts.append(f"peak memory {memory / _GIB:.2f} GiB")
    if (trained := train.get("trained_parameters")) is not None:
        parts.append(f"{trained:,} parameters trained")
    screen.line(f"Run in {found['folder']}: {', '.join(parts) or 'done'}")
    if penalties := train.get("regularization"):
        _penalties(screen, penalties)
    held_out = {name: metrics[name] for name in ("validation", "test") if metrics.get(name)}
    show_metrics(screen, held_out)
    screen.line(f"\nNext: peftlab predict {shlex.quote(found['folder'])} {example}")


def _penalties(screen: Screen, found: Mapping[str, Any]) -> None:
    """The penalties at the kept weights, and how many weights L1 has set to zero."""
    terms = ", ".join(f"{name} {value:.4g}" for name, value in found["penalty"].items())
    screen.line(f"Penalties beside the loss: {terms}")
    if "sparsity" in found:
        screen.line(
            f"L1 left {found['zeros']:,} of {found['penalised']:,} weights at exactly zero "
            f"({found['sparsity']:.1%})"
        )


def show_metrics(screen: Screen, splits: Mapping[str, Mapping[str, Any]]) -> None:
    """Metrics by split, with the 95 % interval of those that have one."""
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
    """Labels in a table beside what was asked; else what was asked, and its line below."""
    if all({"label", "probability"} <= answer.keys() for answer in answers):
        screen.table(
            ["label", "probability", "text"],
            [
                [a["label"], f"{a.get('probability', float('nan')):.1%}", _asked(a["input"])]
                for a in answers
            ],
        )
        return
    for answer, line in zip(answers, lines, strict=True):
        screen.heading(_asked(answer["input"]))
        screen.line(line)


def _asked(row: Any) -> str:
    return " | ".join(map(_said, row.values())) if isinstance(row, Mapping) else str(row)


def _said(value: Any) -> str:
    """One column of what was asked; turns of a conversation a line each."""
    turns: list[Any] = value if isinstance(value, list) and value else [None]
    if not all(isinstance(turn, Mapping) and len(turn) == 2 for turn in turns):
        return shown(value)
    return "\n".join(": ".join(map(shown, turn.values())) for turn in turns)


def show_environment(screen: Screen, found: Mapping[str, Any]) -> None:
    """Versions and devices; memory in GiB, and for each optional package why it is not usable."""
    plain = {
        key: value for key, value in found.items() if key not in ("optional", "devices", "kernels")
    }
    if isinstance(cpu := plain.get("cpu"), Mapping) and isinstance(cpu.get("memory"), int):
        plain["cpu"] = {**cpu, "memory": f"{cpu['memory'] / _GIB:.1f} GiB"}
    screen.tree(plain)
    devices = [
        {**device, "memory": f"{device['memory'] / _GIB:.1f} GiB"} for device in found["devices"]
    ]
    screen.tree({"devices": devices})
    screen.heading("Optional packages")
    rows = [
        [name, "yes" if state["usable"] else "no", state["why_not"] or ""]
        for name, state in found["optional"].items()
    ]
    screen.table(["package", "usable", "why not"], rows)
    _kernels(screen, found["kernels"])


def show_export(screen: Screen, out: Path, report: Mapping[str, Any]) -> None:
    """What was written, how it was checked, and how to load it."""
    counts = ", ".join(f"{count} {kind}" for kind, count in report["counts"].items())
    screen.line(
        f"Merged model in {out}: {report['total_bytes'] / 2**20:,.1f} MiB in "
        f"{len(report['files'])} files, {counts} tensors, {report['seconds']['merge']:.1f} s"
    )
    verified = report["verified"]
    screen.line(f"Read back: {verified['copied_equal']} copied tensors are equal byte for byte")
    if logits := verified.get("logits"):
        screen.line(
            f"Logits differ from the adapter's by {logits['error']:.2g}; rounding explains up to "
            f"{logits['tolerance']:g} ({report['seconds']['verify']:.1f} s)"
        )
    else:
        screen.line("Logits were not compared (--no-verify)")
    if report["untied"]:
        screen.line("Input and output embeddings differ now, and are two tensors")
    if report["dropped"]:
        screen.line(f"Left out, as this model has no use for it: {', '.join(report['dropped'])}")
    kind = report["auto_class"]
    screen.line(f"Load it: transformers.{kind}.from_pretrained({str(out)!r})")


def _fusion(screen: Screen, fusion: Mapping[str, Any] | None) -> None:
    """How many adapted layers the kernels compute, and for the others why not."""
    if fusion is None:
        return
    fused, others = len(fusion["fused"]), fusion["not_fused"]
    if fused or others:
        screen.line(f"{fused} of {fused + len(others)} adapted layers are computed by the kernels")
    for reason, count in Counter(layer["reason"] for layer in others).items():
        screen.line(f"  not {count}: {reason}")
    for state, count in Counter(
        _state_of(layer) for layer in fusion.get("int8", {}).values()
    ).items():
        screen.line(f"{count} 8-bit layers {state}")
    if widened := fusion["widened"]:
        screen.line(
            f"{len(widened['linears'])} linear layers and {len(widened['embeddings'])} embeddings "
            "keep 16-bit weights under fp32 arithmetic"
        )


def _state_of(layer: Mapping[str, Any]) -> str:
    if not layer["decided"]:
        return "choose w8a8 or w8a16 by the error on their first batches"
    return f"compute by {layer['arithmetic']}"


def _kernels(screen: Screen, kernels: Mapping[str, Any]) -> None:
    """What computes LoRA layers here, and what was chosen by measurement."""
    screen.heading("Kernels")
    reasons = "".join(
        f"; not by {name}: {reason}" for name, reason in kernels["why_not"].items() if reason
    )
    screen.line(f"LoRA layers are computed by {kernels['backend']}{reasons}")
    if qlinear := kernels["why_not_qlinear"]:
        screen.line(f"8-bit products on this CPU are slow: oneDNN's cannot be used ({qlinear})")
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
        screen.line(f"kept in {kernels['choices_file']}")
