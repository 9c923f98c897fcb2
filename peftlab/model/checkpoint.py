"""A checkpoint before any weight is read: its location, configuration and dtype.

Weights are read as safetensors only: unpickling a file runs whatever code it holds.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from peftlab.errors import CheckFailed, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")

_FLOATS = {"F64": torch.float32, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_UNLIMITED = 1_000_000
"""Tokenizers without a limit have a number far above this one."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's location, configuration and headers; see `read_checkpoint_config`.

    `name` is what to load from (a folder's absolute path, or the hub id); `revision` is the hub's
    commit, None for a folder; `files` are the weight files already on this disk (a hub model that
    is not cached yet has none); `at_rest` is the dtype of most parameters; `max_length_limit`
    counts tokens, None without a limit; `in_8bit`: its blocks' linears are stored as bitsandbytes'
    int8 rows.
    """

    name: str
    folder: Path | None
    revision: str | None
    config: PreTrainedConfig
    files: tuple[Path, ...]
    at_rest: torch.dtype
    hidden_size: int
    max_length_limit: int | None
    in_8bit: bool = False


def read_checkpoint_config(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Read the configuration and the headers of a local folder or a hub id; no weights.

    Raises `CheckFailed` where it is missing, pickled, damaged, an adapter, quantised other than in
    8-bit rows, or needs custom code; `ConfigError` for a revision of a local folder.
    """
    folder = local_folder(name)
    if folder is not None and revision is not None:
        raise ConfigError(f"model.revision is {revision!r}, but {name} is a local folder; drop it.")
    raw_file, commit = _config_file(name, folder, revision)
    raw = _read_json(raw_file)
    check_config(name, raw, trust_remote_code)
    config = _load_config(name, folder, commit or revision, trust_remote_code)
    files = _local_weights(folder if folder is not None else raw_file.parent, name, folder is None)
    return Checkpoint(
        name=str(folder) if folder is not None else name,
        folder=folder,
        revision=commit,
        config=config,
        files=files,
        at_rest=_dtype_of(files, raw),
        hidden_size=int(config.get_text_config().hidden_size),
        max_length_limit=_length_limit(config, raw_file.parent),
        in_8bit=_in_8bit(raw) or any(key.endswith(".SCB") for key in tensor_shapes(files)),
    )


def local_folder(name: str) -> Path | None:
    """The folder that a name refers to, absolute; None for a hub id.

    Raises `CheckFailed` for a name that can only be a path and is not a folder.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()
    if looks_local:
        what = "is a file, not a folder" if path.is_file() else "does not exist"
        raise CheckFailed(
            f"model.name is {name}, which {what}; give a folder with config.json and "
            "model.safetensors, or a hub id like google-bert/bert-base-uncased."
        )
    return None


def check_config(name: str, raw: dict[str, Any], trust_remote_code: bool) -> None:
    """Refuse unusable checkpoints by config.json alone. Raises `CheckFailed`."""
    from transformers import CONFIG_MAPPING

    kind = raw.get("model_type")
    known = kind in CONFIG_MAPPING
    if raw.get("auto_map") and not known and not trust_remote_code:
        raise CheckFailed(
            f"{name} runs Python code of its checkpoint ({kind or 'unnamed'} is no architecture "
            "of Transformers); read that code, then set model.trust_remote_code=true."
        )
    if not known and not raw.get("auto_map"):
        raise CheckFailed(
            f"{name} has model_type {kind!r} in its config.json, which this version of "
            "Transformers does not support; upgrade transformers or choose another model."
        )
    quantised = raw.get("quantization_config")
    if quantised and not _in_8bit(raw):
        method = quantised.get("quant_method", "unknown")
        raise CheckFailed(
            f"{name} is already quantised ({method}); give the original checkpoint, and set "
            "method.name=qlora to quantise it to 8 bits."
        )


def _in_8bit(raw: dict[str, Any]) -> bool:
    """Whether config.json declares bitsandbytes' 8-bit layers."""
    return bool((raw.get("quantization_config") or {}).get("load_in_8bit"))


def _config_file(name: str, folder: Path | None, revision: str | None) -> tuple[Path, str | None]:
    if folder is not None:
        if (folder / "config.json").is_file():
            return folder / "config.json", None
        if (folder / "adapter_config.json").is_file():
            raise CheckFailed(
                f"{name} is an adapter, not a model; set model.name to the base it was trained on "
                "and method.init_from to this folder."
            )
        raise CheckFailed(f"{name} has no config.json; give a folder that save_pretrained wrote.")
    from transformers.utils.hub import cached_file, extract_commit_hash

    try:
        cached = cached_file(name, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        raise CheckFailed(_unreachable(name, revision, error)) from None
    if cached is None:
        raise CheckFailed(_unreachable(name, revision, "it has no config.json"))
    return Path(cached), extract_commit_hash(cached, None)


def _unreachable(name: str, revision: str | None, error: object) -> str:
    at = f" at revision {revision}" if revision else ""
    first = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
    return (
        f"model.name is {name}{at}, which is not a local folder and not available from the "
        f"Hugging Face hub ({first}); check the name and the network, or give a local folder."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckFailed(f"{path} is not readable as JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckFailed(f"{path} does not hold a JSON object.")
    return value


def _load_config(
    name: str, folder: Path | None, revision: str | None, trust_remote_code: bool
) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder or name, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckFailed(f"The config.json of {name} cannot be used: {error}.") from None
    if getattr(config, "hidden_size", None) is None and not hasattr(config, "text_config"):
        raise CheckFailed(
            f"{name} ({config.model_type}) is not a text model: it has no hidden_size."
        )
    return config


def _local_weights(folder: Path, name: str, cached: bool) -> tuple[Path, ...]:
    """The safetensors files of a folder. A hub snapshot may not have them yet."""
    if (folder / INDEX).is_file():
        shards = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckFailed(f"{folder / INDEX} names no weight files.")
        files = tuple(folder / str(shard) for shard in sorted(set(shards.values())))
        outside = [p for p in files if p.parent != folder or ".." in p.parts]
        if outside:
            raise CheckFailed(f"{folder / INDEX} names {outside[0]}, which is outside {folder}.")
        _refuse_links(files, folder)
        missing = [p.name for p in files if not p.is_file()]
        if missing and not cached:
            raise CheckFailed(f"{name} lacks {len(missing)} of its files, such as {missing[0]}.")
        return () if missing else files
    if (folder / SINGLE).is_file():
        _refuse_links((folder / SINGLE,), folder)
        return (folder / SINGLE,)
    if cached:
        return ()
    pickled = sorted(p.name for pattern in PICKLED for p in folder.glob(pattern))
    if pickled:
        raise CheckFailed(
            f"{name} holds pickled weights only ({pickled[0]}), and unpickling runs code; convert "
            "them once where you trust them (from_pretrained, then save_pretrained writes "
            "safetensors), or choose a revision with model.safetensors."
        )
    raise CheckFailed(f"{name} has no {SINGLE}; give a folder that save_pretrained wrote.")


def _refuse_links(files: tuple[Path, ...], folder: Path) -> None:
    """Refuse links out of the folder: a foreign checkpoint must not read other files.

    Raises `CheckFailed`. In the hub's cache every file is a link to the blobs beside it.
    """
    real = folder.resolve()
    blobs = real.parent.parent / "blobs" if real.parent.name == "snapshots" else None
    for file in files:
        if not file.is_symlink():
            continue
        target = file.resolve()
        if target.parent not in (real, blobs):
            raise CheckFailed(
                f"{file} is a link to {target}, which is outside {folder}; copy the file there."
            )


def tensor_shapes(files: tuple[Path, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every tensor's dtype, in safetensors' spelling, and shape; `CheckFailed` if damaged."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (safe_open is not a mapping)
                    header = opened.get_slice(key)
                    shapes[key] = (header.get_dtype(), tuple(header.get_shape()))
        except (SafetensorError, OSError) as error:
            raise CheckFailed(
                f"{file} is not a complete safetensors file ({error}); download it again."
            ) from None
    return shapes


def _dtype_of(files: tuple[Path, ...], raw: dict[str, Any]) -> torch.dtype:
    """The floating dtype of most parameters; by config.json where no file is here yet."""
    scalars: Counter[str] = Counter()
    for key, (dtype, shape) in tensor_shapes(files).items():
        if dtype in _FLOATS and not key.endswith(".SCB"):  # scales of 8-bit weights are always fp32
            scalars[dtype] += prod(shape)
    if scalars:
        return _FLOATS[scalars.most_common(1)[0][0]]
    named = str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch.")
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(named, torch.float32)


def _length_limit(config: PreTrainedConfig, folder: Path) -> int | None:
    """Tokens that the model can read: by its positions, and by its tokenizer's limit."""
    limits = []
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and not hasattr(config, "relative_attention_num_buckets"):
        limits.append(positions)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        limit = _read_json(tokenizer).get("model_max_length")
        if isinstance(limit, int | float) and 0 < limit < _UNLIMITED:
            limits.append(int(limit))
    return min(limits) if limits else None
