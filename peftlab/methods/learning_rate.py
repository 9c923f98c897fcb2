"""What `train.learning_rate: auto` means."""

from __future__ import annotations

import math
from typing import assert_never

from peftlab.config.schema import (
    FullMethod,
    HeadMethod,
    LastNMethod,
    LoraMethod,
    MethodConfig,
    QLoraMethod,
)


def default_learning_rate(method: MethodConfig, hidden_size: int) -> float:
    """A learning rate by method and width, for AdamW with warm-up.

    Rates that worked at a width of 384 (head 5e-3, last blocks and LoRA 5e-4, full 1e-4), scaled by
    the inverse of the width, as muP has it for hidden matrices, and capped for narrow models.
    LoRA's falls with the root alone, which meets the 1e-4 to 2e-4 usual at a width of 4,096. A head
    on frozen features is a convex problem and keeps its rate.
    """
    match method:
        case HeadMethod():
            return 5e-3
        case LastNMethod():
            return min(2e-3, 0.192 / hidden_size)
        case LoraMethod() | QLoraMethod():
            # Twice as much trains faster, until with some seeds the model collapses to one class:
            # at a width of 384 one of two did on SST-2 with r=16.
            return min(1e-3, 5e-4 * math.sqrt(384 / hidden_size))
        case FullMethod():
            return min(1e-3, 0.0384 / hidden_size)
        case _:
            assert_never(method)
