"""prompt-completion and text: rows of language models."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from peftlab.data.formats.cells import Cells, Kind
from peftlab.data.formats.classified import TEXT_NAMES
from peftlab.data.formats.row_format import Row, RowFormat, by_usual_name

logger = logging.getLogger("peftlab")

PROMPT_NAMES = (
    "prompt", "instruction", "input", "question", "query", "source", "article", "dialogue",
    "document", "meaning_representation", "mr", "input_text", "source_text", "src",
)  # fmt: skip
COMPLETION_NAMES = (
    "completion", "output", "response", "answer", "target", "chosen", "summary", "highlights",
    "human_reference", "ref", "target_text", "tgt",
)  # fmt: skip


class PromptCompletion(RowFormat):
    """`references`, where rows have them, are all correct completions."""

    name: ClassVar[str] = "prompt-completion"
    tasks: ClassVar[tuple[str, ...]] = ("causal-lm", "seq2seq")
    roles: ClassVar[Mapping[str, bool]] = {"prompt": True, "completion": True, "references": False}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prompt": PROMPT_NAMES, "completion": COMPLETION_NAMES, "references": ("references",),
    }  # fmt: skip
    targets: ClassVar[frozenset[str]] = frozenset({"completion", "references"})
    not_read: ClassVar[Mapping[str, tuple[str, ...]]] = {"references": ("causal-lm",)}
    gives: ClassVar[Mapping[str, Kind]] = {
        "prompt": "text", "completion": "text", "references": "texts",
    }  # fmt: skip
    unread: ClassVar[Mapping[str, str]] = {
        "rejected": "answers that are to be avoided are not trained on",
        **dict.fromkeys(("system", "system_prompt"), "only conversations have a system turn; "
                        "write the rows as messages"),
        **dict.fromkeys(("reasoning", "thinking", "reasoning_content", "thoughts"),
                        "thoughts are read from conversations alone; write the rows as messages, "
                        "or put them into the completion"),
        **dict.fromkeys(("images", "image", "videos", "audios"), "only text is read"),
    }  # fmt: skip

    def find(
        self, available: Sequence[str], explicit: Mapping[str, str], where: str
    ) -> dict[str, str]:
        columns = super().find(available, explicit, where)
        if "prompt" not in explicit and {"prompt", "completion"} <= columns.keys():
            named = by_usual_name(PROMPT_NAMES, available, [])
            unused = [name for name in named if name not in columns.values()]
            if unused:
                logger.warning(
                    "%s: the prompt is column %r only; %s is not read. Join the columns into one, "
                    "or choose another with data.columns.prompt=...",
                    where, columns["prompt"], ", ".join(map(repr, unused)),
                )  # fmt: skip
        return columns

    def fits(self, first: Mapping[str, Any]) -> bool:
        # Lists are messages.
        return not isinstance(first.get("prompt"), list)

    def read(self, cells: Cells) -> Row:
        row: Row = {"prompt": cells.text("prompt")}
        if not cells.to_predict or cells.has("completion"):
            row["completion"] = cells.text("completion")
        if cells.has("references"):
            row["references"] = cells.texts("references")
        return row


class TextSummary(PromptCompletion):
    """`text` and its `summary`: two columns that a language model could read otherwise."""

    name: ClassVar[str] = "text-summary"
    tasks: ClassVar[tuple[str, ...]] = ("seq2seq",)
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "prompt": ("text",), "completion": ("summary",), "references": ("references",),
    }  # fmt: skip

    def find(
        self, available: Sequence[str], explicit: Mapping[str, str], where: str
    ) -> dict[str, str]:
        # Other prompts, and those that are configured, are prompt-completion's.
        if explicit or by_usual_name(PROMPT_NAMES, available, []):
            return dict(explicit)
        return super().find(available, explicit, where)

    def lacking(self, columns: Mapping[str, str]) -> str | None:
        return "prompt" if columns.get("prompt") != "text" else super().lacking(columns)


class Text(RowFormat):
    name: ClassVar[str] = "text"
    tasks: ClassVar[tuple[str, ...]] = ("causal-lm",)
    roles: ClassVar[Mapping[str, bool]] = {"text": True}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": TEXT_NAMES}
    gives: ClassVar[Mapping[str, Kind]] = {"text": "text"}

    def read(self, cells: Cells) -> Row:
        return {"text": cells.text("text")}
