"""The files beside a merged model's weights: configuration, tokenizer, model card."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from peftlab.export.outline import Outline
from peftlab.export.safetensors_files import DTYPES
from peftlab.export.skeleton import Skeleton
from peftlab.export.source import Source
from peftlab.files import read_json, write_json
from peftlab.model.quantized import eight_bit_config

_TOKENIZER = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "*.model", "chat_template*", "spiece*",
)  # fmt: skip


def describe(source: Source, built: Skeleton, plan: Outline, folder: Path) -> None:
    """Configuration, generation settings, tokenizer and model card."""
    base = built.folder
    config = read_json(base / "config.json")
    head = {k: v for k, v in source.config.items() if k != "num_labels"}
    made = built.config.to_dict()
    for key in ("id2label", "label2id", "num_labels", "problem_type"):
        if source.auto_class and key in made and built.config.to_diff_dict().get(key) is not None:
            config[key] = made[key]
    config.update(json.loads(json.dumps(head)))
    config["architectures"] = [type(built.model).__name__]
    if plan.untied:
        config["tie_word_embeddings"] = False
    if "vocab_size" in config and made.get("vocab_size"):
        config["vocab_size"] = made["vocab_size"]
    floats = [o.spec for o in plan.outputs if DTYPES[o.spec.dtype].is_floating_point]
    largest = max(floats, key=lambda spec: spec.size, default=None)
    if largest is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(DTYPES[largest.dtype]).removeprefix("torch.")
    config.pop("quantization_config", None)
    if source.requantise:
        kept = tuple(n for n, m in built.model.named_modules() if isinstance(m, torch.nn.Linear))
        done = set(source.quantised(built.model)) if source.quantised else set()
        config["quantization_config"] = eight_bit_config(n for n in kept if n not in done).to_dict()
    write_json(folder / "config.json", config)
    _generation(base, folder, source, config.get("eos_token_id"))
    origin = source.tokenizer or base
    for pattern in _TOKENIZER:
        for file in sorted(origin.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
    if (templates := origin / "additional_chat_templates").is_dir():
        shutil.copytree(templates, folder / templates.name, dirs_exist_ok=True)
    (folder / "README.md").write_text(_card(source, plan), encoding="utf-8")


def _generation(base: Path, folder: Path, source: Source, end: Any) -> None:
    """The base's generation settings, with the stop tokens that were learnt, and other settings."""
    name = "generation_config.json"
    if not source.stops and not source.generation:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
        return
    settings: dict[str, Any] = {}
    if (base / name).is_file():
        settings = read_json(base / name)
    known = settings.get("eos_token_id", end)
    ids = known if isinstance(known, list) else [] if known is None else [known]
    if source.stops:
        settings["eos_token_id"] = list(dict.fromkeys([*ids, *source.stops]))
    settings |= source.generation
    write_json(folder / name, settings)


def _card(source: Source, plan: Outline) -> str:
    base = source.base if not Path(source.base).is_absolute() else Path(source.base).name
    kinds = Counter(output.kind for output in plan.outputs)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    facts = "\n".join(f"- {key}: {value}" for key, value in source.provenance.items())
    hub = "" if Path(base).exists() or "/" not in base else f"base_model: {base}\n"
    return (
        f"---\n{hub}library_name: transformers\n---\n\n# {base}, fine-tuned\n\n"
        f"A merged model, written by peftlab: {counts} of {len(plan.outputs)} tensors. It loads "
        "with Transformers alone; `merge_report.json` records how it was verified.\n\n"
        f"- base: {base}\n{facts}\n"
    )
