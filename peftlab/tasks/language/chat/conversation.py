"""A conversation to encode: its messages, which of them are trained, and what else is rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from peftlab.tasks.language.chat.template import Unrenderable
from peftlab.tasks.language.chat.texts import Message

LossOn = Literal["completion", "assistant", "all"]
"""completion: the last answer, or the whole completion where rows have prompt and completion."""

_SYSTEM = ("system", "developer")


def decoded(value: Any) -> Any:
    """A value of a row that Arrow stores as JSON text; keys without a value are left out."""
    if isinstance(value, str):
        value = json.loads(value)
    if isinstance(value, list):
        return [
            {key: inner for key, inner in item.items() if inner is not None}
            if isinstance(item, Mapping)
            else item
            for item in value
        ]
    return value


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages, whether each is trained, the tools on offer, and variables of the template."""

    messages: tuple[Message, ...]
    trained: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        row: Mapping[str, Any],
        *,
        loss_on: LossOn,
        system: str | None,
    ) -> Chat:
        """A row of `messages`, and optionally `prompt_messages`, `tools` and variables.

        Raises `Unrenderable` where no message would be trained.
        """
        messages = decoded(row["messages"])
        prompt_messages = row.get("prompt_messages") or 0
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if loss_on == "completion":
            completion = [i for i in answers if i >= prompt_messages]
            answers = completion if prompt_messages else answers[-1:]
        answers = [i for i in answers if _is_trained(messages[i])]
        turns = tuple({k: v for k, v in m.items() if k not in _FLAGS} for m in messages)
        chat = cls(
            turns,
            tuple(i in answers for i in range(len(turns))),
            tuple(decoded(row.get("tools")) or ()),
            decoded(row.get("chat_template_kwargs")) or {},
        )
        if loss_on == "all" and not all(map(_is_trained, messages)):
            raise Unrenderable(
                "it has a turn that is not to be trained (weight 0, or train false), and "
                "task.loss_on is all; use task.loss_on=assistant"
            )
        if loss_on != "all":
            if not answers:
                raise Unrenderable("it has no assistant turn to train on")
            # Nothing after the last answer is trained.
            chat = chat.upto(answers[-1] + 1)
        if system is None or turns[0]["role"] in _SYSTEM:
            return chat
        first: Message = {"role": "system", "content": system}
        return replace(chat, messages=(first, *chat.messages), trained=(False, *chat.trained))

    def upto(self, count: int) -> Chat:
        """The first `count` messages."""
        return replace(self, messages=self.messages[:count], trained=self.trained[:count])

    def one_by_one(self) -> list[Chat]:
        """A conversation for each trained turn, which ends with it and trains it alone."""
        return [
            replace(
                self,
                messages=self.messages[: at + 1],
                trained=tuple(i == at for i in range(at + 1)),
            )
            for at, trained in enumerate(self.trained)
            if trained
        ]

    def shortened(self) -> Chat | None:
        """Without its oldest exchange; None where one is left, or nothing would be trained."""
        kept = next(
            (i for i, message in enumerate(self.messages) if message["role"] not in _SYSTEM), 0
        )
        users = [i for i in range(kept + 1, len(self.messages)) if self._is_user(i)]
        if not users or not any(self.trained[users[0] :]):
            return None
        return replace(
            self,
            messages=self.messages[:kept] + self.messages[users[0] :],
            trained=self.trained[:kept] + self.trained[users[0] :],
        )

    def _is_user(self, index: int) -> bool:
        return bool(self.messages[index]["role"] == "user")


_FLAGS = ("weight", "train")


def _is_trained(message: Message) -> bool:
    return bool(message.get("weight") != 0 and message.get("train") is not False)


def plain(messages: Sequence[Message]) -> Chat:
    """A conversation of which nothing is trained."""
    return Chat(tuple(messages), (False,) * len(messages))
