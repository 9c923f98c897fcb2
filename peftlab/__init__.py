"""Parameter-efficient fine-tuning, measured.

A module imports only from those to its right; siblings never import each other:
    cli > demo > pipeline > training, evaluation, export, bench > methods, fusion, tasks
    > data, model, measure, run_folder > config > files > errors

From Python, three lines do what the command line does:

    import peftlab
    run = peftlab.train("imdb.yaml", method="qlora")
    print(run.evaluate("test"))

and `peftlab.fuse(model)` makes any PEFT model faster and leaner in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from peftlab.config.schema import RunConfig
    from peftlab.export.report import MergeReport
    from peftlab.fusion import FusionReport, fuse, unfuse
    from peftlab.pipeline.export.runs import MergeBase
    from peftlab.pipeline.plan import Plan
    from peftlab.pipeline.run import Run

__all__ = ["FusionReport", "fuse", "load_config", "load_run", "merge", "plan", "train", "unfuse"]


def load_config(
    source: str | Path | Mapping[str, Any] | RunConfig | None = None, **sections: Any
) -> RunConfig:
    """The configuration in a YAML file or a mapping, with sections set by keyword.

    `method="qlora"` replaces the method; `train={"seed": 1}` sets single keys of a section. Raises
    `peftlab.errors.ConfigError`.
    """
    from peftlab.config import config_from_mapping, resolved_mapping
    from peftlab.config.loading.loader import load_config as load
    from peftlab.config.loading.overrides import overrides_of
    from peftlab.config.schema import RunConfig

    overrides = overrides_of(sections)
    if isinstance(source, RunConfig):
        return config_from_mapping(resolved_mapping(source), overrides) if overrides else source
    if isinstance(source, Mapping):
        return config_from_mapping(source, overrides)
    return load(source, overrides).config


def train(
    source: str | Path | Mapping[str, Any] | RunConfig | None = None,
    *,
    resume: str | Path = "never",
    **sections: Any,
) -> Run:
    """Train as configured (see `load_config`) and return the finished run.

    `resume`: never, auto, or the path of a checkpoint. Raises `peftlab.errors.PeftlabError`.
    """
    from peftlab.pipeline.train import train as run

    return run(load_config(source, **sections), resume=resume)


def plan(source: str | Path | Mapping[str, Any] | RunConfig | None = None, **sections: Any) -> Plan:
    """What `train` would do: data, targets, steps; no weight is read."""
    from peftlab.pipeline.plan import plan as make

    return make(load_config(source, **sections))


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int = 5 * 10**9,
    merge_base: MergeBase = "auto",
    verify: bool = True,
) -> MergeReport:
    """Merge a run, or any PEFT LoRA adapter, into its base; write the model to the folder `out`.

    Streamed tensor by tensor and verified; `out` appears whole or not at all. See
    `peftlab.export.merge.merge` and, for `merge_base`, `peftlab.pipeline.export.runs.export`.
    """
    from peftlab.pipeline.export.runs import export

    return export(
        adapter, out, base=base, dtype=dtype, max_shard_size=max_shard_size,
        merge_base=merge_base, verify=verify,
    )  # fmt: skip


def load_run(folder: str | Path) -> Run:
    """Open the folder of a finished run, to evaluate it or ask it for predictions."""
    from peftlab.pipeline.run import open_run

    return open_run(folder)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("peftlab")
        except metadata.PackageNotFoundError:
            # Run from a checkout with nothing installed.
            return "0+unknown"
    if name in {"FusionReport", "fuse", "unfuse"}:
        # Straight from there, so that signature and docstring are the functions' own.
        from peftlab import fusion

        return getattr(fusion, name)
    raise AttributeError(f"module 'peftlab' has no attribute {name!r}")
