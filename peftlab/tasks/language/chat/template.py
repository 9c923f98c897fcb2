"""Conversations as text: the tokenizer's own chat template, or a plain one where it has none.

The text is always tokenised without special tokens added, so that what stands in the template is
all there is: a template that begins with BOS is not given a second one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import CheckFailed, ConfigError
from peftlab.tasks.language.causal_encoding import Marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("peftlab")

Message = Mapping[str, str]
"""`role` (system, user, assistant, tool) and `content`."""

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_HEADINGS = (
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n\\n') + '### ' + message['role'] | capitalize + ':\\n' }}"
    "{{ message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Assistant:\\n' }}{% endif %}"
)
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Unrenderable(Exception):
    """Why a template does not take a conversation, or gives what cannot be trained on."""


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template of a tokenizer without one; it needs no token that is not there.

    ChatML where the vocabulary has its two marks. Else a heading for each turn, `### User:` and so
    on, with the end token after what the assistant says. BOS in front where the tokenizer puts one.
    Raises `CheckFailed` for a tokenizer with neither marks nor end token.
    """
    start = "{{ bos_token }}" if Marks.of(tokenizer).start else ""
    if tokenizer.get_added_vocab().keys() >= {"<|im_start|>", "<|im_end|>"}:
        return start + _CHATML
    if tokenizer.eos_token is None:
        raise CheckFailed(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, and no end token by "
            "which a plain one could end a turn; set tokenizer.eos_token, or task.chat_template to "
            "the file of a template."
        )
    return start + _HEADINGS


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's template; of several the one called default."""
    found: Any = tokenizer.chat_template
    if isinstance(found, Mapping):
        found = found.get("default")
    return found if isinstance(found, str) else None


def dated(template: str) -> str:
    """The template with today's date in it where it asks for the date of the day.

    Else a prompt would be another one every day, and none what was trained.
    """
    found, count = _TODAY.subn(lambda asked: repr(datetime.now().strftime(asked[2])), template)
    if count:
        logger.info("the chat template asks for the date: today's is kept with the run")
    return found


def read_template(file: str) -> str:
    """A template from a file. Raises `ConfigError` where it cannot be read or is none."""
    import jinja2

    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"task.chat_template: {file} cannot be read: {reason}.") from None
    try:
        # The tag is an extension of Transformers; what it encloses is plain Jinja.
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
            re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text)
        )
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"task.chat_template: {file}:{error.lineno} is no Jinja template: {error.message}."
        ) from None
    if "messages" not in text:
        raise ConfigError(f"task.chat_template: {file} is no chat template: it reads no messages.")
    return text


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, prompt: bool) -> str:
    """The conversation as text; `prompt`: up to where the assistant goes on.

    Raises `Unrenderable` where the template refuses the conversation.
    """
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt
        )
    except (jinja2.TemplateError, TypeError, KeyError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        roles = ", ".join(message["role"] for message in messages)
        raise Unrenderable(f"the chat template refuses turns of {roles}: {reason}") from None
    return str(text)


def check_rendered(text: str, messages: Sequence[Message]) -> None:
    """Raise `Unrenderable` where the template left out what someone else than the model said."""
    for number, message in enumerate(messages, start=1):
        # Some templates leave earlier thoughts of the model out, and should.
        if message["role"] != "assistant" and message["content"].strip() not in text:
            raise Unrenderable(
                f"the chat template leaves out turn {number}, of role {message['role']!r}, or "
                "changes what it says"
            )


def generation_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> list[tuple[int, int]] | None:
    """What the template itself marks as the assistant's, as characters; None if it marks nothing.

    Raises `Unrenderable` where it marks another number of turns than there are.
    """
    template = own_template(tokenizer)
    if template is None or not _GENERATION.search(template):
        return None
    from transformers.utils.chat_template_utils import render_jinja_template

    special: Any = tokenizer.special_tokens_map
    rendered: Any = render_jinja_template(
        conversations=[[dict(message) for message in messages]],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **special,
    )
    spans = [(int(start), int(end)) for start, end in rendered[1][0]]
    answers = sum(message["role"] == "assistant" for message in messages)
    if len(spans) != answers:
        raise Unrenderable(
            f"the chat template marks {len(spans)} generations for {answers} turns of the assistant"
        )
    return spans
