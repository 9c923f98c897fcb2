"""What a method must know of a task, by the task's name."""

from __future__ import annotations

from peft import TaskType
from torch import nn

from peftlab.config.tasks.options import TASKS

# What PEFT adds to the modules of such models, whether they are its head or not.
_PEFT_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def has_new_head(task: str) -> bool:
    """Whether the head is drawn anew for the task, and not the pretrained model's own."""
    return TASKS[task].head == "classifier"


def peft_type(task: str, model: nn.Module) -> TaskType:
    """PEFT's name for the task, which says the class of Transformers that an adapter is for."""
    if type(model).__name__.endswith("ForTokenClassification"):
        return TaskType.TOKEN_CLS
    return TaskType(TASKS[task].peft_type)


def peft_heads(task: str) -> tuple[str, ...]:
    """Ends of the module names that PEFT trains whole without being given them."""
    return _PEFT_HEADS.get(TASKS[task].peft_type, ())
