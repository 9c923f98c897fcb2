"""The three kinds of rows of a causal language model: `PlainText`, `Pairs` and `Chats`.

Each encodes rows to ids and labels, and rows to predict to prompt ids that equal those of training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from peftlab.errors import CheckFailed, ConfigError, DataError
from peftlab.tasks.encoding import check_rows
from peftlab.tasks.language.causal_encoding import encode_pairs, encode_text, pack_text, prompt_ids
from peftlab.tasks.language.chat.conversation import LossOn
from peftlab.tasks.language.chat.encoding import encode_chats
from peftlab.tasks.language.chat.prompts import chat_prompt_ids, turn_end_ids
from peftlab.tasks.language.chat.template import (
    check_variables,
    dated,
    default_template,
    named_templates,
    own_template,
    read_template,
    with_variables,
)
from peftlab.tasks.language.packing import pack
from peftlab.tasks.task import Encoded

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from peftlab.config.tasks.causal_lm import CausalLMOptions
    from peftlab.data.splits import Splits

logger = logging.getLogger("peftlab")

Row = Mapping[str, Any]
Packing = Literal["isolated", "wrapped"]
CHAT_FORMATS = frozenset({"messages", "sharegpt", "alpaca"})


@dataclass(frozen=True, slots=True)
class PlainText:
    """Every token is trained. `wrapped`: rows are packed as one stream."""

    packing: Packing = "wrapped"
    input_role = "text"
    stops: tuple[int, ...] = ()

    def check(self, rows: Sequence[Row]) -> None:
        """Raise `DataError` for a row to predict that lacks its input."""
        check_rows(rows, ("text",))

    def state(self) -> dict[str, Any]:
        """JSON values from which `rows_from_state` makes an equal value."""
        return {"rows": "text", "packing": self.packing}

    def attach(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The same value: nothing depends on the tokenizer."""
        return self

    def encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        packing: bool,
    ) -> Encoded:
        """Long isolated rows are packed in pieces, so that no token is lost."""
        if not packing:
            return encode_text(rows, tokenizer, max_length)
        if self.packing == "wrapped":
            return pack_text(rows, tokenizer, max_length)
        return pack(encode_text(rows, tokenizer, max_length, in_pieces=True), max_length)

    def prompts(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, room: int
    ) -> list[list[int]]:
        """Prompt ids."""
        return prompt_ids(tokenizer, [row["text"] for row in rows], "", room)


