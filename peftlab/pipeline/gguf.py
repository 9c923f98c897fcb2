"""GGUF through llama.cpp's own converter, from a checkout that the user names."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peftlab.errors import CheckFailed, ConfigError, VerificationError

CONVERTER = "convert_hf_to_gguf.py"
_MAGIC = b"GGUF"


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
        raise ConfigError(f"-o {out}: a GGUF model is one file; name it something.gguf.")
    if out.exists():
        raise ConfigError(f"-o {out} exists; name a file that does not.")
    return Path(checkout) / CONVERTER


def export_gguf(path: Path, out: Path, checkout: Path, **settings: Any) -> dict[str, Any]:
    """Merge into a temporary folder, convert that, and read the file's head back.

    Raises as `exporting.export`, `CheckFailed` with the converter's last line where it fails.
    """
    from peftlab.pipeline.exporting import export

    converter = check_converter(str(checkout), out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        merged, made = Path(folder) / "merged", Path(folder) / out.name
        report = export(path, merged, **settings)
        done = subprocess.run(
            [sys.executable, str(converter), str(merged), "--outfile", str(made)],
            capture_output=True,
            text=True,
        )
        if done.returncode or not made.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
            raise CheckFailed(f"llama.cpp's converter refused the merged model: {said[-1]}")
        tensors = _smoke_check(made)
        made.replace(out)
    return {"file": str(out), "tensors": tensors, "merge": report.to_json()}


def _smoke_check(file: Path) -> int | None:
    """The file's tensors by the `gguf` package's reader; without it, at least its mark."""
    with file.open("rb") as opened:
        if opened.read(4) != _MAGIC:
            raise VerificationError(f"{file.name} is no GGUF file; nothing was written.")
    try:
        from gguf import GGUFReader
    except ImportError:
        return None
    return len(GGUFReader(file).tensors)
