"""`merge`: an adapter, or another trained part, and its base into one model that any tool loads."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from peftlab.errors import CheckFailed, VerificationError
from peftlab.export.changes import Changes, adapter_changes, refuse_lost_bias
from peftlab.export.describe import describe
from peftlab.export.outline import Outline, Output, outline
from peftlab.export.report import REPORT, MergeReport
from peftlab.export.safetensors_files import Stored, stored_in, written
from peftlab.export.skeleton import AUTO_CLASSES, Skeleton, skeleton
from peftlab.export.source import Source
from peftlab.export.tensors import Tensors
from peftlab.export.through_peft import merged_by_peft
from peftlab.export.verify import check_files, logit_error
from peftlab.files import check_new_folder, new_folder, write_json
from peftlab.measure.memory import PeakMemory
from peftlab.methods.adapter_files import CONFIG, WEIGHTS, adapter_folder
from peftlab.model.checkpoint import Checkpoint, read_checkpoint_config

logger = logging.getLogger("peftlab")

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_HEAD = ("classifier", "score", "qa_outputs")
_TABLES = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "shared.weight")


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int = 5 * 10**9,
    verify: bool = True,
    trust_remote_code: bool = False,
) -> MergeReport:
    """Merge a PEFT adapter into its base and write the model to the folder `out`.

    The base's files are read tensor by tensor: adapted ones get the adapter, bit for bit as PEFT
    merges it, all others are copied byte for byte. For other types than LoRA the whole model is
    loaded in fp32, and PEFT merges it.

    Args:
        adapter: the adapter's folder, or that of a run with an adapter.
        out: a folder that is new or empty. It appears complete, or not at all.
        base: the base's folder or hub id, by default the one that the adapter names.
        dtype: of all floating tensors; None keeps the base's.
        max_shard_size: the most bytes per file, unless one tensor is larger.
        verify: also compare merged logits with the adapter's, in fp32, module by module.

    Raises:
        ConfigError: `out` is in use.
        CheckFailed: the adapter, or the base, cannot be merged, or they do not belong together.
        VerificationError: the written model is wrong; nothing is left then.
    """
    return merge_source(
        adapter_source(adapter, base), Path(out), dtype=dtype, max_shard_size=max_shard_size,
        verify=verify, trust_remote_code=trust_remote_code,
    )  # fmt: skip


def adapter_source(adapter: str | Path, base: str | None = None) -> Source:
    """A PEFT adapter as a source. Raises `CheckFailed` where it cannot be merged or has no base."""
    folder = adapter_folder(adapter)
    changes = adapter_changes(folder, folder / WEIGHTS)
    named = base or changes.peft.base_model_name_or_path
    if not named:
        raise CheckFailed(f"{folder / CONFIG} names no base; name it with --base.")
    task = getattr(changes.peft.task_type, "value", changes.peft.task_type)
    return Source(
        changes=changes,
        base=str(named),
        revision=changes.peft.revision if base is None else None,
        auto_class=AUTO_CLASSES.get(str(task)) if task else None,
        tokenizer=folder if any(folder.glob("tokenizer*")) else None,
        provenance={"adapter": folder.name, "peft": _settings(changes)},
    )


def merge_source(
    source: Source,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int = 5 * 10**9,
    verify: bool = True,
    trust_remote_code: bool = False,
) -> MergeReport:
    """`merge` for any trained part."""
    check_new_folder(out)
    started = time.perf_counter()
    with _as_weights(source, trust_remote_code) as (weights, expected), new_folder(out) as folder:
        source = weights
        built, plan = laid_out(source, dtype=dtype, trust_remote_code=trust_remote_code)
        with PeakMemory() as merging:
            copied, consumed, files = _write(plan, built, source, folder, max_shard_size)
            if consumed != source.changes.tensors:
                raise VerificationError(
                    f"{source.changes.tensors} tensors were trained, but {consumed} were merged."
                )
            merged = check_files(files, plan.outputs, copied)
        seconds = {"merge": time.perf_counter() - started}
        peaks = {"merge": merging.peak}
        verified: dict[str, Any] = {"tensors": len(merged), "copied_equal": len(copied)}
        if verify:
            with PeakMemory() as comparing:
                verified["logits"] = _compared(built, source, plan, merged, expected)
            seconds["verify"] = time.perf_counter() - started - seconds["merge"]
            peaks["verify"] = comparing.peak
        describe(source, built, plan, folder)
        kind = type(built.model).__name__
        report = _report(source, kind, plan, files, copied, verified, seconds, peaks, out)
        write_json(folder / REPORT, report.to_json())
    return report


@contextmanager
def _as_weights(source: Source, trust: bool) -> Iterator[tuple[Source, torch.Tensor | None]]:
    """What is merged by PEFT alone as whole weights, with the adapted model's logits."""
    if not source.changes.through_peft:
        yield source, None
        return
    checkpoint = _readable(source, trust)
    base = stored_in(checkpoint.files)
    built = _built(source, checkpoint, base, trust)
    with merged_by_peft(source, built, base, trust_remote_code=trust) as (changes, expected):
        yield replace(source, changes=changes), expected


