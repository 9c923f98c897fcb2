"""A tied table under whichever of its names the checkpoint stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftlab import pipeline
from peftlab.config import config_from_mapping

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NAMES = {"embeddings": "model.embed_tokens.weight", "head": "lm_head.weight"}


@pytest.mark.slow
@pytest.mark.parametrize("stored", NAMES)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_trained_of_a_tied_table_is_what_is_written(
    stored: str, method: str, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama", "causal"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint("llama", "causal"))
    config = transformers.LlamaConfig.from_dict(
        base.config.to_dict() | {"tie_word_embeddings": True, "dtype": "float32"}
    )
    torch.manual_seed(0)
    folder = tmp_path / "tied"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    table = tensors.pop(NAMES["embeddings"])
    assert NAMES["head"] not in tensors
    save_file(tensors | {NAMES[stored]: table}, folder / "model.safetensors", {"format": "pt"})
    rows = "".join(f'{{"text": "once upon a time {i} a dog"}}\n' for i in range(12))
    (tmp_path / "train.jsonl").write_text(rows)
    run = pipeline.train(
        config_from_mapping(
            {
                "model": {"name": str(folder), "dtype": "float32"},
                "task": "causal-lm",
                "data": {"source": str(tmp_path / "train.jsonl")},
                "method": method,
                "train": {"max_steps": 4, "global_batch_size": 4, "learning_rate": 1e-2},
                "eval": {"every": "never"},
                "output": {"dir": str(tmp_path / "run"), "plots": False},
            }
        )
    )
    run.export(tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.arange(4, 40)[None]
    assert run.trained is not None
    with torch.no_grad():
        expected = run.trained.model.eval()(input_ids=ids).logits
        before = transformers.AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
        logits = merged(input_ids=ids).logits
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert NAMES[stored] in load_file(tmp_path / "merged" / "model.safetensors")
