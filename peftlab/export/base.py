"""A base's fingerprint, taken when something is trained on it and compared when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from peftlab.export.fingerprint import differences, fingerprint
from peftlab.export.safetensors_files import Stored, stored_in
from peftlab.model.checkpoint import read_checkpoint_config

_WRAPPED = "base_model.model."


def trained_on(
    name: str, revision: str | None, model: nn.Module, *, trust_remote_code: bool
) -> dict[str, Any] | None:
    """The fingerprint of the tensors in a checkpoint that a trained model adapts or replaces.

    `model` is the base with the trained part on it; None where the files are not on this machine.
    """
    base = _stored(name, revision, trust_remote_code)
    if not base:
        return None
    touched = _touched(model)
    # By the end of their names: a checkpoint of the bare base lacks the prefix.
    found = {key: t for key, t in base.items() if any(_same(key, name) for name in touched)}
    return fingerprint(found or base)


def differing(
    known: Mapping[str, Any], name: str, revision: str | None, *, trust_remote_code: bool
) -> tuple[str, ...] | None:
    """Sentences on what a checkpoint has otherwise than the fingerprint says.

    None where its files are not on this machine.
    """
    base = _stored(name, revision, trust_remote_code)
    return differences(known, base) if base else None


def _stored(name: str, revision: str | None, trust_remote_code: bool) -> dict[str, Stored]:
    checkpoint = read_checkpoint_config(
        name, revision=revision, trust_remote_code=trust_remote_code
    )
    return stored_in(checkpoint.files)


def _touched(model: nn.Module) -> set[str]:
    """Names of parameters that train, or that an adapter is added to."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            base: Any = module.get_base_layer()
            found |= {f"{name}.{part}" for part, _ in base.named_parameters()}
    return {name.removeprefix(_WRAPPED).replace(".modules_to_save.default", "") for name in found}


def _same(key: str, name: str) -> bool:
    return key == name or name.endswith(f".{key}") or key.endswith(f".{name}")
