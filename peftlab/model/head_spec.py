"""What a task asks of the model it is trained on: the auto class and the configuration's fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The kind of head a task needs, in Transformers' terms.

    `auto_class` names one of Transformers' auto classes; `config` holds the configuration fields
    that shape the head (`num_labels`, `id2label`, `label2id`, `problem_type`).
    """

    auto_class: str
    config: Mapping[str, object] = field(default_factory=dict)
