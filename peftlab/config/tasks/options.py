"""What every task says about itself to the configuration, without importing torch.

A task is named by one value, `task`, as a method is; its options class has the task's own keys and,
as class variables, what of the shared configuration the task reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

from peftlab.config.formats import formats_of, roles_of
from peftlab.config.registry import Registry
from peftlab.config.tagged import TaggedSection

LabelKind = Literal["one", "many", "number", "auto"]
"""What a row's label is: one class, a list of classes, a number; auto: as the rows show."""


_HERE = "peftlab.config.tasks"

TASKS: Registry[TaskOptions] = Registry(
    "peftlab.tasks",
    "peftlab.config.tasks.options:TaskOptions",
    {
        "text-classification": f"{_HERE}.text_classification:TextClassificationOptions",
        "token-classification": f"{_HERE}.token_classification:TokenClassificationOptions",
        "question-answering": f"{_HERE}.question_answering:QuestionAnsweringOptions",
        "relation-extraction": f"{_HERE}.relation_extraction:RelationExtractionOptions",
        "causal-lm": f"{_HERE}.causal_lm:CausalLMOptions",
        "seq2seq": f"{_HERE}.seq2seq:Seq2SeqOptions",
    },
)
"""Every task's options by name; other packages add theirs by the entry points of that group."""


class _FormatsThatServe:
    """The formats that say they serve the task."""

    def __get__(self, options: Any, owner: type[TaskOptions]) -> tuple[str, ...]:
        return () if owner.stands_for_all() else formats_of(owner.tag())


class _RolesOfFormats:
    """The roles of the task's formats that it reads."""

    def __get__(self, options: Any, owner: type[TaskOptions]) -> tuple[str, ...]:
        return () if owner.stands_for_all() else roles_of(owner.tag(), owner.formats)


class TaskOptions(TaggedSection):
    """Base of the tasks' options: a task's own keys, and what others ask of it."""

    kinds: ClassVar[Mapping[str, Any]] = TASKS

    implementation: ClassVar[str]
    """"module:Class" of the `peftlab.tasks.task.Task` that does it."""
    formats: ClassVar[tuple[str, ...]] = cast("tuple[str, ...]", _FormatsThatServe())
    """Formats of rows that the task takes; `data.format: auto` tries them in this order.

    Formats say which tasks they serve; a task of another package may name formats here instead.
    """
    roles: ClassVar[tuple[str, ...]] = cast("tuple[str, ...]", _RolesOfFormats())
    """Column roles that `data.columns` may name: those of the formats that the task reads."""
    example_roles: ClassVar[tuple[str, ...]]
    """The roles of its plainest rows, for the template."""
    metrics: ClassVar[Mapping[str, bool]]
    """Every metric that the task reports under any of its options: whether greater is better."""
    best_metric: ClassVar[str]
    """The metric that chooses where `eval.best` is auto."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Shared keys marked `ReadBy` that this task reads, dotted: data.packing, eval.generation."""
    head: ClassVar[Literal["classifier", "language-model"]] = "classifier"
    """Whether the head is new and trains whole, or is the pretrained model's own."""
    peft_type: ClassVar[str] = "SEQ_CLS"
    """`peft.TaskType` of its adapters."""
    features: ClassVar[Literal["row", "token"] | None] = None
    """What a frozen base gives the head, and `method: head` may keep: one vector a row, or a token.

    None: nothing that could be kept; each step runs the base.
    """
    predict_example: ClassVar[str] = '"a text of yours"'
    """What follows `peftlab predict RUN` in the hint at the end of `train`."""

    @property
    def label_kind(self) -> LabelKind:
        """What a row's label is under these options."""
        return "one"
