"""Real chat templates, twins with one property changed, and byte-level tokenizers for both."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.tasks.language.chat.tokenizers import CHATML, CHATML_MARKED, GEMMA, LLAMA3, MISTRAL

_TOKENS = re.compile(
    r"<\|[^<>|\s'\"{}]{1,40}\|>|<｜[^｜'\"{}]{1,40}｜>|<(?:start|end)_of_\w+>|\[/?[A-Z_]{3,30}\]"
    r"|<\|[a-z_]{2,20}>|<[a-z_]{2,20}\|>|</?tool_call>|</?tool_response>|</?think>|<end_of_utterance>"
)
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>",
    "<|return|>", "<turn|>", "<|eot|>", "<|end|>", "<end_of_utterance>",
)  # fmt: skip


def trl_templates() -> dict[str, str]:
    """TRL's templates by name, read where it is installed."""
    found = find_spec("trl")
    if found is None or found.origin is None:
        pytest.skip("trl is not installed")
    folder = Path(found.origin).parent / "chat_templates"
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.jinja"))}


def end_of(template: str) -> str:
    """The token that ends answers in a template; the tokenizer's own where it writes none."""
    return next((mark for mark in _ENDS if mark in template), "</s>")


def tokenizer_for(template: str) -> Any:
    """Every byte is a token, and so are the marks of the template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {mark: i for i, mark in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = sorted({*_TOKENS.findall(template), end_of(template)})
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token=end_of(template),
        chat_template=template,
    )  # fmt: skip
    fast.add_tokens(
        [AddedToken(m, special=not re.match(r"</?[a-z]", m), normalized=False) for m in marks]
    )
    return fast
