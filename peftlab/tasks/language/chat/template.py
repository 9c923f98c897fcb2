"""Conversations as text: the tokenizer's own chat template, or a plain one where it has none.

The text is always tokenised without adding special tokens: a template that begins with BOS does not
get a second one.
"""

from __future__ import annotations

import json
import keyword
import logging
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import CheckFailed, ConfigError, did_you_mean
from peftlab.tasks.language.causal_encoding import Marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("peftlab")

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
_TAGS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class Unrenderable(Exception):
    """The reason why a template refuses a conversation, or renders it unfit for training."""


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """A template for a tokenizer without one, from tokens that its vocabulary has.

    ChatML where the vocabulary has its two special tokens. Else a heading for each turn, such as
    `### User:`, and the end token after assistant turns. BOS in front where the tokenizer adds one.
    Raises `CheckFailed` for a tokenizer with neither ChatML tokens nor an end token.
    """
    start = "{{ bos_token }}" if Marks.of(tokenizer).start else ""
    if tokenizer.get_added_vocab().keys() >= {"<|im_start|>", "<|im_end|>"}:
        return start + _CHATML
    if tokenizer.eos_token is None:
        raise CheckFailed(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, and no end token to "
            "end turns of a plain one; set tokenizer.eos_token, or task.chat_template to "
            "the file of a template."
        )
    return start + _HEADINGS


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's template; of several the one called default."""
    template: Any = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) else None


def named_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """All templates of a tokenizer by name; one that has no name is the default."""
    template: Any = tokenizer.chat_template
    if isinstance(template, Mapping):
        return {str(name): text for name, text in template.items() if isinstance(text, str)}
    return {"default": template} if isinstance(template, str) else {}


def dated(template: str) -> str:
    """The template with today's date in place of calls for the current date.

    Otherwise prompts would change every day and differ from those of training.
    """
    fixed, count = _TODAY.subn(lambda call: repr(datetime.now().strftime(call[2])), template)
    if count:
        logger.info("the chat template reads the current date: today's is saved with the run")
    return fixed


def with_variables(template: str, variables: Mapping[str, Any]) -> str:
    """The template with values for its variables, where whoever renders it gives none.

    So they hold wherever the template goes: training, evaluation, prediction, and other tools that
    load the exported tokenizer. Raises `ConfigError` for names that a template cannot set.
    """
    settings = ""
    for name, value in variables.items():
        if not name.isidentifier() or keyword.iskeyword(name) or name in _GIVEN:
            raise ConfigError(
                f"task.chat_template_kwargs: {name!r} is no variable that a template can be given."
            )
        settings += (
            f"{{%- set {name} = {name} if {name} is defined and {name} is not none "
            f"else {_literal(value)} +%}}"
        )
    return template if template.startswith(settings) else settings + template


_GIVEN = frozenset({
    "messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template",
    "tokenize", "conversation", "padding", "truncation", "max_length", "loop", "true", "false",
    "none", "bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token",
    "mask_token", "additional_special_tokens", "raise_exception", "strftime_now", "range", "lipsum",
    "dict", "cycler", "joiner", "namespace",
})  # fmt: skip
"""Names that have a value in every template, of Transformers' or Jinja's."""


def variables_of(template: str) -> frozenset[str]:
    """The variables that a template reads from whoever renders it."""
    import jinja2
    from jinja2 import meta

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(_TAGS.sub("", template))
    except jinja2.TemplateSyntaxError:
        return frozenset()
    return frozenset(meta.find_undeclared_variables(tree)) - _GIVEN


def check_variables(variables: Mapping[str, Any], templates: Iterable[str]) -> None:
    """Raise `ConfigError` for a variable that none of the templates reads."""
    read = frozenset().union(*map(variables_of, templates))
    for name in variables:
        if name not in read:
            known = f" It reads {', '.join(sorted(read))}." if read else " It reads none."
            raise ConfigError(
                f"task.chat_template_kwargs: the chat template reads no {name!r}"
                f"{did_you_mean(name, read) or '.'}{known}"
            )


def _literal(value: Any) -> str:
    """A value of a configuration as Jinja writes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        pairs = (f"{_literal(str(key))}: {_literal(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(
            f"task.chat_template_kwargs: {value!r:.40} is no value that a template can be given; "
            "give texts, finite numbers, true, false, null, lists and mappings of them."
        )
    return repr(value)


def read_template(file: str) -> str:
    """A template from a file. Raises `ConfigError` where it is unreadable or no chat template."""
    import jinja2

    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"task.chat_template: {file} cannot be read: {reason}.") from None
    try:
        # The generation tag is an extension of Transformers; its content is plain Jinja.
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_TAGS.sub("", text))
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"task.chat_template: {file}:{error.lineno} is not a Jinja template: {error.message}."
        ) from None
    if "messages" not in text:
        raise ConfigError(
            f"task.chat_template: {file} is not a chat template: it reads no messages."
        )
    return text
