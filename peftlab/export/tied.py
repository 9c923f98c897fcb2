"""Changes of tied parameters: the name they are written under, and whether they stay tied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from peftlab.export.changes import Changes
from peftlab.export.safetensors_files import Stored
from peftlab.export.skeleton import Skeleton


def under_stored_names(
    changes: Changes, built: Skeleton, tied: Mapping[str, tuple[str, ...]]
) -> Changes:
    """Changes of a tied parameter under the one name of it that the checkpoint stores.

    A model names it by the first of its modules, and a checkpoint may hold another: written under
    both, what trained would stand beside the base's own.
    """

    def stored_name(name: str) -> str:
        names = tied.get(name, ())
        if name in built.names or any(n in changes.replaced for n in names if n != name):
            return name
        return next((n for n in names if n in built.names), name)

    return replace(
        changes,
        replaced={stored_name(name): whole for name, whole in changes.replaced.items()},
        rows={stored_name(name): rows for name, rows in changes.rows.items()},
    )


def untied_by(
    changes: Changes, changed: Mapping[str, str], tied: Mapping[str, tuple[str, ...]]
) -> bool:
    """Whether the tensors of a tied pair differ after merging."""
    for name, names in tied.items():
        if name in changed:
            return True
        if name in changes.replaced:
            others = [n for n in names if n != name]
            trained = _saved_as_module(name, changes)
            if any(n not in changes.replaced for n in others) and trained:
                return True
            if any(_differs(changes.replaced[name], changes.replaced.get(n)) for n in others):
                return True
    return False


def _saved_as_module(name: str, changes: Changes) -> bool:
    """Whether a parameter was trained as a whole, rather than saved after resizing the table."""
    if changes.peft is None:
        return False
    saved = changes.peft.modules_to_save or ()
    module = name.rpartition(".")[0]
    return any(module == s or module.endswith(f".{s}") for s in saved)


def _differs(one: Stored, other: Stored | None) -> bool:
    if other is None:
        return False
    same = one.size == other.size and all(
        a == b for a, b in zip(one.chunks(), other.chunks(), strict=True)
    )
    return not same
