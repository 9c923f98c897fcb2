"""The forms of a base that an 8-bit run can be merged into, and which of them is nearest."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from peftlab.pipeline import preparation
from peftlab.pipeline.fingerprints import rounded_through
from peftlab.pipeline.fusing import by_choices_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftlab.export.source import Source
    from peftlab.pipeline.opened import OpenedRun

logger = logging.getLogger("peftlab")

Form = Literal["original", "dequant", "requant"]


def over(source: Source, merge_base: Form, *, trust_remote_code: bool = False) -> Source:
    """The same trained part over another form of its base."""
    from peftlab.model.checkpoint import read_checkpoint_config, tensor_shapes
    from peftlab.model.quantized import eight_bit_linears

    if merge_base == "original":
        return replace(source, quantised=None, requantise=False)
    base = read_checkpoint_config(
        source.base, revision=source.revision, trust_remote_code=trust_remote_code
    )
    # Of an 8-bit checkpoint, exactly the layers that it stores in 8 bits.
    stored = tuple(tensor_shapes(base.files)) if base.in_8bit else None
    return replace(
        source,
        quantised=lambda model: eight_bit_linears(model, stored),
        through=rounded_through(source.changes.source),
        requantise=merge_base == "requant",
    )


def nearest(run: OpenedRun, source: Source) -> Source:
    """The form of an 8-bit run's base over which the merged model is nearest to what was trained.

    Measured on rows of the run's own data: the mean KL divergence of the outputs, which chooses,
    and the task's metric of each form (of seq2seq the loss: texts are not generated for this).
    """
    import torch

    from peftlab.evaluation import evaluate
    from peftlab.export.nearest import table_of
    from peftlab.export.streamed import logits
    from peftlab.model.checkpoint import read_checkpoint_config

    available: tuple[Form, ...] = ("original", "dequant", "requant")
    if read_checkpoint_config(source.base, revision=source.revision).in_8bit:
        # The 16-bit checkpoint that its codes were quantised from is not available.
        available = available[1:]
    forms: dict[str, Source] = {name: over(source, name) for name in available}
    ready, task = run.loaded, run.task.without_texts()
    rows = _sample(run)
    collate = task.collator(ready.tokenizer)
    inputs = task.model_inputs(collate(rows))

    def measure(model: nn.Module, device: torch.device, compute: torch.dtype) -> float:
        evaluation = evaluate(
            model, task, rows, collate,
            batch_size=len(rows), compute_dtype=compute, device=device,
        )  # fmt: skip
        return evaluation.metrics[task.best_metric]

    # As the run predicts, device and arithmetic included.
    device = next(ready.model.parameters()).device
    on_device = {name: value.to(device) for name, value in inputs.items()}
    narrow = torch.autocast(device.type, torch.bfloat16, enabled=ready.compute is torch.bfloat16)
    with by_choices_of(run.folder), narrow:
        trained = logits(ready.model.eval(), on_device).cpu()
        score = measure(ready.model, device, ready.compute)
    table = table_of(
        trained, score, forms, inputs, task.best_metric,
        lambda model: measure(model, torch.device("cpu"), torch.float32),
    )  # fmt: skip
    for line in table.lines():
        logger.info("%s", line)
    return replace(
        forms[table.best],
        provenance={**source.provenance, **table.provenance()},
        compared=table.to_json(),
    )


def _sample(run: OpenedRun) -> list[Any]:
    """Some of the run's held-out rows, encoded."""
    ready = run.loaded
    checked = replace(preparation.check(run.config), task=run.task)
    split = "validation" if checked.splits.validation is not None else "train"
    length = int(run.record["max_length"])
    _, encoded = preparation.encode(checked, ready.tokenizer, length, (split,))
    rows = encoded[split].rows
    return [rows[i] for i in range(min(16, len(rows)))]
