"""Runs as merged models: a run's trained part and base in the terms of `export`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peftlab import run_folder
from peftlab.errors import CheckFailed, ConfigError
from peftlab.pipeline.export.base_forms import nearest, over
from peftlab.pipeline.fingerprints import check_base
from peftlab.pipeline.opened import OpenedRun

if TYPE_CHECKING:
    import torch

    from peftlab.export.report import MergeReport
    from peftlab.export.source import Source

MergeBase = Literal["auto", "original", "dequant", "requant"]


def export(
    path: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int = 5 * 10**9,
    merge_base: MergeBase = "auto",
    verify: bool = True,
) -> MergeReport:
    """Write the merged model of a run, or of any PEFT LoRA adapter, to the folder `out`.

    As `export.merge.merge`. `merge_base` is for runs over an 8-bit base: `original` merges into the
    16-bit checkpoint, `dequant` into the dequantised codes, `requant` quantises the result again;
    `auto` measures which is nearest to the model as it was trained. Raises as `merge` does, and
    `ConfigError` for a `merge_base` of a run that has no 8-bit base.
    """
    from peftlab.export.merge import adapter_source, merge_source
    from peftlab.files import check_new_folder

    check_new_folder(Path(out))
    folder = Path(path).expanduser()
    run = OpenedRun.open(folder) if run_folder.is_run(folder) else None
    source = adapter_source(folder, base) if run is None else source_of(run, base)
    if run is not None:
        run.check_tokenizers()
        if base is None and run.config.method.loads_in == 16:
            # 8-bit runs are compared over their own base; see `nearest`.
            source = replace(source, replay=run.check_logits)
    trusted = run is not None and run.config.model.trust_remote_code
    check_base(
        source.changes.source, source.base, source.revision, trust_remote_code=trusted,
        compare="codes" if merge_base in ("dequant", "requant") else "source",
    )  # fmt: skip
    if run is not None and run.config.method.loads_in != 8:
        if merge_base not in ("auto", "original"):
            raise ConfigError(
                f"--merge-base is {merge_base}, but the run was not trained over a base in 8 bits; "
                "leave it out."
            )
        merge_base = "original"
    if merge_base == "auto":
        # An adapter alone does not record how its base was loaded.
        source = over(source, "original") if run is None else nearest(run, source)
    else:
        source = over(source, merge_base, trust_remote_code=trusted)
    return merge_source(
        source, Path(out), dtype=dtype, max_shard_size=max_shard_size, verify=verify,
        trust_remote_code=trusted,
    )  # fmt: skip


def source_of(run: OpenedRun, base: str | None = None) -> Source:
    """A run's trained part, base and head. Raises `CheckFailed` where no such head exists."""
    from peftlab.export.changes import adapter_changes, whole_changes
    from peftlab.export.source import Source
    from peftlab.methods.adapter_files import WEIGHTS
    from peftlab.methods.apply import method_of
    from peftlab.methods.trained_part import WEIGHTS as WHOLE

    model = run.record["model"]
    if model["pooling"] not in (None, "model"):
        raise CheckFailed(
            f"{run.folder} trained a head on features pooled by {model['pooling']}, which no class "
            "of Transformers computes; train with method.pooling=model, or last_n, to export it."
        )
    method = run.config.method
    folder = method_of(method).folder(run.folder)
    changes = (
        adapter_changes(folder, folder / WEIGHTS)
        if method.has_adapter
        else whole_changes(folder, folder / WHOLE)
    )
    head = run.task.head()
    return Source(
        changes=changes,
        base=base or model["name"],
        revision=model["revision"] if base is None else None,
        auto_class=head.auto_class,
        config={**head.config, **_padding(run)},
        tokenizer=run.folder / "tokenizer",
        stops=run.task.stops,
        generation=run.task.generation_defaults,
        provenance={
            "method": run.config.method.name,
            "task": run.config.task.name,
            "data": Path(run.config.data.source).name,
            "trained by": f"peftlab {run.record.get('peftlab')}",
        },
    )


def _padding(run: OpenedRun) -> dict[str, int]:
    """The padding token's id for sequence classifiers, some of which locate a row's end by it.

    The checkpoint's config may lack it; the run used its tokenizer's.
    """
    from peftlab.model.tokenizer import load_tokenizer

    if not str(run.task.head().auto_class).endswith("ForSequenceClassification"):
        return {}
    trusted = run.config.model.trust_remote_code
    tokenizer = load_tokenizer(str(run.folder / "tokenizer"), trust_remote_code=trusted)
    return {"pad_token_id": tokenizer.pad_token_id}
