"""The base's fingerprint beside a trained part: written as training begins, checked at use."""

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
    from peftlab.export.fingerprint.base import Compared
    from peftlab.model.loading import LoadedModel
    from peftlab.run_folder import Staging

logger = logging.getLogger("peftlab")

FINGERPRINT = "peftlab.json"
"""Beside an adapter's or a trained part's files."""

_SHOWN = 3


def begin_on_base(
    config: RunConfig, loaded: LoadedModel, model: nn.Module, staging: Staging
) -> None:
    """Write the fingerprint of the base that training begins on, or check a resumed run's base.

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
                way_out="restore the base and resume, or start again with output.overwrite=true "
                "--resume never",
            )
            return
        logger.warning("%s has no fingerprint of its base, which is assumed to be the same", begun)
    from peftlab.export.fingerprint.base import trained_on

    fingerprint = trained_on(
        loaded.name,
        loaded.revision,
        model,
        trust_remote_code=config.model.trust_remote_code,
    )
    if fingerprint is not None:
        part.mkdir(parents=True, exist_ok=True)
        write_json(part / FINGERPRINT, {"format": 1, "fingerprint": fingerprint})


def check_start(config: RunConfig) -> bool:
    """Check the base against the adapter that `method.init_from` names; as `check_base`."""
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
    way_out: str = "give the base it was trained on, or train again on this one",
    compare: Compared = "source",
) -> bool:
    """Check a base against the fingerprint in the folder of a trained part.

    `what` and `way_out` are parts of the message; `compare` selects the base's tensors as stored or
    their 8-bit codes. Raises `CheckFailed` naming the tensors that differ; warns of a part without
    a fingerprint, or with one that this version cannot read. Returns False where the base's files
    are not on this machine yet: call again once they are.
    """
    if not (part / FINGERPRINT).is_file():
        logger.warning(
            "%s has no fingerprint of its base: only names and shapes are compared", part
        )
        return True
    known = _known(part)
    if later := _of_later_format(known):
        logger.warning("%s: %s; only names and shapes are compared", part / FINGERPRINT, later)
        return True
    if compare == "codes" and "codes" not in known:
        logger.warning(
            "%s has no fingerprint of the 8-bit codes it was trained on, only of the base that "
            "they were quantised from: that is compared", part
        )  # fmt: skip
        compare = "source"
    differences = _differences(known, name, revision, trust_remote_code, compare)
    if differences:
        more = f", and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise CheckFailed(
            f"{name} is not the base that {what or f'{part} was trained on'}: "
            f"{'; '.join(differences[:_SHOWN])}{more}; {way_out}."
        )
    return differences is not None


def fingerprint_state(part: Path, name: str | None, revision: str | None) -> dict[str, Any]:
    """Whether a trained part's base is still the one it was trained on; JSON values.

    `state` is none (there is no fingerprint), matches, differs (`differences` has the sentences),
    or unknown, where there is no base to compare with (`why`).
    """
    if not (part / FINGERPRINT).is_file():
        return {"state": "none"}
    known = _known(part)
    described = {"state": "unknown", "tensors": len(known.get("tensors", {}))}
    if later := _of_later_format(known):
        return {**described, "why": later}
    codes = known.get("codes")
    if not name:
        return {**described, "why": "the adapter names no base"}
    try:
        differences = _differences(known, name, revision, False, "source")
        code_differences = (
            _differences(known, name, revision, False, "codes")
            if codes and differences is not None
            else ()
        )
    except (CheckFailed, ConfigError) as error:
        return {**described, "why": str(error)}
    if differences is None:
        return {**described, "why": f"{name} is not on this machine"}
    if codes:
        described["codes"] = {
            "state": "differs" if code_differences else "matches",
            "tensors": len(codes["tensors"]),
            **({"differences": list(code_differences)} if code_differences else {}),
        }
    if differences:
        return {**described, "state": "differs", "differences": list(differences)}
    return {**described, "state": "matches"}


def rounded_through(part: Path) -> torch.dtype | None:
    """The dtype that a trained part's base was rounded to before it was quantised, if any."""
    from peftlab.export.safetensors_files import DTYPES

    if not (part / FINGERPRINT).is_file():
        return None
    name = _known(part).get("codes", {}).get("rounded")
    return None if name is None else DTYPES[name]


def _of_later_format(known: Mapping[str, Any]) -> str | None:
    from peftlab.export.fingerprint.hashes import FORMAT

    version = known.get("format")
    if isinstance(version, int) and version <= FORMAT:
        return None
    return f"the fingerprint has format {version}, and this version reads up to {FORMAT}"


def _differences(
    known: Mapping[str, Any], name: str, revision: str | None, trusted: bool, compare: Compared
) -> tuple[str, ...] | None:
    from peftlab.export.fingerprint.base import differing

    return differing(known, name, revision, trust_remote_code=trusted, compare=compare)


def _known(part: Path) -> dict[str, Any]:
    """The fingerprint beside a trained part. Raises `CheckFailed` for a file without one."""
    fingerprint = read_json(part / FINGERPRINT).get("fingerprint")
    if not isinstance(fingerprint, dict):
        raise CheckFailed(
            f"{part / FINGERPRINT} holds no fingerprint; train again, or remove the file."
        )
    return fingerprint


def _part(config: RunConfig, folder: Path) -> Path:
    """Where the trained part of a run will be."""
    from peftlab.methods.apply import method_of

    return method_of(config.method).folder(folder)
