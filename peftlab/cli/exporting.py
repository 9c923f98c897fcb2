"""The command `export`: its flags are checked before anything heavy is imported."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftlab.cli import texts
from peftlab.cli.screen import Screen
from peftlab.errors import ConfigError


def export(folder: Path, options: Namespace) -> tuple[Any, Callable[[Screen], None]]:
    """Merge a run or an adapter and write the model; returns JSON values and how to show them."""
    if options.output is None:
        raise ConfigError("peftlab export needs -o DIR, a new or empty folder.")
    size = _size(options.max_shard_size)
    _among("--dtype", options.dtype, (None, "float32", "bfloat16", "float16"))
    _among("--merge-base", options.merge_base, ("auto", "original", "dequant", "requant"))
    _among("--to", options.to, ("safetensors", "gguf"))
    out = Path(options.output)
    if options.to == "gguf":
        from peftlab.pipeline.export.gguf import check_converter

        check_converter(options.llama_cpp, out)
    import torch

    from peftlab.pipeline.export.runs import export as run

    settings = {
        "base": options.base,
        "dtype": None if options.dtype is None else getattr(torch, options.dtype),
        "max_shard_size": size,
        "merge_base": options.merge_base,
        "verify": not options.no_verify,
    }
    if options.to == "gguf":
        from peftlab.pipeline.export.gguf import export_gguf

        result = export_gguf(folder, out, Path(options.llama_cpp), **settings)
        return result, lambda screen: screen.line(f"Wrote {result['file']} and read it back")
    report = run(folder, out, **settings).to_json()
    return report, lambda screen: texts.show_export(screen, out, report)


def _size(text: str) -> int:
    from peftlab.config import parse_bytes

    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--max-shard-size {error}.") from None
    if size < 1:
        raise ConfigError(f"--max-shard-size {text}: allowed: a size above 0, such as 5GB.")
    return size


def _among(flag: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        names = ", ".join(name for name in allowed if name is not None)
        raise ConfigError(f"{flag} {value}: allowed: {names}.")
