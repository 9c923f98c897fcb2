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
    r"<\|[^<>|\s'\"{}]{1,40}\|>|<\uff5c[^\uff5c'\"{}]{1,40}\uff5c>|<(?:start|end)_of_\w+>|\[/?[A-Z_]{3,30}\]"
    r"|<\|[a-z_]{2,20}>|<[a-z_]{2,20}\|>|</?tool_call>|</?tool_response>|</?think>|<end_of_utterance>"
)
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<\uff5cend▁of▁sentence\uff5c>",
    "<|END_OF_TURN_TOKEN|>",
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


def headers_of(template: str) -> set[str]:
    """Marks that begin a turn, or name its role, in the families of these templates."""
    known = (
        "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<|turn>",
        "<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>", "<|start|>",
        "<\uff5cAssistant\uff5c>", "<\uff5cUser\uff5c>",
        "<|assistant|>", "<|user|>", "<|observation|>", "[INST]",
        "[/INST]", "Assistant:", "User:", "### ",
    )  # fmt: skip
    return {mark for mark in known if mark in template}


def twins() -> dict[str, str]:
    """Templates with one property each that breaks a guess."""
    plain = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    ending = "<|im_end|>\n{% endfor %}"
    made = {
        "chatml": CHATML,
        "chatml marked": CHATML_MARKED,
        "llama3": LLAMA3,
        "gemma": GEMMA,
        "mistral": MISTRAL,
        "no end token": plain,
        "no end token, no line": plain.replace("\n", "|", 1),
        "end after all turns": plain
        + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
        "headings": plain.replace("{{ m.role }}:", "### {{ m.role }}:")
        .replace("\n", "{{ eos_token if m.role == 'assistant' }}\n", 1)
        .replace("%}assistant:", "%}### assistant:"),
        "two end tokens": CHATML.replace(ending, "<|end|><|im_end|>\n{% endfor %}"),
        "end token on a line of its own": CHATML.replace(ending, "\n<|im_end|>\n{% endfor %}"),
        "date": "{{ strftime_now('%d %B %Y') }}\n" + CHATML,
        "renamed roles": CHATML.replace(
            "{{ m.role }}", "{{ {'user': 'human', 'assistant': 'bot'}.get(m.role, m.role) }}"
        ).replace("|im_start|>assistant", "|im_start|>bot"),
        "upper roles": CHATML.replace("{{ m.role }}", "{{ m.role | upper }}").replace(
            "|im_start|>assistant", "|im_start|>ASSISTANT"
        ),
        "trimmed contents": CHATML.replace("{{ m.content }}", "{{ m.content | trim }}"),
        "content twice for users": CHATML.replace(
            "{{ m.content }}",
            "{{ m.content }}{% if m.role == 'user' %} ({{ m.content }}){% endif %}",
        ),
        "parts alone": CHATML.replace(
            "{{ m.content }}", "{% for part in m.content %}{{ part['text'] }}{% endfor %}"
        ),
        "mark over the header": CHATML.replace(
            "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n",
            "{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n{{ m.content }}"
            "{% endgeneration %}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
            "<|im_end|>\n{% endif %}",
        ),
        "mark without the end": CHATML_MARKED.replace(
            "{{ m.content }}<|im_end|>{% endgeneration %}",
            "{{ m.content }}{% endgeneration %}<|im_end|>",
        ),
        "thoughts of the last turn alone": CHATML.replace(
            "{{ m.content }}",
            "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
            "{% else %}{{ m.content }}{% endif %}",
        ),
        "thoughts written anew": CHATML.replace(
            "{{ m.content }}",
            "{% if '</think>' in m.content %}<think>{{ m.content.split('</think>')[0]"
            ".replace('<think>', '').strip() }}</think>{{ m.content.split('</think>')[1] }}"
            "{% else %}{{ m.content }}{% endif %}",
        ),
        "prompt opens a thought": CHATML.replace("assistant\n{%", "assistant\n<think>\n{%"),
        "no generation prompt": CHATML[: CHATML.index("{% if add_generation_prompt")],
        "role before the mark": CHATML.replace(
            "<|im_start|>{{ m.role }}", "{{ m.role }}<|im_start|>"
        ).replace("<|im_start|>assistant", "assistant<|im_start|>"),
        "every user turn has the system text": MISTRAL.replace("if loop.first and", "if"),
    }  # fmt: skip
    return {f"twin: {name}": template for name, template in made.items()}
