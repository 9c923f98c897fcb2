"""A tokenizer's template at work: renders conversations, and knows the marks that it writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from peftlab.tasks.language.chat.conversation import Chat
from peftlab.tasks.language.chat.template import Unrenderable, named_templates
from peftlab.tasks.language.chat.texts import THOUGHT_TAGS, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Renderer:
    """Renders with a tokenizer's template. `count` is the number of renders so far."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.count = 0

    def render(self, chat: Chat, messages: Sequence[Message], *, prompt: bool) -> str:
        """Messages as text, with the tools and variables of `chat`.

        `prompt`: with the generation prompt at the end. Raises `Unrenderable` where the template
        refuses the conversation.
        """
        import jinja2

        self.count += 1
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in chat.tools] or None,
                tokenize=False,
                add_generation_prompt=prompt,
                **chat.variables,
            )
        except (jinja2.TemplateError, *_FAULTS) as error:
            raise self._refusal(messages, error) from None
        return str(text)

    @staticmethod
    def _refusal(messages: Sequence[Message], error: Exception) -> Unrenderable:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        roles = ", ".join(message["role"] for message in messages)
        return Unrenderable(f"the chat template refuses turns of {roles}: {reason}")

    @cached_property
    def constants(self) -> tuple[str, ...]:
        """Constants with punctuation: tags that the template may look for in texts."""
        templates = named_templates(self.tokenizer).values()
        found = {constant for template in templates for constant in _constants(template)}
        return tuple(sorted(found | {*THOUGHT_TAGS}, key=len, reverse=True))

    @cached_property
    def inner(self) -> re.Pattern[str]:
        """What the template may look for in texts."""
        return re.compile("|".join(map(re.escape, self.constants)))

    @cached_property
    def end_marks(self) -> re.Pattern[str]:
        """Tokens that can end a turn: special and added ones, without thought tags."""
        added = [str(token) for token in self.tokenizer.get_added_vocab()]
        marks = {*self.tokenizer.all_special_tokens, *added} - {*THOUGHT_TAGS, ""}
        ordered = sorted((mark for mark in marks if mark.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    @cached_property
    def header(self) -> str:
        """What the template writes before a turn to generate; empty where it writes nothing."""
        chat = Chat(({"role": "user", "content": "a"},), (False,))
        for content in ("a", [{"type": "text", "text": "a"}]):
            messages = [{"role": "user", "content": content}]
            try:
                before = self.render(chat, messages, prompt=False)
                prompt = self.render(chat, messages, prompt=True)
            except Unrenderable:
                continue
            if prompt != before:
                return prompt[common_prefix(before, prompt) :]
        return ""

    @cached_property
    def marks_generation(self) -> bool:
        """Whether the template marks what the model generates."""
        templates = named_templates(self.tokenizer).values()
        return any(_GENERATION.search(template) for template in templates)

    def generation_spans(self, chat: Chat, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """The character spans of the template's generation blocks."""
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        tools: Any = [dict(tool) for tool in chat.tools] or None
        template: Any = self.tokenizer.get_chat_template(tools=tools)
        if not _GENERATION.search(template):
            return []
        self.count += 1
        variables: dict[str, Any] = {**self.tokenizer.special_tokens_map, **chat.variables}
        try:
            rendered: Any = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **variables,
            )
        except (jinja2.TemplateError, *_FAULTS) as error:
            raise self._refusal(messages, error) from None
        return [(int(start), int(end)) for start, end in rendered[1][0]]


_FAULTS = (
    TypeError, KeyError, ValueError, IndexError, ArithmeticError, AttributeError, RecursionError,
)  # fmt: skip
"""What the expressions of a template raise."""

_PUNCTUATED = re.compile(r"[<>\[\]|/#]")


def common_prefix(left: str, right: str) -> int:
    """The length of the common prefix."""
    if right.startswith(left):
        return len(left)
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[:middle] == right[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@lru_cache(maxsize=64)
def _constants(template: str) -> tuple[str, ...]:
    import jinja2
    from jinja2 import nodes

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        # The generation tag is an extension of Transformers; its content is plain Jinja.
        tree = environment.parse(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template))
    except jinja2.TemplateSyntaxError:
        return ()
    found = {str(node.value).strip() for node in tree.find_all(nodes.Const)}
    return tuple(text for text in found if 1 < len(text) < 40 and _PUNCTUATED.search(text))
