"""From a method to a model of which exactly the right parameters train."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from torch import nn

from peftlab.config.schema import (
    FullMethod,
    HeadMethod,
    LastNMethod,
    LoraMethod,
    MethodConfig,
    QLoraMethod,
)
from peftlab.methods.coverage import Coverage, cover
from peftlab.methods.freeze import freeze
from peftlab.methods.selection import (
    Selection,
    select_all,
    select_head,
    select_last_n,
    task_head,
)
from peftlab.model.heads import PooledClassifier
from peftlab.model.mode import pin_eval
from peftlab.model.structure import base_modules

logger = logging.getLogger("peftlab")


@dataclass(frozen=True, slots=True)
class Applied:
    """A model ready to train.

    `trainable` names parameters as `model.named_parameters()` does; `head_modules` are the modules
    of the base model that train whole for the task; `notes` are sentences the user should read.
    """

    model: nn.Module
    method: MethodConfig
    task: str
    trainable: frozenset[str]
    coverage: Coverage
    head_modules: tuple[str, ...]
    notes: tuple[str, ...] = ()


def apply_method(
    model: nn.Module, method: MethodConfig, *, task: str, tokens: Sequence[int] = ()
) -> Applied:
    """Choose what trains, put adapters on where the method has them, freeze the rest.

    `tokens` are ids whose embeddings an adapter trains beside its own; other methods train them
    with the whole table or not at all. Trainable tensors become fp32, frozen ones keep their dtype.
    Works on meta models. Raises `CheckFailed` or `ConfigError` where the method cannot be applied
    to this model.
    """
    notes: tuple[str, ...] = ()
    match method:
        case HeadMethod():
            selected = select_head(model)
            if not isinstance(model, PooledClassifier):
                for name in base_modules(model):
                    pin_eval(model.get_submodule(name))
        case LastNMethod():
            selected = select_last_n(model, method.n, task)
        case FullMethod():
            selected = select_all(model)
        case LoraMethod() | QLoraMethod():
            model, selected, notes = _adapt(model, method, task, tokens)
        case _:
            assert_never(method)
    freeze(model, selected.names)
    notes = (*selected.notes, *notes)
    for note in notes:
        logger.info("%s", note)
    return Applied(
        model=model,
        method=method,
        task=task,
        trainable=selected.names,
        coverage=cover(model),
        head_modules=selected.head,
        notes=notes,
    )


def _adapt(
    model: nn.Module, method: LoraMethod | QLoraMethod, task: str, tokens: Sequence[int]
) -> tuple[nn.Module, Selection, tuple[str, ...]]:
    from peftlab.methods.adapter_files import adapter_folder, check_same_adapter, load_adapter
    from peftlab.methods.lora import adapt

    source = None if method.init_from is None else adapter_folder(method.init_from)
    heads = task_head(model)
    adapted = adapt(model, method, task, tokens)
    notes: tuple[str, ...] = ()
    if source is not None:
        check_same_adapter(source, adapted.model)
        fresh = load_adapter(source, adapted.model, fresh_head=True)
        notes = (f"training starts from the adapter {source}",)
        if fresh:
            notes = (*notes, f"of which {', '.join(fresh)} did not fit and starts anew")
    saved = tuple(name for name in adapted.saved if name in heads)
    return adapted.model, Selection(adapted.names, saved), notes
