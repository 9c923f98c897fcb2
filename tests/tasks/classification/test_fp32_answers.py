"""Numbers leave a head in fp32, though the model computes in bf16."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkpoints import tiny_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from peftlab.tasks.classification.fp32_answers import fp32_answers  # noqa: E402
from peftlab.tasks.classification.label_problems import Regression, SingleLabel  # noqa: E402
from peftlab.tasks.classification.text_classification import TextClassification  # noqa: E402

FAMILIES = ("bert", "gpt2", "llama", "t5")


def model_of(family: str, labels: int) -> Any:
    config = tiny_config(family, num_labels=labels)
    config.pad_token_id = 0
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def batch_of() -> dict[str, Any]:
    ids = torch.tensor([[2, 5, 7, 9, 1], [2, 8, 6, 4, 1]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def rounded(values: Any) -> bool:
    return bool((values == values.bfloat16().float()).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_number_is_not_rounded_to_bf16(family: str) -> None:
    model, task = model_of(family, 1), TextClassification(Regression())
    before = [name for name, module in model.named_modules() if module._forward_hooks]
    with torch.no_grad():
        exact = task.logits(model, batch_of())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answers = task.logits(model, batch_of())
            assert rounded(model(**batch_of()).logits.float())
    assert answers.dtype == torch.float32
    assert not rounded(answers)
    torch.testing.assert_close(answers, exact, rtol=0.05, atol=0.02)
    assert [name for name, module in model.named_modules() if module._forward_hooks] == before


def test_classes_and_training_are_left_as_they_are() -> None:
    model = model_of("bert", 1)
    with torch.autocast("cpu", dtype=torch.bfloat16), fp32_answers(model):
        assert model(**batch_of()).logits.dtype == torch.bfloat16  # gradients are recorded
    classes = model_of("bert", 2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert rounded(TextClassification(SingleLabel(("a", "b"))).logits(classes, batch_of()))
