"""Tiny random models of each architecture, made in memory, with rows of random ids for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from peftlab.config.schema import TrainConfig
from peftlab.tasks.classification.label_problems import SingleLabel
from peftlab.tasks.classification.text_classification import TextClassification
from peftlab.tasks.collate import PaddingCollator
from peftlab.training.trainer import TrainResult, train

VOCABULARY, PAD, END, LABELS = 61, 0, 1, 3

HEADS = (
    "bert-classification",
    "gpt2-classification",
    "t5-classification",
    "llama-classification",
    "gpt2-causal",
    "llama-causal",
)
SHARED = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": END, "num_labels": LABELS}


def _config(family: str) -> transformers.PretrainedConfig:
    if family == "bert":
        return transformers.BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SHARED,
        )  # fmt: skip
    if family == "gpt2":
        return transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=64, embd_pdrop=0.0, attn_pdrop=0.0,
            resid_pdrop=0.0, bos_token_id=END, **SHARED,
        )  # fmt: skip
    if family == "t5":
        return transformers.T5Config(
            d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0,
            classifier_dropout=0.0, decoder_start_token_id=PAD, **SHARED,
        )  # fmt: skip
    return transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        bos_token_id=END, **SHARED,
    )  # fmt: skip


TARGETS = {
    "bert": ["query", "value", "dense"],
    "gpt2": ["c_attn", "c_proj"],
    "t5": ["q", "v", "wo"],
    "llama": ["q_proj", "v_proj", "down_proj"],
}


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """`make_model("bert-classification", lora=True, dropout=0.0)`: the same weights every time."""

    def make(head: str, *, lora: bool = False, dropout: float = 0.0, seed: int = 0) -> nn.Module:
        family, kind = head.split("-")
        torch.manual_seed(seed)
        auto = (
            transformers.AutoModelForCausalLM
            if kind == "causal"
            else transformers.AutoModelForSequenceClassification
        )
        model = auto.from_config(_config(family))
        if lora:
            config = peft.LoraConfig(
                task_type="CAUSAL_LM" if kind == "causal" else "SEQ_CLS",
                target_modules=TARGETS[family],
                r=4,
                lora_dropout=dropout,
                # Not zero, or the gradient of A would be.
                init_lora_weights=False,
                fan_in_fan_out=family == "gpt2",
            )
            model = peft.get_peft_model(model, config)
        return model

    return make


@pytest.fixture
def make_rows() -> Callable[..., list[dict[str, Any]]]:
    """`make_rows("gpt2-causal", 20)`: rows of 3 to 12 random ids, the same every time."""

    def make(head: str, count: int, *, seed: int = 1) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for index in range(count):
            length = int(torch.randint(3, 13, (), generator=generator))
            ids = torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()
            if head.endswith("causal"):
                # The first third is a prompt, which the loss leaves out.
                masked = length // 3
                labels: Any = [-100] * masked + ids[masked:]
            else:
                ids[-1] = END
                # Learnable: the first id determines the label.
                labels = (ids[0] if seed == 1 else index) % LABELS
            rows.append({"input_ids": ids, "labels": labels})
        return rows

    return make


@pytest.fixture
def make_task() -> Callable[[str], Any]:
    """The real task of a head."""

    def make(head: str) -> Any:
        if head.endswith("causal"):
            from peftlab.tasks.language.causal_lm import CausalLM
            from peftlab.tasks.language.causal_rows import Pairs

            return CausalLM(Pairs(), loss="plain")
        return TextClassification(SingleLabel(tuple("abc")))

    return make


@pytest.fixture
def collator() -> PaddingCollator:
    """Pads as the real tasks do."""
    return PaddingCollator(PAD)


@pytest.fixture
def run(tmp_path: Path, make_task: Any, collator: PaddingCollator) -> Callable[..., TrainResult]:
    """Train briefly: settings by keyword, a new staging folder unless given."""
    count = 0

    def call(
        model: nn.Module,
        rows: Any,
        *,
        head: str = "bert-classification",
        staging: Path | None = None,
        learning_rate: float = 1e-2,
        micro: int | None = None,
        around: dict[str, Any] | None = None,
        **settings: Any,
    ) -> TrainResult:
        nonlocal count
        count += 1
        if staging is None:
            staging = tmp_path / f"staging-{count}"
            staging.mkdir()
        settings = {"save_every": "never", "logging_steps": 1, "warmup_steps": 0} | settings
        chosen = TrainConfig(**settings)
        return train(
            model,
            make_task(head),
            rows,
            **({"collator": collator} | (around or {})),
            settings=chosen,
            learning_rate=learning_rate,
            micro_batch_size=micro or chosen.global_batch_size,
            staging=staging,
        )

    return call
