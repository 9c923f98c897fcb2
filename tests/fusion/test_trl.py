"""TRL's SFTTrainer trains a fused model as it trains PEFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from peftlab.fusion import fuse

LAYERS = 14
STEPS = 3
TEXTS = [
    ("a good film", "I loved it ."),
    ("the food was awful", "very bad"),
    ("once upon a time", "there was a little dog and a happy girl"),
    ("nice phone", "good battery , great sound"),
]
SETTINGS: dict[str, dict[str, Any]] = {
    "completions only": {"completion_only_loss": True},
    "whole text": {"completion_only_loss": False},
    "packed": {"packing": True, "packing_strategy": "wrapped", "max_length": 16},
    "packed, best fit": {"packing": True, "packing_strategy": "bfd", "max_length": 24},
    "padding-free": {"padding_free": True, "max_length": None},
    "checkpointed": {"gradient_checkpointing": True},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
}


def adapted(folder: Path) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)


def train(folder: Path, out: Path, fused: bool, settings: dict[str, Any]) -> Any:
    """The trainer after its steps."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    model = adapted(folder)
    if fused:
        assert len(fuse(model).fused) == LAYERS
    rows = [{"prompt": prompt, "completion": f" {text}"} for prompt, text in TEXTS * 4]
    chosen = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "optim": "sgd",  # Adam would blow rounding up
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(out), **chosen | settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def losses(trainer: Any) -> torch.Tensor:
    result = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(result) == STEPS
    return torch.tensor(result)


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_same_curve(kind: str, tiny_checkpoint: Any, tmp_path: Path, calls: Any) -> None:
    folder = tiny_checkpoint("llama", "causal")
    of_peft = train(folder, tmp_path / "peft", False, SETTINGS[kind])
    assert calls.take() == 0
    fused = train(folder, tmp_path / "fused", True, SETTINGS[kind])
    assert calls.take() >= STEPS * LAYERS
    assert torch.allclose(losses(fused), losses(of_peft), rtol=1e-5)
    before = dict(adapted(folder).named_parameters())
    expected = dict(of_peft.model.named_parameters())
    for name, result in fused.model.named_parameters():
        assert torch.allclose(result, expected[name], atol=1e-5), name
        assert torch.equal(result, before[name]) != result.requires_grad, name
