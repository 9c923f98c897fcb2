"""Adapters of other types than LoRA: merged by PEFT on the whole model, in fp32 in memory.

What PEFT changed of the base is written as whole tensors; what it left alone is copied from the
base's files like everything that no adapter is on.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file

from peftlab.errors import CheckFailed
from peftlab.export.changes import Changes
from peftlab.export.safetensors_files import Stored, stored_tensors
from peftlab.export.skeleton import Skeleton, tied_names
from peftlab.export.source import Source
from peftlab.export.streamed import logits, sample_inputs
from peftlab.methods.adapter_files import WEIGHTS, adapter_tensors, check_same_tensors
from peftlab.model.head_spec import HeadSpec
from peftlab.model.loading import load_model

_FAULTS = (
    ValueError, RuntimeError, TypeError, AttributeError, KeyError, IndexError, AssertionError,
)  # fmt: skip


@contextmanager
def merged_by_peft(
    source: Source,
    built: Skeleton,
    base: Mapping[str, Stored],
    *,
    trust_remote_code: bool,
) -> Iterator[tuple[Changes, torch.Tensor]]:
    """The weights that an adapter changes, merged, and the adapted model's logits.

    The logits are for `streamed.sample_inputs`. The weights lie in a temporary file for as long as
    the block lasts. Raises `CheckFailed` where PEFT cannot merge the adapter.
    """
    adapted = _adapted(source, built, trust_remote_code)
    kind = str(source.changes.peft.peft_type.value)
    expected = logits(adapted, sample_inputs(built))
    if source.replay is not None:
        source.replay(adapted)
    _refuse_converted(adapted, built, source.changes)
    try:
        merged: Any = adapted.merge_and_unload()
    except _FAULTS as error:
        raise CheckFailed(
            f"{source.changes.source} is {kind}, which PEFT cannot merge into this base: "
            f"{str(error).rstrip('.')}."
        ) from None
    changed = _changed(merged, built, base, source.changes)
    del adapted, merged
    with tempfile.TemporaryDirectory(prefix="peftlab-merge-") as folder:
        file = Path(folder) / "changed.safetensors"
        save_file(changed, file)
        yield (
            Changes(source.changes.source, replaced=stored_tensors(file), peft=source.changes.peft),
            expected,
        )


def _adapted(source: Source, built: Skeleton, trust_remote_code: bool) -> PeftModel:
    """The base in fp32 with the adapter on it, every tensor of which has been read."""
    folder = source.changes.source
    if source.auto_class is None:
        raise CheckFailed(
            f"{folder / 'adapter_config.json'} names no task_type, so the class of its base is not "
            "known; write one there."
        )
    updates = dict(source.config)
    if source.auto_class.endswith("Classification") and "id2label" not in updates:
        updates["num_labels"] = built.config.num_labels
    loaded = load_model(
        source.base, HeadSpec(source.auto_class, updates), revision=source.revision,
        dtype="float32", trust_remote_code=trust_remote_code,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model: Any = loaded.model
            adapted = PeftModel.from_pretrained(model, str(folder)).eval()
        except _FAULTS as error:
            raise CheckFailed(f"PEFT cannot load {folder}: {error}.") from None
    saved = load_file(folder / WEIGHTS)
    mine = adapter_tensors(adapted)
    check_same_tensors(saved, mine, str(folder / WEIGHTS))
    for name, tensor in mine.items():
        if not torch.equal(tensor.detach(), saved[name]):
            raise CheckFailed(f"PEFT reads {name} of {folder / WEIGHTS} otherwise than it is.")
    return adapted


def _refuse_converted(adapted: PeftModel, built: Skeleton, changes: Changes) -> None:
    """Raise for an adapter on what the checkpoint has in other tensors, which none could replace.

    The rest of such tensors is copied from the base's files as it is.
    """
    for name, module in adapted.named_modules():
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            continue
        place = name.removeprefix("base_model.model.")
        for full, keys in built.converted.items():
            if full.startswith(f"{place}."):
                raise CheckFailed(
                    f"{changes.source} adapts {place}, which Transformers builds from {len(keys)} "
                    "tensors of the checkpoint; not mergeable."
                )


def _changed(
    merged: Any, built: Skeleton, base: Mapping[str, Stored], changes: Changes
) -> dict[str, torch.Tensor]:
    """Merged parameters that are not the base's, and those that its files do not hold."""
    ties = tied_names(built.model)
    changed: dict[str, torch.Tensor] = {}
    # LN tuning's merge leaves modules that trained whole beside their originals.
    parameters = {
        name.replace(".modules_to_save.default.", "."): parameter
        for name, parameter in merged.named_parameters()
        if ".original_module." not in name
    }
    for name, parameter in parameters.items():
        key = built.names.get(name) or next(
            (built.names[n] for n in ties.get(name, ()) if n in built.names), None
        )
        tensor = parameter.detach()
        if key is None and name in built.converted:
            continue  # No adapter is on it: `_refuse_converted`.
        if key is None or not torch.equal(base[key].read().float(), tensor.float()):
            changed[name] = tensor.float().contiguous()
    if lacking := sorted(changes.replaced.keys() - changed.keys()):
        # A module that trained whole and came out as it began is still said to be trained.
        changed |= {n: parameters[n].detach().float().contiguous() for n in lacking}
    return changed
