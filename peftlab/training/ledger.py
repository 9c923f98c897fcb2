"""A run's counts so far, kept beside Trainer's own state and saved with it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from peftlab.files import read_json, write_json


@dataclass(slots=True)
class Ledger:
    """Sums over items, tokens and seconds; the best evaluation; the run's settings.

    `loss` and `items` cover the whole run, `window_loss` and `window_items` the part since
    the last logged point, `window_penalty` the penalties of its `window_steps` steps, which no loss
    includes. `training_seconds` excludes evaluating and saving, which `seconds` includes.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    loss: float = 0.0
    items: int = 0
    window_loss: float = 0.0
    window_items: int = 0
    window_penalty: float = 0.0
    window_steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    best_value: float | None = None
    best_step: int | None = None
    best_epoch: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    evaluations_since_best: int = 0
    finished: bool = False
    stopped_early: bool = False
    _since: float | None = None
    _training_since: float | None = None

    def start_clock(self) -> None:
        """Start counting seconds."""
        self._since = self._training_since = time.perf_counter()

    def read_clock(self) -> None:
        """Bring `seconds` and `training_seconds` up to date."""
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
            self._since = now
        if self._training_since is not None:
            self.training_seconds += now - self._training_since
            self._training_since = now

    def stop_clock(self) -> None:
        """Stop counting seconds."""
        self.read_clock()
        self._since = self._training_since = None

    @contextlib.contextmanager
    def not_training(self) -> Iterator[None]:
        """Time inside the block is not training time."""
        self.read_clock()
        self._training_since = None
        try:
            yield
        finally:
            self.read_clock()
            self._training_since = self._since

    def add(self, loss: float, items: int, penalty: float = 0.0) -> None:
        """Add an optimizer step's loss, summed over its items, and the penalty at its weights."""
        self.window_loss += loss
        self.window_items += items
        self.window_penalty += penalty
        self.window_steps += 1

    def close_penalties(self) -> float:
        """The mean penalty over the steps since the last call; NaN where there were none."""
        mean = self.window_penalty / self.window_steps if self.window_steps else math.nan
        self.window_penalty, self.window_steps = 0.0, 0
        return mean

    def close_window(self) -> float:
        """The mean loss over the items since the last call; NaN where there were none."""
        mean = self.window_loss / self.window_items if self.window_items else math.nan
        self.loss += self.window_loss
        self.items += self.window_items
        self.window_loss, self.window_items = 0.0, 0
        return mean

    @property
    def mean_loss(self) -> float:
        """The mean loss over all items of the run so far; NaN before the first."""
        items = self.items + self.window_items
        return (self.loss + self.window_loss) / items if items else math.nan

    def judge(
        self, metrics: Mapping[str, float], metric: str, *, greater: bool, step: int, epoch: float
    ) -> bool:
        """Record an evaluation; True where it is the best so far. NaN only if first."""
        value = metrics[metric]
        best = self.best_value
        better = best is None or math.isnan(best) or (value > best if greater else value < best)
        if not better:
            self.evaluations_since_best += 1
            return False
        self.best_value, self.best_step, self.best_epoch = value, step, epoch
        self.best_metrics = dict(metrics)
        self.evaluations_since_best = 0
        return True

    def save(self, path: Path) -> None:
        """Write the counts that a resumed run needs as JSON."""
        self.read_clock()
        kept = {key: value for key, value in asdict(self).items() if not key.startswith("_")}
        write_json(path, kept)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**read_json(path))