@dataclass(frozen=True, slots=True)
class Pairs:
    """A prompt and its completion, with `separator` between."""

    separator: str = ""
    loss_on: Literal["completion", "all"] = "completion"
    input_role = "prompt"
    stops: tuple[int, ...] = ()

    def check(self, rows: Sequence[Row]) -> None:
        """Raise `DataError` for a row to predict that lacks its input."""
        check_rows(rows, ("prompt",))

    def state(self) -> dict[str, Any]:
        """JSON values from which `rows_from_state` makes an equal value."""
        return {"rows": "pairs", "separator": self.separator, "loss_on": self.loss_on}

    def attach(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The same value: nothing depends on the tokenizer."""
        return self

    def encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        packing: bool,
    ) -> Encoded:
        """As `encode_pairs`; packed rows do not attend to each other."""
        encoded = encode_pairs(
            rows, tokenizer, self.separator, max_length, all_tokens=self.loss_on == "all"
        )
        return pack(encoded, max_length) if packing else encoded

    def prompts(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, room: int
    ) -> list[list[int]]:
        """Prompt ids."""
        return prompt_ids(tokenizer, [row["prompt"] for row in rows], self.separator, room)


@dataclass(frozen=True, slots=True)
class Chats:
    """Conversations. `template` is None until the task is attached; `stops` end a turn.

    `variables` of the template are written into it then; a row's own come before them.
    """

    loss_on: LossOn = "assistant"
    template: str | None = None
    system: str | None = None
    stops: tuple[int, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    input_role = "messages"

    def check(self, rows: Sequence[Row]) -> None:
        """Raise `DataError` for a row to predict that lacks its input."""
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get("messages"), list) or not row["messages"]:
                raise DataError(
                    f"row {number} to predict has no 'messages'; give a list of objects with role "
                    "and content, or the columns of the training data."
                )

    def state(self) -> dict[str, Any]:
        """JSON values from which `rows_from_state` makes an equal value."""
        return {
            "rows": "chats", "loss_on": self.loss_on, "template": self.template,
            "system": self.system, "stops": list(self.stops), "variables": dict(self.variables),
        }  # fmt: skip

    def attach(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """With the template in use, which is set on the tokenizer and saved with it."""
        template = self.template or own_template(tokenizer)
        named = {} if self.template is not None else named_templates(tokenizer)
        if template is None and named:
            raise CheckFailed(
                f"{tokenizer.name_or_path}: none of its chat templates is called default "
                f"({', '.join(sorted(named))}); set task.chat_template to the file of one."
            )
        if template is None:
            template = default_template(tokenizer)
            logger.info("the tokenizer has no chat template; a plain one is used and saved with it")
        # Rows with tools are rendered by another template of the same set.
        every = {
            name: with_variables(dated(text), self.variables)
            for name, text in {**named, "default": template}.items()
        }
        check_variables(self.variables, [template, *named.values()])
        template = every["default"]
        if named_templates(tokenizer) != every:
            tokenizer.chat_template = every if len(every) > 1 else template
        return replace(self, template=template, stops=turn_end_ids(tokenizer))

    def encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        packing: bool,
    ) -> Encoded:
        """As `encode_chats`; packed conversations do not attend to each other."""
        encoded = encode_chats(
            rows, tokenizer, max_length, loss_on=self.loss_on, system=self.system
        )
        return pack(encoded, max_length) if packing else encoded

    def prompts(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, room: int
    ) -> list[list[int]]:
        """Prompt ids. Raises `DataError` where the template or `room` does not allow a row."""
        return chat_prompt_ids(tokenizer, rows, room, system=self.system)


Rows = PlainText | Pairs | Chats


def rows_from_state(state: Mapping[str, Any]) -> Rows:
    """The inverse of `Rows.state`; runs written before chats existed have `paired`."""
    kind = state.get("rows", "pairs" if state.get("paired") else "text")
    if kind == "text":
        return PlainText(state.get("packing", "wrapped"))
    if kind == "pairs":
        return Pairs(str(state["separator"]), state.get("loss_on", "completion"))
    return Chats(
        state["loss_on"], state["template"], state["system"], tuple(state["stops"]),
        state.get("variables", {}),
    )  # fmt: skip


def rows_of(splits: Splits, options: CausalLMOptions) -> Rows:
    """The rows for the data's format and the options. Raises `ConfigError`."""
    chosen = options.loss_on
    if splits.format in CHAT_FORMATS:
        _refuse(options.packing == "wrapped", "packing", "wrapped", "plain text", splits.format)
        loss_on: LossOn = "assistant"
        if chosen != "auto":
            loss_on = chosen
        elif splits.format != "alpaca" and any(splits.train["prompt_messages"]):
            loss_on = "completion"
        file = options.chat_template
        variables = options.chat_template_kwargs
        template = None if file == "auto" else read_template(file)
        return Chats(loss_on, template, options.system, variables=variables)
    chats = "conversations (messages, sharegpt, alpaca)"
    _refuse(
        options.chat_template != "auto", "chat_template", options.chat_template, chats,
        splits.format,
    )  # fmt: skip
    _refuse(
        bool(options.chat_template_kwargs), "chat_template_kwargs", options.chat_template_kwargs,
        chats, splits.format,
    )  # fmt: skip
    _refuse(options.system is not None, "system", options.system, chats, splits.format)
    _refuse(chosen == "assistant", "loss_on", chosen, chats, splits.format)
    if splits.format == "text":
        _refuse(chosen == "completion", "loss_on", chosen, "rows with completions", splits.format)
        return PlainText("isolated" if options.packing == "isolated" else "wrapped")
    _refuse(options.packing == "wrapped", "packing", "wrapped", "plain text", splits.format)
    separator = "" if _has_boundary(splits.train) else "\n"
    if separator:
        logger.info("prompt and completion are joined by a line break; the data has no separator")
    return Pairs(separator, "all" if chosen == "all" else "completion")


def _refuse(wrong: bool, key: str, value: object, what: str, form: str) -> None:
    if wrong:
        raise ConfigError(
            f"task.{key} is {value!r:.60}, which is for {what}; these rows are of the format "
            f"{form}. Leave task.{key} out."
        )


def _has_boundary(rows: datasets.Dataset) -> bool:
    """Whether white space separates prompt and completion in nine rows of ten."""
    first = rows[:1000]
    separated = [
        prompt[-1:].isspace() or completion[:1].isspace()
        for prompt, completion in zip(first["prompt"], first["completion"], strict=True)
    ]
    return bool(sum(separated) >= 0.9 * len(separated))
