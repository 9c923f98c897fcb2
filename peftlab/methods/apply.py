"""From a method's options to the class that does it, and to a model ready to train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from peftlab.config.methods.options import MethodOptions
from peftlab.config.registry import implementation
from peftlab.methods.method import Applied, Method


def method_of(options: MethodOptions) -> Method[Any]:
    """The method that these options configure. Raises `ConfigError` where it cannot be imported."""
    kind = implementation("method.name", options.name, options.implementation)
    method: Method[Any] = kind(options)
    return method


def apply_method(
    model: nn.Module, options: MethodOptions, *, task: str, tokens: Sequence[int] = ()
) -> Applied:
    """See `Method.apply`."""
    return method_of(options).apply(model, task=task, tokens=tokens)


def save_trained(applied: Applied, run: Path) -> Path:
    """See `Method.save`."""
    return method_of(applied.method).save(applied, run)


def load_trained(
    model: nn.Module, options: MethodOptions, run: Path, *, task: str, tokens: Sequence[int] = ()
) -> Applied:
    """See `Method.load`."""
    return method_of(options).load(model, run, task=task, tokens=tokens)
