"""Trainer callbacks: when to save and stop, and a progress bar on terminals."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftlab.errors import Interrupted
from peftlab.training.ledger import Ledger
from peftlab.training.process import StopSignals


class CheckpointCallback(TrainerCallback):
    """Saves checkpoints after the evaluation they belong to, and stops on a signal.

    Trainer saves a step's checkpoint before the evaluation at the end of its epoch; a run resumed
    from there would skip that evaluation.
    """

    def __init__(self, ledger: Ledger, signals: StopSignals, steps_per_epoch: int) -> None:
        self._ledger = ledger
        self._signals = signals
        self._steps_per_epoch = steps_per_epoch
        self._save_due = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # A resumed state has the intervals of the run that wrote it.
        state.compute_steps(args, state.max_steps)
        self._ledger.start_clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step = state.global_step
        if step % self._steps_per_epoch == 0 or step >= state.max_steps:
            self._save_due = control.should_save
            control.should_save = False
        elif self._signals.requested:
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_log = True
        if self._save_due or self._signals.requested:
            control.should_save = True
        self._save_due = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._signals.requested:
            raise Interrupted(
                f"{self._signals.requested}: stopped after step {state.global_step} of "
                f"{state.max_steps}; a checkpoint was saved."
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._ledger.stop_clock()


class ProgressBar(TrainerCallback):
    """Steps on stderr, only where stderr is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._bar = tqdm(
            desc="train",
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            dynamic_ncols=True,
            leave=False,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._bar.update(state.global_step - self._bar.n if not self._bar.disable else 0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs and self._bar is not None:
            self._bar.set_postfix(loss=f"{logs['loss']:.4g}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._bar is not None:
            self._bar.close()
