"""A base's fingerprint, taken when something is trained on it and compared when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from peftlab.export.fingerprint import codes
from peftlab.export.fingerprint.hashes import differences, fingerprint
from peftlab.export.safetensors_files import Stored, stored_in
from peftlab.export.skeleton import key_names
from peftlab.model.checkpoint import read_checkpoint_config
from peftlab.model.quantized import SCALES
from peftlab_kernels.int8_linear import Int8Linear

Compared = Literal["source", "codes"]
"""What is compared of a base: its tensors as stored, or their 8-bit codes."""

_WRAPPED = "base_model.model."


def trained_on(
    name: str, revision: str | None, model: nn.Module, *, trust_remote_code: bool
) -> dict[str, Any] | None:
    """The fingerprint of the tensors in a checkpoint that a trained model adapts or replaces.

    `model` is the base with the trained part applied; None where the files are not on this machine.
    """
    base = _stored(name, revision, trust_remote_code)
    if not base:
        return None
    keys = _keys(model, base)
    touched, layers = _touched(model)
    tensors = {key: base[key] for name in touched for key in keys.get(name, ())}
    known = fingerprint(tensors or base)
    in_8_bits = {keys[name][0]: layer for name, layer in layers.items() if keys.get(name)}
    if in_8_bits:
        known["codes"] = codes.codes_of(in_8_bits, base)
    return known


def differing(
    known: Mapping[str, Any],
    name: str,
    revision: str | None,
    *,
    trust_remote_code: bool,
    compare: Compared = "source",
) -> tuple[str, ...] | None:
    """Sentences on the differences between a checkpoint and a fingerprint.

    Where the fingerprint has codes, those are compared if `compare` is codes, and for a layer
    that this checkpoint keeps in 8 bits and the other did not, or the other way round. None where
    the checkpoint's files are not on this machine.
    """
    base = _stored(name, revision, trust_remote_code)
    if not base:
        return None
    recorded: Mapping[str, Any] = known.get("tensors", {})
    coded: Mapping[str, Any] = known.get("codes", {"tensors": {}})
    was_8bit = any(key.endswith(SCALES) for key in recorded)
    is_8bit = any(key.endswith(SCALES) for key in base)
    other_form = was_8bit is not is_8bit and bool(coded["tensors"])
    by_codes = [key for key in coded["tensors"] if compare == "codes" or other_form]
    as_stored = [
        key for key in recorded
        # Tensors beside codes may have been cast with them: only the codes are comparable.
        if not other_form and key not in by_codes
    ]  # fmt: skip
    stored_differences = differences(known, base, only=as_stored)
    return stored_differences + (codes.differences(coded, base, only=by_codes) if by_codes else ())


def _stored(name: str, revision: str | None, trust_remote_code: bool) -> dict[str, Stored]:
    checkpoint = read_checkpoint_config(
        name, revision=revision, trust_remote_code=trust_remote_code
    )
    return stored_in(checkpoint.files)


def _keys(model: nn.Module, base: Mapping[str, Stored]) -> dict[str, tuple[str, ...]]:
    """The checkpoint's keys of the base's parameters and buffers, by bare name."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    plain: Any = model if get_base_model is None else get_base_model()
    if not hasattr(plain, "base_model_prefix"):  # a head of peftlab's own, which no checkpoint has
        return {}
    here = {_bare(name): tensor for name, tensor in plain.state_dict().items()}
    names, _, converted = key_names(plain, tuple(base), here)
    return {name: (key,) for name, key in names.items()} | converted


def _touched(model: nn.Module) -> tuple[set[str], dict[str, nn.Module]]:
    """Bare names of tensors that train or that an adapter is added to, and the 8-bit layers there.

    For an 8-bit layer, also those of its scales and its bias.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = {_bare(name) for name, p in model.named_parameters() if p.requires_grad}
    layers: dict[str, nn.Module] = {}
    adapted = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    if isinstance(model, PeftModel) and not adapted:
        # Prompts and prefixes are read by every layer: all of the base is theirs.
        names |= {_bare(name) for name, _ in model.get_base_model().named_parameters()}
    for name, module in adapted:
        base: Any = module.get_base_layer()
        bare = _bare(name)
        names |= {f"{bare}.{part}" for part in base.state_dict()}
        if isinstance(base, Int8Linear):
            layers[f"{bare}.weight"] = base
    return names, layers


def _bare(name: str) -> str:
    """A parameter's name in the base, without the parts that PEFT adds."""
    for part in (".modules_to_save.default", ".original_module", ".base_layer"):
        name = name.replace(part, "")
    return name.removeprefix(_WRAPPED)
