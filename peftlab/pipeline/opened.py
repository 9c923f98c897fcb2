"""A finished run opened from its folder: its task, its trained model, and checks of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from peftlab import run_folder
from peftlab.config import load_config
from peftlab.errors import CheckFailed
from peftlab.files import read_json
from peftlab.pipeline import preparation
from peftlab.pipeline.fusing import by_choices_of, fuse_for, replay_verdicts

if TYPE_CHECKING:
    import torch
    from torch import nn

    from peftlab.config import RunConfig
    from peftlab.tasks.task import Task


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A trained model ready to predict, with its tokenizer and the dtype of its arithmetic."""

    model: nn.Module
    tokenizer: Any
    compute: torch.dtype


@dataclass(frozen=True)
class OpenedRun:
    """A run's folder, with its configuration and metrics; the model is loaded when first needed."""

    folder: Path
    config: RunConfig
    record: Mapping[str, Any]
    metrics: Mapping[str, Any]
    trained: LoadedRun | None = field(default=None, repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a run's folder. Raises `CheckFailed` where it is not a finished run."""
        path = Path(folder)
        if not path.is_dir():
            raise CheckFailed(
                f"{path} is not a folder; give the folder that `peftlab train` wrote."
            )
        if not run_folder.is_run(path):
            unfinished = run_folder.staging_folder(path)
            hint = (
                f" {unfinished} is unfinished: train with --resume auto."
                if unfinished.is_dir()
                else ""
            )
            raise CheckFailed(f"{path} is not a finished run: it has no {run_folder.RECORD}.{hint}")
        record = read_json(path / run_folder.RECORD)
        config = load_config(path / run_folder.CONFIG, ()).config
        return cls(path, config, record, read_json(path / run_folder.METRICS))

    @cached_property
    def task(self) -> Task:
        """The task as training recorded it, label names included."""
        from peftlab.tasks.registry import task_class

        task = task_class(self.config.task.name).from_state(self.record["task"]["state"])
        return preparation.with_settings(task, self.config)

    @cached_property
    def loaded(self) -> LoadedRun:
        """The base with the trained part applied. Raises `CheckFailed` where either is missing."""
        if self.trained is not None:
            return self.trained
        from peftlab.methods.apply import load_trained
        from peftlab.model.loading import load_model
        from peftlab.model.precision import training_device

        recorded = self.record["model"]
        compared = self._check_base()
        arguments = preparation.base_arguments(self.config) | {"revision": recorded["revision"]}
        base = load_model(recorded["name"], self.task.head(), **arguments)
        if not compared:  # load_model has downloaded the base.
            self._check_base()
        self.task.attach(base.tokenizer, base.model)
        applied = load_trained(
            base.model,
            self.config.method,
            self.folder,
            task=self.config.task.name,
            tokens=self.task.trained_tokens,
        )
        fusion = fuse_for(applied.model, base, self.config)
        replay_verdicts(self.folder, fusion)
        model = applied.model.to(training_device()).eval()
        self.check_tokenizers(base.tokenizer)
        with by_choices_of(self.folder):
            self.check_logits(model, base.compute)
        return LoadedRun(model, base.tokenizer, base.compute)

    def check_tokenizers(self, of_base: Any = None) -> None:
        """Raise `CheckFailed` where the run's tokenizer, or its base's, encodes differently now."""
        from peftlab.pipeline.golden import check_tokenizer

        golden = self.record.get("golden")
        if golden is None:  # A run of a version without golden examples.
            return
        length = int(self.record["max_length"])
        tokenizers = {f"the tokenizer in {self.folder / 'tokenizer'}": self._own_tokenizer}
        if of_base is not None:
            tokenizers[f"the tokenizer of {self.record['model']['name']}"] = of_base
        for what, tokenizer in tokenizers.items():
            check_tokenizer(golden, self.task, tokenizer, max_length=length, what=what)

    def check_logits(self, model: nn.Module, compute: torch.dtype | None = None) -> None:
        """Raise `CheckFailed` where a model's logits are not those of the trained one.

        `compute`: the dtype of its arithmetic; fp32 by default.
        """
        import torch

        from peftlab.pipeline.golden import check_logits

        golden = self.record.get("golden")
        if golden is None:
            return
        check_logits(
            golden, self.task, model, self._own_tokenizer,
            compute=compute or torch.float32, what=f"the model of {self.folder}",
        )  # fmt: skip

    @cached_property
    def _own_tokenizer(self) -> Any:
        from peftlab.model.loading import load_tokenizer

        return load_tokenizer(
            str(self.folder / "tokenizer"), trust_remote_code=self.config.model.trust_remote_code
        )

    def _check_base(self) -> bool:
        from peftlab.methods.apply import method_of
        from peftlab.pipeline.fingerprints import check_base

        base = self.record["model"]
        return check_base(
            method_of(self.config.method).folder(self.folder),
            base["name"],
            base["revision"],
            trust_remote_code=self.config.model.trust_remote_code,
        )
