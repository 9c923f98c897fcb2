"""The one Trainer subclass: the loss is a mean over the items of the whole optimizer step.

Trainer leaves the division to the model, and the losses of classification, token and T5 heads
ignore the item count that it passes: cut into eight micro-batches, a step's gradient is eight times
too large. Here the task sums and this class divides, for every head in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import Trainer
from transformers.training_args import OptimizerNames

from peftlab.errors import CheckFailed, ConfigError
from peftlab.methods.method import StepHooks
from peftlab.methods.penalties.regularization import Regularizer
from peftlab.tasks.task import Batch, Task
from peftlab.training import checkpoint
from peftlab.training.ledger import Ledger
from peftlab.training.parameter_groups import set_learning_rates

logger = logging.getLogger("peftlab")

Evaluate = Callable[[nn.Module], Mapping[str, float]]


class ItemMeanTrainer(Trainer):
    """Trainer with `task.loss_sum` over an optimizer step divided by `task.count_items` over it.

    `evaluate` replaces Trainer's evaluation. `ledger` is updated during training. Penalties are
    applied once per optimizer step and are not part of the loss: their gradient before clipping,
    L1's proximal step after the optimizer's. `hooks` are the method's: a term of the loss, which
    the reported losses do not contain, and work after each optimizer step.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        task: Task,
        ledger: Ledger,
        evaluate: Evaluate | None,
        best_metric: str,
        patience: int | None,
        compute_dtype: torch.dtype,
        regularizer: Regularizer | None,
        learning_rates: Mapping[str, float],
        hooks: StepHooks | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        assert isinstance(self.model, nn.Module)
        self.module: nn.Module = self.model
        # Before 5.20, this and a count keep training_step from dividing a second time.
        self.model_accepts_loss_kwargs = True
        self.task = task
        self.ledger = ledger
        self._evaluate_model = evaluate
        self._best_metric = best_metric
        self._patience = patience
        self._compute_dtype = compute_dtype
        self._regularizer = regularizer
        self._learning_rates = learning_rates
        self._hooks = hooks
        self._staging = Path(str(self.args.output_dir))
        # Their order never changes; collecting them from 200 modules every step would cost as much
        # as a small layer.
        self._trained = [p for p in self.module.parameters() if p.requires_grad]
        self._step_items = 0
        self._step_loss = torch.zeros((), device=self.args.device)

    def _get_num_items_in_batch(
        self, batch_samples: list[Batch], device: torch.device
    ) -> torch.Tensor | int | None:
        """Count the items of the next optimizer step, before its first forward pass."""
        self.ledger.tokens += sum(_take_tokens(batch) for batch in batch_samples)
        self._step_items = sum(self.task.count_items(batch) for batch in batch_samples)
        self._step_loss = torch.zeros((), device=device)
        # A fully masked step has loss 0, not 0 / 0.
        return max(self._step_items, 1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the step's mean loss. `return_outputs` is not supported."""
        if return_outputs or num_items_in_batch is None:
            raise NotImplementedError("evaluation goes through the task, not through Trainer")
        # Our own autocast: Accelerate's wraps model.forward, which a loss over the hidden states
        # never calls, and leaves it wrapped when training is over.
        with torch.autocast(
            self.args.device.type,
            dtype=torch.bfloat16,
            enabled=self._compute_dtype == torch.bfloat16,
        ):
            loss = self.task.loss_sum(model, inputs)
            term = None if self._hooks is None else self._hooks.loss_term(inputs)
        self._step_loss += loss.detach()
        if term is not None:
            loss = loss + self.task.count_items(inputs) * term
        return loss / num_items_in_batch

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        norm = self._finite_norm()
        clip_grads_with_norm_(self._trained, self.args.max_grad_norm, norm)
        return norm

    def _get_grad_norm(
        self, model: nn.Module, grad_norm: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self._finite_norm() if grad_norm is None else grad_norm

    def _finite_norm(self) -> torch.Tensor:
        """The gradient's norm; called once before every optimizer step.

        Raises `CheckFailed` where loss or gradient is not finite, with the weights still as they
        were before this step.
        """
        step = self.state.global_step + 1
        loss = self._step_loss.item()
        penalty = 0.0 if self._regularizer is None else self._regularizer.add_gradient()
        norm = get_total_norm([p.grad for p in self._trained if p.grad is not None])
        advice = (
            "No weight was updated by this step. Lower train.learning_rate, lengthen "
            "train.warmup_steps, or look for invalid rows in the data."
        )
        if loss - loss != 0.0:
            raise CheckFailed(f"Step {step}: the loss is {loss}. {advice}")
        if not torch.isfinite(norm):
            broken = [
                name
                for name, p in self.module.named_parameters()
                if p.grad is not None and not torch.isfinite(p.grad).all()
            ]
            # Finite entries can have a norm beyond fp32.
            whose = broken[0] if broken else "all parameters together"
            raise CheckFailed(
                f"Step {step}: the gradient of {whose} is not finite, while the loss is "
                f"{loss / max(self._step_items, 1):.4g}. {advice}"
            )
        self.ledger.add(loss, self._step_items, penalty)
        return norm

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, made once. Raises `ConfigError` where it is not available here."""
        if self.optimizer is not None:
            # Its groups are split and its hooks are registered.
            made: torch.optim.Optimizer = self.optimizer
            return made
        try:
            optimizer = super().create_optimizer(model)
        except (ImportError, ValueError, RuntimeError) as error:
            name = OptimizerNames(self.args.optim).value
            raise ConfigError(
                f"train.optim is {name}, which cannot be used here: {error} "
                "adamw_torch works everywhere."
            ) from error
        set_learning_rates(optimizer, self.module, self._learning_rates)
        if self._regularizer is not None:
            optimizer.register_step_post_hook(self._shrink)
        if self._hooks is not None:
            optimizer.register_step_post_hook(self._after_step)
        return optimizer

    def _shrink(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """L1's proximal step, at the learning rates that the optimizer's step has just used."""
        assert self._regularizer is not None
        self._regularizer.shrink(
            (parameter, float(group["lr"]))
            for group in optimizer.param_groups
            for parameter in group["params"]
        )

    def _after_step(self, *_: Any) -> None:
        """The method's own work, before the gradients are cleared."""
        assert self._hooks is not None
        self._hooks.after_step(self.state.global_step)

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted: it visits all parameters for every micro-batch, and the result is unused."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log losses as means over items instead of means over steps, and penalties separately."""
        if "loss" in logs:
            logs["loss"] = self.ledger.close_window()
            if self._regularizer is not None:
                logs["penalty"] = self.ledger.close_penalties()
                if (sparsity := self._regularizer.sparsity) is not None:
                    logs["sparsity"] = sparsity
        if "train_loss" in logs:
            logs["train_loss"] = self.ledger.mean_loss
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate by the injected function; save the trained part where it is the best so far."""
        assert self._evaluate_model is not None, "Trainer evaluates only where there is a function"
        with self.ledger.not_training():
            # Schedule-free optimizers hold other weights for training than for use.
            if callable(switch := getattr(self.optimizer, "eval", None)):
                switch()
            values = dict(self._evaluate_model(self.module))
            if self._best_metric not in values:
                raise CheckFailed(
                    f"eval.best is {self._best_metric}, but validation reports {', '.join(values)}."
                )
            step, epoch = self.state.global_step, float(self.state.epoch or 0.0)
            best = self.ledger.judge(
                values,
                self._best_metric,
                greater=bool(self.args.greater_is_better),
                step=step,
                epoch=epoch,
            )
            if best:
                checkpoint.save_trained(self.module, self._staging / checkpoint.BEST)
            report = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            logger.info(
                "Epoch %.4g, step %d: validation %s%s", epoch, step, report, " *" if best else ""
            )
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
            since = self.ledger.evaluations_since_best
            if self._patience is not None and since >= self._patience:
                self.ledger.stopped_early = not self.control.should_training_stop
                self.control.should_training_stop = True
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        with self.ledger.not_training():
            checkpoint.write_checkpoint(
                self._staging, self.state.global_step, self._write_checkpoint
            )

    def _write_checkpoint(self, folder: Path) -> None:
        checkpoint.save_trained(self.module, folder / checkpoint.TRAINED)
        if self._hooks is not None:
            checkpoint.save_method(self._hooks.state(), folder / checkpoint.METHOD)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / checkpoint.STATE))
        self.ledger.finished = self.control.should_training_stop
        self.ledger.save(folder / checkpoint.LEDGER)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        folder = Path(resume_from_checkpoint)
        checkpoint.load_trained(self.module, folder / checkpoint.TRAINED)
        if self._hooks is not None:
            self._hooks.restore(checkpoint.load_tensors(folder / checkpoint.METHOD))


def _take_tokens(batch: Batch) -> int:
    """Tokens of a batch; cached features have their rows' counts in a separate column."""
    if (counts := batch.pop("tokens", None)) is not None:
        return int(torch.as_tensor(counts).sum())
    if (mask := batch.get("attention_mask")) is not None:
        return int(mask.sum())
    ids = batch.get("input_ids")
    return int(ids.numel()) if ids is not None else 0
