"""What a folder is, a run, an adapter, a merged model or a checkpoint, and what it contains.

Reads headers, and of a base the samples of tensors that a fingerprint hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab import run_folder
from peftlab.errors import CheckFailed
from peftlab.files import read_json
from peftlab.pipeline.fingerprints import fingerprint_state

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def inspect(path: str | Path) -> dict[str, Any]:
    """Describe a folder under `kind`: run, unfinished run, adapter, merged model or checkpoint.

    Raises `CheckFailed` where it is none of them, naming the files it looked for.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckFailed(
            f"{folder} is not a folder; give a run's, an adapter's or a checkpoint's."
        )
    if run_folder.is_run(folder):
        return _run(folder)
    if run_folder.newest_checkpoint(folder) is not None:
        return _unfinished(folder)
    if (folder / "adapter_config.json").is_file():
        return {
            "kind": "adapter",
            "path": str(folder),
            **_adapter(folder),
            "fingerprint": _of_adapter(folder),
        }
    if (folder / "merge_report.json").is_file() and (folder / "config.json").is_file():
        return {"kind": "merged model", "path": str(folder), **_merged(folder)}
    if (folder / "config.json").is_file():
        return {"kind": "checkpoint", "path": str(folder), **_checkpoint(folder)}
    raise CheckFailed(
        f"{folder} is neither a run ({run_folder.RECORD}), an adapter (adapter_config.json), "
        "nor a checkpoint (config.json)."
    )


def _run(folder: Path) -> dict[str, Any]:
    record = read_json(folder / run_folder.RECORD)
    description: dict[str, Any] = {
        "kind": "run",
        "path": str(folder),
        **record,
        "metrics": read_json(folder / run_folder.METRICS),
    }
    if golden := record.get("golden"):
        # Their number only: the examples themselves are for comparison by machine.
        description["golden"] = {**golden, "examples": len(golden["examples"])}
    part = folder / "adapter"
    if part.is_dir():
        description["adapter"] = _adapter(part)
    else:
        part = folder / "trained"
        if part.is_dir():
            description["trained"] = _tensors(part)
    base = record.get("model", {})
    description["fingerprint"] = fingerprint_state(part, base.get("name"), base.get("revision"))
    return description


def _unfinished(folder: Path) -> dict[str, Any]:
    newest = run_folder.newest_checkpoint(folder)
    assert newest is not None
    state = read_json(newest / "trainer_state.json")
    return {
        "kind": "unfinished run",
        "path": str(folder),
        "newest_checkpoint": newest.name,
        "step": state.get("global_step"),
        "of": state.get("max_steps"),
    }


def _adapter(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "adapter_config.json")
    keys = (
        "peft_type", "task_type", "base_model_name_or_path", "revision", "r", "lora_alpha",
        "lora_dropout", "use_rslora", "use_dora", "target_modules", "modules_to_save",
    )  # fmt: skip
    rare = (
        "rank_pattern", "alpha_pattern", "lora_bias", "trainable_token_indices",
        "layer_replication", "exclude_modules", "layers_to_transform", "target_parameters",
        "peft_version",
    )  # fmt: skip
    settings = {key: config[key] for key in keys if key in config}
    settings |= {key: config[key] for key in rare if config.get(key)}
    return {**settings, "tensors": _tensors(folder)}


def _of_adapter(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "adapter_config.json")
    return fingerprint_state(folder, config.get("base_model_name_or_path"), config.get("revision"))


def _merged(folder: Path) -> dict[str, Any]:
    """A merged model by its report, and whether its files still match the report."""
    report = read_json(folder / "merge_report.json")
    checkpoint = _checkpoint(folder)
    keys = (
        "base",
        "source",
        "counts",
        "dtype",
        "untied",
        "added",
        "dropped",
        "verified",
        "seconds",
        "peak_anonymous_bytes",
    )
    merge = {key: report[key] for key in keys if key in report}
    return {
        **checkpoint,
        "merge": merge,
        "as_reported": _as_reported(folder, report, checkpoint["tensors"]),
    }


def _as_reported(folder: Path, report: Mapping[str, Any], tensors: Mapping[str, Any]) -> str | bool:
    """True, or how the files differ from the merge report."""
    missing = [name for name in report.get("files", ()) if not (folder / name).is_file()]
    if missing:
        return f"no: {', '.join(missing)} is missing"
    for what, present, written in (
        ("files", tensors["files"], len(report.get("files", ()))),
        ("tensors", tensors["count"], sum(report.get("counts", {}).values())),
    ):
        if present != written:
            return f"no: there are {present} {what}, and {written} were written"
    return True


def _checkpoint(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    keys = ("model_type", "architectures", "hidden_size", "num_hidden_layers", "vocab_size")
    return {**{key: config[key] for key in keys if key in config}, "tensors": _tensors(folder)}


def _tensors(folder: Path) -> dict[str, Any]:
    """Counts over every safetensors file of a folder, from the headers."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    pickled = sorted(p.name for pattern in PICKLED for p in folder.glob(pattern))
    scalars: Counter[str] = Counter()
    tensors = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118  (safe_open is not a mapping)
                    header = opened.get_slice(name)
                    count = 1
                    for size in header.get_shape():
                        count *= size
                    scalars[header.get_dtype()] += count
                    tensors += 1
        except SafetensorError as error:
            raise CheckFailed(f"{file} is not a complete safetensors file: {error}.") from None
    counts: dict[str, Any] = {
        "files": len(files),
        "count": tensors,
        "parameters": sum(scalars.values()),
        "by_dtype": dict(scalars),
        "bytes": sum(file.stat().st_size for file in files),
    }
    if pickled:
        counts["refused_pickled_files"] = pickled
    return counts
