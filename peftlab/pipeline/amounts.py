"""The numbers of a run: tokens per row, rows per forward pass, optimizer steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from peftlab.errors import CheckFailed

if TYPE_CHECKING:
    from peftlab.config import RunConfig
    from peftlab.config.schema import TrainConfig

LONGEST_AUTO = 512
"""`data.max_length: auto` never exceeds this many tokens, whatever the model's limit."""


def chosen_length(config: RunConfig, limit: int | None) -> int:
    """Tokens per row. Raises `CheckFailed` where the model cannot read that many."""
    requested = config.data.max_length
    virtual = config.method.virtual_tokens
    beside = f" beside the method's {virtual}" if virtual else ""
    if limit is not None:
        limit -= virtual
        if limit < 2:
            raise CheckFailed(
                f"{config.model.name} reads {limit + virtual} tokens at most, and the method puts "
                f"{virtual} before each row; set method.num_virtual_tokens lower."
            )
    if requested == "auto":
        return min(LONGEST_AUTO, limit or LONGEST_AUTO)
    if limit is not None and requested > limit:
        raise CheckFailed(
            f"data.max_length is {requested}; {config.model.name} reads {limit} tokens at most"
            f"{beside}; set data.max_length to {limit} or less."
        )
    return requested


def micro_batch(config: RunConfig) -> int:
    """Rows a forward pass: as set, or the largest divisor of the global batch up to 16."""
    train = config.train
    if train.micro_batch_size != "auto":
        return train.micro_batch_size
    largest = min(16, train.global_batch_size)
    return next(n for n in range(largest, 0, -1) if train.global_batch_size % n == 0)


def optimizer_steps(train: TrainConfig, rows: int) -> int:
    """The optimizer steps of a whole run over so many training rows."""
    per_epoch = math.ceil(rows / train.global_batch_size)
    return train.max_steps or math.ceil(train.num_train_epochs * per_epoch)
