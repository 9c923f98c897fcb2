"""However an optimizer step is cut into micro-batches, loss and gradient are the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

HEADS = (
    "bert-classification",
    "gpt2-classification",
    "t5-classification",
    "llama-classification",
    "gpt2-causal",
    "llama-causal",
)


def reference(model: nn.Module, rows: list[dict[str, Any]], collator: Any, head: str) -> Any:
    """Mean loss and gradient norm of all rows in one batch, by hand, in float64."""
    model = copy.deepcopy(model).double().train()
    batch = collator(rows)
    labels = batch.pop("labels")
    logits = model(**batch).logits
    if head.endswith("causal"):
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    loss = F.cross_entropy(logits, labels, ignore_index=-100)
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients).norm().item()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("head", HEADS)
def test_cuts_of_a_step_agree(
    head: str, lora: bool, make_model: Any, make_rows: Any, collator: Any, run: Any
) -> None:
    for count, cuts in ((16, ((16, 16), (16, 2))), (17, ((20, 20), (20, 5))), (19, ((20, 5),))):
        rows = make_rows(head, count)
        loss, norm = reference(make_model(head, lora=lora), rows, collator, head)
        for whole, micro in cuts:
            result = run(
                make_model(head, lora=lora),
                rows,
                head=head,
                global_batch_size=whole,
                micro=micro,
                max_steps=1,
                max_grad_norm=0.0,
            )
            point = result.history[0]
            assert point["loss"] == pytest.approx(loss, rel=1e-5), (count, whole, micro)
            assert point["grad_norm"] == pytest.approx(norm, rel=1e-5), (count, whole, micro)
            assert result.loss == pytest.approx(loss, rel=1e-5)


def test_training_twice_as_finely_gives_the_same_weights(
    make_model: Any, make_rows: Any, run: Any
) -> None:
    """Over several epochs with clipping, schedule and a ragged last step."""
    rows = make_rows("t5-classification", 21)
    results = []
    for micro in (8, 2, 1):
        model = make_model("t5-classification", lora=True)
        result = run(
            model, rows, head="t5-classification", global_batch_size=8, micro=micro,
            num_train_epochs=2, max_grad_norm=0.5, optim="sgd",
        )  # fmt: skip
        assert result.steps == 6
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(results[2], results[0], rtol=1e-4, atol=1e-6)


def test_logged_losses_are_means_over_items(make_model: Any, make_rows: Any, run: Any) -> None:
    """Not means of the steps' means: the last step of an epoch has one row."""
    rows = make_rows("bert-classification", 9)
    model = make_model("bert-classification")
    result = run(
        model, rows, learning_rate=1e-30, global_batch_size=4, micro=2, max_steps=6,
        logging_steps=3, weight_decay=0.0,
    )  # fmt: skip
    untouched = make_model("bert-classification")
    from peftlab.tasks.collate import PaddingCollator

    batch = PaddingCollator(0)(rows)
    labels = batch.pop("labels")
    mean = F.cross_entropy(untouched(**batch).logits, labels).item()
    losses = [point["loss"] for point in result.history if "loss" in point]
    assert losses == pytest.approx([mean, mean], rel=1e-5)
    assert result.loss == pytest.approx(mean, rel=1e-5)
