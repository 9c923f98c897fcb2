"""Faster, leaner layers inside a model that stays PEFT's: `fuse`, `unfuse`, `FusionReport`.

The classes of single layers are swapped, and nothing else: parameters, state dict, saving, merging
and loading stay what they were. Whatever the kernels cannot compute, PEFT's own forward does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftlab.fusion.class_swap import fuse, unfuse
    from peftlab.fusion.report import FusionReport, NotFused

__all__ = ["FusionReport", "NotFused", "fuse", "unfuse"]


def __getattr__(name: str) -> Any:
    """Import on first use: `peftlab env` needs neither PEFT nor Transformers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from peftlab.fusion import class_swap, report

    return getattr(class_swap if name in {"fuse", "unfuse"} else report, name)
