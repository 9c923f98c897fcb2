"""Tiny random checkpoints of four families, with a tokenizer built from scratch. For tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAMILIES = ("bert", "gpt2", "t5", "llama")
VOCABULARY = 200
SENTENCES = (
    "a good bad film story book the was is not very great awful nice dull number review of "
    "and food service place phone sound battery it I loved hated this movie name eats at near "
    "cheap once upon time there little girl dog cat played with her friend happy sad day said "
    "yes no "
)

TinyCheckpoint = Callable[..., Path]


def write_tokenizer(folder: Path, family: str) -> None:
    """A word-level tokenizer with each family's special tokens; GPT-2 and Llama do not pad."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = {
        "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"},
        "gpt2": {"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
        "t5": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
        "llama": {"unk": "<unk>", "bos": "<s>", "eos": "</s>"},
    }[family]
    tokens = list(dict.fromkeys(special.values()))
    digits = [str(n) for n in range(10)]
    # What stands around entities: tokens kept free for it, as these families have them, or signs.
    marks = {
        "bert": [f"[unused{n}]" for n in range(5)],
        "t5": [f"<extra_id_{n}>" for n in range(5)],
    }.get(family, ["@", "#"])
    words = [*dict.fromkeys(SENTENCES.split()), *digits, ".", ",", *marks]
    vocabulary = {t: i for i, t in enumerate([*tokens, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    templates = {
        "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "t5": ("$A </s>", "$A </s> $B </s>"),
        "llama": ("<s> $A", "<s> $A $B"),
    }
    if family in templates:
        single, pair = templates[family]
        used = [t for t in tokens if t in single]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(t, vocabulary[t]) for t in used]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {f"{role}_token": token for role, token in special.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def tiny_config(family: str, **changes: Any) -> Any:
    """A configuration of two blocks of 32 features."""
    from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config

    if family == "bert":
        return BertConfig(**{
            "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
        } | changes)  # fmt: skip
    if family == "gpt2":
        return GPT2Config(**{
            "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
            "bos_token_id": 0, "eos_token_id": 0,
        } | changes)  # fmt: skip
    if family == "t5":
        return T5Config(**{
            "vocab_size": VOCABULARY, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2,
            "num_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
        } | changes)  # fmt: skip
    if family == "llama":
        return LlamaConfig(**{
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
            "tie_word_embeddings": False,
        } | changes)  # fmt: skip
    raise ValueError(f"family is {family!r}; one of {', '.join(FAMILIES)}")


def write_checkpoint(
    folder: Path, family: str, task: str = "classification", *, dtype: str = "float32", **cfg: Any
) -> Path:
    """Save a random base (`classification`: no head in the file) or language model.

    `task` of a language model: `causal`, or `seq2seq`.
    """
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family, **cfg)
    kinds = {
        "classification": "AutoModel", "causal": "AutoModelForCausalLM",
        "seq2seq": "AutoModelForSeq2SeqLM",
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kinds[task]).from_config(config)
        # Larger than Transformers draws them: logits of such small models would not tell apart.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.15)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    write_tokenizer(folder, family)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """`tiny_checkpoint(family, task, **config) -> folder`, made once.

    `task`: classification, causal or seq2seq.
    """
    made: dict[str, Path] = {}

    def make(family: str, task: str = "classification", **cfg: Any) -> Path:
        key = json.dumps([family, task, cfg], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"tiny-{family}-{task}")
            made[key] = write_checkpoint(folder, family, task, **cfg)
        return made[key]

    return make
