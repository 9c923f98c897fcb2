"""Methods that train parameters of the model itself, whole: saved as one safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from peftlab.errors import CheckFailed
from peftlab.methods.adapter_files import check_same_tensors
from peftlab.methods.method import Applied, Method, Options
from peftlab.methods.trained_part import TRAINED, WEIGHTS, load_trained_state, trained_state

_FORMAT = "1"


class WholeMethod(Method[Options]):
    """Saves the trained parameters under the model's names in `trained/`, and loads them."""

    def folder(self, run: Path) -> Path:
        """See `Method.folder`."""
        return run / TRAINED

    def save(self, applied: Applied, run: Path) -> Path:
        """See `Method.save`."""
        target = self.folder(run)
        target.mkdir(parents=True, exist_ok=True)
        state = {n: t.cpu().contiguous() for n, t in trained_state(applied.model).items()}
        config = getattr(applied.model, "config", None)
        metadata = {
            "format": "pt",
            "peftlab_format": _FORMAT,
            "method": applied.method.name,
            "task": applied.task,
            "base_model_name_or_path": str(getattr(config, "name_or_path", "")),
        }
        save_file(state, target / WEIGHTS, metadata=metadata)
        return target

    def load(
        self, model: nn.Module, run: Path, *, task: str, tokens: Sequence[int] = ()
    ) -> Applied:
        """See `Method.load`."""
        file = self.folder(run) / WEIGHTS
        if not file.is_file():
            raise CheckFailed(f"{run} has no {TRAINED}/{WEIGHTS}; the run is not whole.")
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
            state = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckFailed(f"{file} is not a whole safetensors file ({error}).") from None
        name = self.options.name
        if metadata.get("method") != name:
            raise CheckFailed(
                f"{file} was trained by {metadata.get('method', 'another method')}, not {name}."
            )
        applied = self.apply(model, task=task)
        check_same_tensors(state, trained_state(applied.model), str(file))
        load_trained_state(applied.model, state)
        return applied
