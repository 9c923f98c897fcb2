"""Tasks by the name that a configuration gives them."""

from __future__ import annotations

from importlib import import_module

from peftlab.config.tasks import TASKS
from peftlab.errors import ConfigError
from peftlab.tasks.task import Task

_CLASSES = {
    "text-classification": ("classification.text_classification", "TextClassification"),
    "token-classification": ("tagging.token_classification", "TokenClassification"),
    "question-answering": ("answering.question_answering", "QuestionAnswering"),
    "relation-extraction": ("classification.relation_extraction", "RelationExtraction"),
    "causal-lm": ("language.causal_lm", "CausalLM"),
    "seq2seq": ("language.seq2seq", "Seq2Seq"),
}


def task_class(name: str) -> type[Task]:
    """The task called `name`.

    Its module, and torch with it, is imported now. Raises `ConfigError` for an unknown name.
    """
    if name not in TASKS:
        raise ConfigError(f"task {name!r} is none of {', '.join(TASKS)}.")
    module, class_name = _CLASSES[name]
    kind: type[Task] = getattr(import_module(f"peftlab.tasks.{module}"), class_name)
    return kind
