"""What the methods' tests share: models by family and task, batches, one optimiser step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn
from torch.nn import functional as F

from peftlab.config.methods.options import MethodOptions
from peftlab.methods.features.cache import FeatureCache, cache_features
from peftlab.methods.method import Applied
from peftlab.model.head_spec import HeadSpec
from peftlab.model.loading import LoadedModel, load_model

CLASSIFICATION, CAUSAL = "text-classification", "causal-lm"
HEADS = {
    CLASSIFICATION: HeadSpec("AutoModelForSequenceClassification", {"num_labels": 2}),
    CAUSAL: HeadSpec("AutoModelForCausalLM"),
}
FOLDER_TASK = {CLASSIFICATION: "classification", CAUSAL: "causal"}
PLENTY = 2**30
TEXTS = ["a good film", "bad", "the story was very dull and I hated it", "her dog was happy"]


def method(name: str, **settings: Any) -> MethodOptions:
    read: MethodOptions = TypeAdapter(MethodOptions).validate_python({"name": name, **settings})
    return read


def load(
    folder: Path, task: str, chosen: MethodOptions, *, seed: int = 0, empty: bool = False
) -> LoadedModel:
    """The base as the pipeline would load it for a method, in fp32."""
    torch.manual_seed(seed)
    pooling = None
    if chosen.name == "head" and task == CLASSIFICATION:
        pooling = chosen.pooling
    return load_model(
        str(folder),
        HEADS[task],
        weights=not empty,
        dtype="float32",
        load_in_8bit=chosen.name == "qlora" and chosen.bits == 8,
        load_in_4bit=chosen.name == "qlora" and chosen.bits == 4,
        pooling=pooling,
    )


def batch(loaded: LoadedModel, texts: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Padded inputs without labels."""
    encoded = loaded.tokenizer(texts or TEXTS, padding=True, return_tensors="pt")
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def loss(model: nn.Module, inputs: dict[str, torch.Tensor], task: str) -> torch.Tensor:
    """A summed loss against labels made up from the rows' numbers."""
    logits = model(**inputs).logits.float()
    if task == CLASSIFICATION:
        return F.cross_entropy(logits, torch.arange(len(logits)) % 2, reduction="sum")
    real = inputs["attention_mask"][:, 1:].bool()
    return F.cross_entropy(logits[:, :-1][real], inputs["input_ids"][:, 1:][real], reduction="sum")


def step(model: nn.Module, inputs: dict[str, torch.Tensor], task: str, rate: float = 0.01) -> None:
    """One step of plain gradient descent on what trains."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    loss(model, inputs, task).backward()
    optimiser.step()
    optimiser.zero_grad()


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of every parameter, 8-bit ones included."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def collate(rows: Any) -> dict[str, torch.Tensor]:
    """Rows padded to the longest of them."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, filler: int) -> torch.Tensor:
        return torch.tensor([row[key] + [filler] * (longest - len(row[key])) for row in rows])

    batch = {"input_ids": padded("input_ids", 0), "attention_mask": padded("attention_mask", 0)}
    if isinstance(rows[0]["labels"], list):
        return batch | {"labels": padded("labels", -100)}
    return batch | {"labels": torch.tensor([row["labels"] for row in rows])}


def cached(applied: Applied, rows: Any, **settings: Any) -> FeatureCache | None:
    """The rows' features, in memory unless `limit_bytes` says otherwise."""
    settings = {"limit_bytes": PLENTY, "batch_size": 3} | settings
    return cache_features(applied, {"train": rows, "validation": rows}, collate, **settings)
