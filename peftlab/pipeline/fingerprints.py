"""The base's fingerprint beside a trained part: written as training begins, held to ever after."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import CheckFailed, ConfigError
from peftlab.files import read_json, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftlab.config import RunConfig
    from peftlab.export.fingerprint.base import Asked
    from peftlab.model.loading import LoadedModel
    from peftlab.run_folder import Staging

logger = logging.getLogger("peftlab")

FINGERPRINT = "peftlab.json"
"""Beside an adapter's or a trained part's files."""

_SHOWN = 3


def begin_on_base(
    config: RunConfig, loaded: LoadedModel, model: nn.Module, staging: Staging
) -> None:
    """Write the fingerprint of the base that training begins on, or hold a resumed run to its own.

    `model` is the loaded one with its method applied. Raises `CheckFailed` where the base has
    changed since the run was begun.
    """
    part = _part(config, staging.folder)
    if staging.resume is not None:
        begun = staging.folder.name
        if (part / FINGERPRINT).is_file():
            check_base(
                part,
                config.model.name,
                loaded.revision,
                trust_remote_code=config.model.trust_remote_code,
                what=f"{begun} was begun on",
                way_out="restore the base and resume, or start anew with output.overwrite=true "
                "--resume never",
            )
            return
        logger.warning("%s carries no fingerprint of its base: that it is the same is taken", begun)
    from peftlab.export.fingerprint.base import trained_on

    found = trained_on(
        loaded.name,
        loaded.revision,
        model,
        trust_remote_code=config.model.trust_remote_code,
    )
    if found is not None:
        part.mkdir(parents=True, exist_ok=True)
        write_json(part / FINGERPRINT, {"format": 1, "fingerprint": found})


def check_start(config: RunConfig) -> bool:
    """Hold the base to the adapter that `method.init_from` names; as `check_base`."""
    source = config.method.starts_from
    if source is None:
        return True
    from peftlab.methods.adapter_files import adapter_folder

    folder = adapter_folder(source)
    return check_base(
        folder,
        config.model.name,
        config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        what=f"method.init_from, {folder}, was trained on",
        way_out="set model.name to the base it was trained on, or leave method.init_from out",
    )


def check_base(
    part: Path,
    name: str,
    revision: str | None,
    *,
    trust_remote_code: bool,
    what: str | None = None,
    way_out: str = "give the base it was trained on, or train anew on this one",
    asked: Asked = "source",
) -> bool:
    """Hold a base to the fingerprint that lies in the folder of a trained part.

    `what` and `way_out` are words of the message; `asked` is what of the base counts, its tensors
    as stored or the 8-bit codes that they come to. Raises `CheckFailed` naming the tensors that
    differ; a part without a fingerprint, or with one that this version cannot read, is warned of.
    Returns False where the base's files are not on this machine yet: ask again once they are.
    """
    if not (part / FINGERPRINT).is_file():
        logger.warning(
            "%s carries no fingerprint of its base: only names and shapes are compared", part
        )
        return True
    known = _known(part)
    if later := _of_later_format(known):
        logger.warning("%s: %s; only names and shapes are compared", part / FINGERPRINT, later)
        return True
    if asked == "codes" and "codes" not in known:
        logger.warning(
            "%s does not tell the 8-bit codes it was trained on, only the base that they were made "
            "of: that is compared", part
        )  # fmt: skip
        asked = "source"
    told = _differences(known, name, revision, trust_remote_code, asked)
    if told:
        more = f", and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        raise CheckFailed(
            f"{name} is not the base that {what or f'{part} was trained on'}: "
            f"{'; '.join(told[:_SHOWN])}{more}; {way_out}."
        )
    return told is not None


def fingerprint_state(part: Path, name: str | None, revision: str | None) -> dict[str, Any]:
    """Whether a trained part's base is still the one it was trained on; JSON values.

    `state` is none (it carries no fingerprint), matches, differs (`differences` has the sentences),
    or unknown, where there is no base to compare with (`why`).
    """
    if not (part / FINGERPRINT).is_file():
        return {"state": "none"}
    known = _known(part)
    found = {"state": "unknown", "tensors": len(known.get("tensors", {}))}
    if later := _of_later_format(known):
        return {**found, "why": later}
    codes = known.get("codes")
    if not name:
        return {**found, "why": "the adapter names no base"}
    try:
        told = _differences(known, name, revision, False, "source")
        coded = (
            _differences(known, name, revision, False, "codes")
            if codes and told is not None
            else ()
        )
    except (CheckFailed, ConfigError) as error:
        return {**found, "why": str(error)}
    if told is None:
        return {**found, "why": f"{name} is not on this machine"}
    if codes:
        found["codes"] = {
            "state": "differs" if coded else "matches",
            "tensors": len(codes["tensors"]),
            **({"differences": list(coded)} if coded else {}),
        }
    if told:
        return {**found, "state": "differs", "differences": list(told)}
    return {**found, "state": "matches"}


def rounded_through(part: Path) -> torch.dtype | None:
    """The dtype that a trained part's base went through before it was put in 8 bits, if any."""
    from peftlab.export.safetensors_files import DTYPES

    if not (part / FINGERPRINT).is_file():
        return None
    name = _known(part).get("codes", {}).get("rounded")
    return None if name is None else DTYPES[name]


def _of_later_format(known: Mapping[str, Any]) -> str | None:
    from peftlab.export.fingerprint.hashes import FORMAT

    found = known.get("format")
    if isinstance(found, int) and found <= FORMAT:
        return None
    return f"the fingerprint has format {found}, and this version reads up to {FORMAT}"


def _differences(
    known: Mapping[str, Any], name: str, revision: str | None, trusted: bool, asked: Asked
) -> tuple[str, ...] | None:
    from peftlab.export.fingerprint.base import differing

    return differing(known, name, revision, trust_remote_code=trusted, asked=asked)


def _known(part: Path) -> dict[str, Any]:
    """The fingerprint beside a trained part. Raises `CheckFailed` for a file that has none."""
    found = read_json(part / FINGERPRINT).get("fingerprint")
    if not isinstance(found, dict):
        raise CheckFailed(f"{part / FINGERPRINT} holds no fingerprint; train anew, or remove it.")
    return found


def _part(config: RunConfig, folder: Path) -> Path:
    """Where the trained part of a run will lie."""
    from peftlab.methods.apply import method_of

    return method_of(config.method).folder(folder)
