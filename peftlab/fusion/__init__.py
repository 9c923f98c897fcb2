"""Faster, leaner layers inside a model that stays PEFT's: `fuse`, `unfuse`, `FusionReport`.

The classes of single layers are swapped, and nothing else: parameters, state dict, saving, merging
and loading stay what they were. Whatever the kernels cannot compute, PEFT's own forward does.
"""

from peftlab.fusion.fuse import fuse, unfuse
from peftlab.fusion.report import FusionReport, NotFused

__all__ = ["FusionReport", "NotFused", "fuse", "unfuse"]
