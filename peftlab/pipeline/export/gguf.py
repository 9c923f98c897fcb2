"""GGUF through llama.cpp's own converter, from a checkout that the user names."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peftlab.errors import CheckFailed, ConfigError, VerificationError
from peftlab.files import fsync, read_json, remove_empty

CONVERTER = "convert_hf_to_gguf.py"
_MAGIC = b"GGUF"
_OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_NO_8_BITS = (
    "llama.cpp's converter does not read bitsandbytes' 8-bit weights; give --merge-base original "
    "or dequant, and quantise the GGUF file with llama.cpp."
)


def check_converter(checkout: str | None, out: Path) -> Path:
    """llama.cpp's converter in a checkout. Raises `ConfigError` saying how to get one."""
    if checkout is None or not (Path(checkout) / CONVERTER).is_file():
        where = "" if checkout is None else f"; {checkout} has no {CONVERTER}"
        raise ConfigError(
            "GGUF is written by llama.cpp's own converter: git clone "
            "https://github.com/ggml-org/llama.cpp, pip install gguf, and name the checkout with "
            f"--llama-cpp DIR{where}. Or export safetensors, which it converts as well."
        )
    if out.suffix != ".gguf":
        raise ConfigError(f"-o {out}: a GGUF model is one file; name it NAME.gguf.")
    if out.exists():
        raise ConfigError(f"-o {out} exists; name a file that does not.")
    return Path(checkout) / CONVERTER


def export_gguf(path: Path, out: Path, checkout: Path, **settings: Any) -> dict[str, Any]:
    """Merge into a temporary folder, convert it, and read the file's header back.

    The file has the merged model's dtype. Raises as `runs.export`, `CheckFailed` with the
    converter's last line where it fails, `VerificationError` where its output is not a model;
    nothing is left then.
    """
    from peftlab.pipeline.export.runs import export

    converter = check_converter(str(checkout), out)
    if settings.get("merge_base") == "requant":
        raise ConfigError(f"--merge-base requant: {_NO_8_BITS}")
    created = [p for p in (out.parent, *out.parent.parents) if not p.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            merged, file = Path(folder) / "merged", Path(folder) / out.name
            report = export(path, merged, **settings)
            if "scales" in report.counts:
                raise CheckFailed(f"The nearest merge is in 8 bits: {_NO_8_BITS}")
            _convert(converter, merged, file)
            tensors = _smoke_check(file)
            fsync(file)
            file.replace(out)
    except BaseException:
        remove_empty(created)
        raise
    return {"file": str(out), "tensors": tensors, "merge": report.to_json()}


def _convert(converter: Path, merged: Path, file: Path) -> None:
    config = read_json(merged / "config.json")
    # Explicitly, since by default the converter narrows fp32 to 16 bits.
    dtype = _OUTTYPES.get(str(config.get("dtype")), "auto")
    done = subprocess.run(
        [
            sys.executable, str(converter), str(merged),
            "--outfile", str(file), "--outtype", dtype,
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode or not file.is_file():
        output = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()
        raise CheckFailed(f"llama.cpp's converter refused the merged model: {output[-1]}")


def _smoke_check(file: Path) -> int | None:
    """The number of tensors by the `gguf` package; without it, only the magic is checked."""
    with file.open("rb") as opened:
        if opened.read(4) != _MAGIC:
            raise VerificationError(f"{file.name} is not a GGUF file; nothing was written.")
    try:
        from gguf import GGUFReader
    except ImportError:
        return None
    try:
        tensors = len(GGUFReader(file).tensors)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise VerificationError(
            f"{file.name} cannot be read back ({error}); nothing was written."
        ) from None
    if not tensors:
        raise VerificationError(f"{file.name} holds no tensor; nothing was written.")
    return tensors