def laid_out(
    source: Source, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> tuple[Skeleton, Outline]:
    """The model without weights, and every tensor it will have. Raises `CheckFailed`."""
    checkpoint = _readable(source, trust_remote_code)
    base = stored_in(checkpoint.files)
    built = _built(source, checkpoint, base, trust_remote_code)
    refuse_lost_bias(source.changes, built.model)
    plan = outline(
        built, base, source.changes, dtype=dtype, at_rest=checkpoint.at_rest,
        quantised=frozenset(source.quantised(built.model) if source.quantised else ()),
        through=source.through, requantise=source.requantise,
    )  # fmt: skip
    return built, plan


def _readable(source: Source, trust: bool) -> Checkpoint:
    """The base's checkpoint. Raises `CheckFailed` unless its weights can be read."""
    checkpoint = read_checkpoint_config(
        source.base, revision=source.revision, trust_remote_code=trust
    )
    if not checkpoint.files:
        raise CheckFailed(f"{source.base} is not on this machine; download it, or name its folder.")
    if checkpoint.in_8bit and (source.quantised is None or source.changes.through_peft):
        other = ", or merge into the dequantised codes with --merge-base dequant"
        raise CheckFailed(
            f"{source.base} is stored in 8 bits; name the 16-bit checkpoint it was quantised from "
            f"with --base{'' if source.changes.through_peft else other}."
        )
    return checkpoint


def _built(
    source: Source, checkpoint: Checkpoint, base: Mapping[str, Stored], trust: bool
) -> Skeleton:
    """The model that the trained part belongs to; the head has as many labels as it was saved."""
    updates = dict(source.config)
    counted = "num_labels" in updates or "id2label" in updates
    whole = {**source.changes.replaced, **source.changes.bases}
    for name, tensor in whole.items():
        head = name.split(".")[0] in _HEAD and name.endswith(".weight") and len(tensor.shape) == 2
        if head and not counted:
            updates["num_labels"] = tensor.shape[0]
        if name.endswith(_TABLES):
            updates["vocab_size"] = tensor.shape[0]
    return skeleton(
        checkpoint, base, auto_class=source.auto_class, updates=updates, trust_remote_code=trust
    )


def _write(
    plan: Outline, built: Skeleton, source: Source, folder: Path, limit: int
) -> tuple[dict[str, str], int, list[Path]]:
    """Write the shards; returns hashes of what was copied, trained tensors used, and the files."""
    from tqdm import tqdm

    shards = _shards(plan.outputs, limit)
    names = [SINGLE] if len(shards) == 1 else [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]  # fmt: skip
    tensors = Tensors(built, source.changes, plan.outputs, overwrite=True)
    copied: dict[str, str] = {}
    total = sum(output.spec.size for output in plan.outputs)
    with tqdm(total=total, unit="B", unit_scale=True, desc="Merging", disable=None) as bar:
        for name, shard in zip(names, shards, strict=True):
            with written(folder / name, [o.spec for o in shard], {"format": "pt"}) as writer:
                for output in shard:
                    if output.kind == "copied" and output.base is not None:
                        digest = hashlib.sha256()
                        writer.copy(output.spec.name, output.base, digest.update)
                        copied[output.spec.name] = digest.hexdigest()
                    else:
                        writer.tensor(output.spec.name, tensors.made(output))
                    bar.update(output.spec.size)
    if len(shards) > 1:
        weight_map = {o.spec.name: n for n, shard in zip(names, shards, strict=True) for o in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / INDEX, index)
    return copied, tensors.consumed, [folder / name for name in names]


def _shards(outputs: Sequence[Output], limit: int) -> list[list[Output]]:
    shards: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        if shards[-1] and size + output.spec.size > limit:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.spec.size
    return shards


def _compared(
    built: Skeleton,
    source: Source,
    plan: Outline,
    merged: Mapping[str, Stored],
    expected: torch.Tensor | None,
) -> dict[str, Any]:
    comparison = logit_error(
        built, source.changes, plan.outputs, merged, replay=source.replay, expected=expected
    )
    error, tolerance = comparison["error"], comparison["tolerance"]
    if not comparison["finite"] or not error <= tolerance:
        raise VerificationError(
            f"The merged model's logits differ from the adapter's by {error:.2g}, but "
            f"rounding explains up to {tolerance:g}; nothing was written. Try "
            "--dtype float32; --no-verify writes it nevertheless."
        )
    return comparison


def _settings(changes: Changes) -> str:
    if changes.through_peft:
        return str(changes.peft.peft_type.value)
    return f"LoRA r={changes.peft.r}, alpha={changes.peft.lora_alpha}"


def _report(
    source: Source,
    architecture: str,
    plan: Outline,
    files: Sequence[Path],
    copied: Mapping[str, str],
    verified: Mapping[str, Any],
    seconds: Mapping[str, float],
    peaks: Mapping[str, int],
    out: Path,
) -> MergeReport:
    dtypes = sorted({o.spec.dtype for o in plan.outputs})
    base = Path(source.base).name if Path(source.base).is_absolute() else source.base
    return MergeReport(
        folder=out,
        base=base,
        source=source.changes.source.name,
        counts=dict(Counter(output.kind for output in plan.outputs)),
        files=tuple(file.name for file in files),
        dtype=", ".join(dtypes),
        total_bytes=sum(output.spec.size for output in plan.outputs),
        untied=plan.untied,
        dropped=plan.dropped,
        auto_class=source.auto_class or architecture,
        added=plan.added,
        hashes=copied,
        verified=verified,
        compared=source.compared,
        seconds=seconds,
        peak_anonymous_bytes=peaks,
    )
