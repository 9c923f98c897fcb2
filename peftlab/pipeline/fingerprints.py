"""The base's fingerprint beside a trained part: written as training begins, held to ever after."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from peftlab import run_folder
from peftlab.errors import CheckFailed

if TYPE_CHECKING:
    from peftlab.config import RunConfig
    from peftlab.pipeline.preparation import Prepared
    from peftlab.run_folder import Staging

logger = logging.getLogger("peftlab")

FINGERPRINT = "peftlab.json"
"""Beside an adapter's or a trained part's files."""

_SHOWN = 3


def begin_on_base(prepared: Prepared, staging: Staging) -> None:
    """Write the fingerprint of the base that training begins on, or hold a resumed run to its own.

    Raises `CheckFailed` where the base has changed since the run was begun.
    """
    part = _part(prepared, staging.folder)
    if staging.resume is not None:
        begun = staging.folder.name
        if (part / FINGERPRINT).is_file():
            held_to(
                prepared.checked.config, part, f"{begun} was begun on",
                "restore the base and resume, or start anew with output.overwrite=true "
                "--resume never", revision=prepared.loaded.revision,
            )  # fmt: skip
            return
        logger.warning("%s carries no fingerprint of its base: that it is the same is taken", begun)
    from peftlab.export.base import trained_on

    found = trained_on(
        prepared.loaded.name,
        prepared.loaded.revision,
        prepared.applied.model,
        trust_remote_code=prepared.checked.config.model.trust_remote_code,
    )
    if found is not None:
        part.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(part / FINGERPRINT, {"format": 1, "fingerprint": found})


def check_start(config: RunConfig) -> None:
    """Hold the base to the adapter that `method.init_from` names. Raises `CheckFailed`."""
    source = getattr(config.method, "init_from", None)
    if source is None:
        return
    from peftlab.strategies.adapter_files import adapter_folder

    folder = adapter_folder(source)
    held_to(
        config, folder, f"method.init_from, {folder}, was trained on",
        "set model.name to the base it was trained on, or leave method.init_from out",
    )  # fmt: skip


def held_to(
    config: RunConfig, part: Path, what: str, way_out: str, *, revision: str | None = None
) -> None:
    """`check_base` of a configuration's model, at its own revision where none is given."""
    check_base(
        part,
        config.model.name,
        revision or config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        what=what,
        way_out=way_out,
    )


def check_base(
    part: Path,
    name: str,
    revision: str | None,
    *,
    trust_remote_code: bool,
    what: str | None = None,
    way_out: str = "give the base it was trained on, or train anew on this one",
) -> None:
    """Hold a base to the fingerprint that lies in the folder of a trained part.

    `what` and `way_out` are words of the message. Raises `CheckFailed` naming the tensors that
    differ; a part without a fingerprint is warned of.
    """
    told = base_differences(part, name, revision, trust_remote_code=trust_remote_code)
    if told is None:
        logger.warning(
            "%s carries no fingerprint of its base: only names and shapes are compared", part
        )
    elif told:
        more = f", and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        raise CheckFailed(
            f"{name} is not the base that {what or f'{part} was trained on'}: "
            f"{'; '.join(told[:_SHOWN])}{more}; {way_out}."
        )


def base_differences(
    part: Path, name: str, revision: str | None, *, trust_remote_code: bool
) -> tuple[str, ...] | None:
    """Sentences on what a base has otherwise than a trained part's fingerprint; None without one.

    Raises `CheckFailed` where the fingerprint or the base cannot be read.
    """
    file = part / FINGERPRINT
    if not file.is_file():
        return None
    from peftlab.export.base import differing

    known = run_folder.read_json(file).get("fingerprint", {})
    return differing(known, name, revision, trust_remote_code=trust_remote_code)


def _part(prepared: Prepared, folder: Path) -> Path:
    """Where the trained part of a run will lie."""
    from peftlab.strategies.trained_part import ADAPTER, TRAINED

    adapted = prepared.checked.config.method.name in ("lora", "qlora")
    return folder / (ADAPTER if adapted else TRAINED)
