"""Random encoder-decoders of two layers, with a tokenizer trained on the texts. For tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers


def write_tokenizer(folder: Path, texts: Iterable[str], *, size: int = 500) -> Any:
    """Byte-level pieces, and T5's marks: `text </s>`, padded with id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    made.save_pretrained(folder)
    return made


def t5_config(vocabulary: int, **changes: Any) -> Any:
    return transformers.T5Config(**{
        "vocab_size": vocabulary, "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2,
        "num_heads": 4, "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1,
        "decoder_start_token_id": 0,
    } | changes)  # fmt: skip


def bart_config(vocabulary: int, **changes: Any) -> Any:
    return transformers.BartConfig(**{
        "vocab_size": vocabulary, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "max_position_embeddings": 64, "dropout": 0.0, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
    } | changes)  # fmt: skip


def write_model(
    folder: Path,
    texts: Iterable[str],
    kind: str = "t5",
    *,
    dtype: str = "float32",
    own_head: bool = False,
    **changes: Any,
) -> Path:
    """A checkpoint of random weights with its tokenizer; `own_head`: one that nothing ties."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder, texts)
    config = {"t5": t5_config, "bart": bart_config}[kind](len(tokenizer), **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForSeq2SeqLM.from_config(config)
        if own_head:
            model.lm_head.weight = torch.nn.Parameter(
                torch.randn_like(model.lm_head.weight) * config.d_model**-0.5
            )
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder
