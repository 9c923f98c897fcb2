"""text-label and pair: a text or two, and their label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from peftlab.data.formats.cells import Cells, Kind
from peftlab.data.formats.row_format import Row, RowFormat, by_usual_name

TEXT_NAMES = (
    "text", "sentence", "content", "review", "document", "body", "comment", "tweet", "story",
    "comment_text", "sentence1", "premise", "question", "input",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "intent", "topic",
    "coarse_label", "score", "similarity", "stars", "rating",
)  # fmt: skip
_USUAL_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("question", "sentence"),
    ("question", "passage"),
)


class TextLabel(RowFormat):
    name: ClassVar[str] = "text-label"
    tasks: ClassVar[tuple[str, ...]] = ("text-classification",)
    roles: ClassVar[Mapping[str, bool]] = {"text": True, "label": True}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": TEXT_NAMES, "label": LABEL_NAMES}
    targets: ClassVar[frozenset[str]] = frozenset({"label"})
    gives: ClassVar[Mapping[str, Kind]] = {"text": "text"}
    labels: ClassVar[str | None] = "label"

    @property
    def search_order(self) -> tuple[str, ...]:
        return ("label", "text")

    def read(self, cells: Cells) -> Row:
        return {"text": cells.text("text")}


class Pair(TextLabel):
    name: ClassVar[str] = "pair"
    roles: ClassVar[Mapping[str, bool]] = {"text": True, "text_pair": True, "label": True}
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": TEXT_NAMES, "text_pair": ("text_pair",), "label": LABEL_NAMES,
    }  # fmt: skip
    gives: ClassVar[Mapping[str, Kind]] = {"text": "text", "text_pair": "text"}

    def find(
        self, available: Sequence[str], explicit: Mapping[str, str], where: str
    ) -> dict[str, str]:
        chosen = dict(explicit)
        if "text" in chosen and "text_pair" not in chosen:
            # The configuration chooses one text.
            return chosen
        lowered = {name.lower(): name for name in available if name not in chosen.values()}
        if "text" not in chosen and "text_pair" not in chosen:
            both = [pair for pair in _USUAL_PAIRS if set(pair) <= lowered.keys()]
            if both:
                chosen |= {"text": lowered[both[0][0]], "text_pair": lowered[both[0][1]]}
        for role in ("label", *(("text",) if "text_pair" in chosen else ())):
            if role not in chosen:
                matches = by_usual_name(self.usual[role], available, list(chosen.values()))
                chosen |= {role: matches[0]} if matches else {}
        return {role: chosen[role] for role in ("text", "text_pair", "label") if role in chosen}

    def read(self, cells: Cells) -> Row:
        pair = cells.text("text_pair", may_be_empty=True)
        return {"text": cells.text("text"), "text_pair": pair}
