"""A saved adapter's two files: what it says it is, and tensors that must fit exactly."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file

from peftlab.errors import CheckFailed

ADAPTER_NAME = "default"
"""What PEFT calls the one adapter of a model."""

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


OWN_NAMES = tuple(
    sorted({*PEFT_TYPE_TO_PREFIX_MAPPING.values(), "pvera_", "vera_", "adaption_", "ranknum"})
)
"""How the parts of a name begin that are an adapter's own, whatever its type."""


def is_adapters(name: str) -> bool:
    """Whether a parameter or a saved tensor is an adapter's own, rather than a whole module's."""
    parts = name.split(".")
    return parts[0] in ("prompt_encoder", "prompt_embeddings") or any(
        part.startswith(OWN_NAMES) for part in parts
    )


def adapter_folder(path: str | Path) -> Path:
    """An adapter's folder, given it or the run that holds it. Raises `CheckFailed`."""
    given = Path(path).expanduser()
    for folder in (given, given / "adapter"):
        if (folder / CONFIG).is_file():
            if not (folder / WEIGHTS).is_file():
                raise CheckFailed(
                    f"{folder} has no {WEIGHTS}; pickled adapters are refused, since unpickling "
                    "runs code: load it where you trust it and save_pretrained again."
                )
            return folder
    raise CheckFailed(f"{given} holds no adapter: there is no {CONFIG}; give an adapter's folder.")


def load_adapter(
    folder: Path,
    model: PeftModel,
    *,
    fresh_head: bool,
    saved: Mapping[str, torch.Tensor] | None = None,
) -> tuple[str, ...]:
    """Copy a saved adapter's tensors into the one on `model`; nothing may be left over.

    `fresh_head`: whole modules that are missing there, or are of another shape (another number of
    labels), keep their new weights; returned are their names. Another task's head is left behind.
    `saved` is what is taken in place of the folder's tensors. Raises `CheckFailed` naming keys, or
    whole modules that this model has but does not adapt.
    """
    saved = saved_tensors(folder) if saved is None else saved
    mine = adapter_tensors(model)
    whole = {key for key in mine if not is_adapters(key)}
    kept = {
        key
        for key in whole
        if fresh_head and (key not in saved or saved[key].shape != mine[key].shape)
    }
    dropped = {key for key in saved if fresh_head and not is_adapters(key) and key not in mine}
    _refuse_lost(dropped, model, folder)
    check_same_tensors(
        {k: v for k, v in saved.items() if k not in kept | dropped},
        {k: v for k, v in mine.items() if k not in kept},
        str(folder / WEIGHTS),
    )
    with torch.no_grad():
        for key, tensor in mine.items():
            if key not in kept and not tensor.is_meta:
                tensor.copy_(saved[key])
    return tuple(sorted({_module_of(key) for key in kept}))


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """An adapter's tensors. Raises `CheckFailed` where the file is damaged."""
    try:
        saved: dict[str, torch.Tensor] = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckFailed(
            f"{folder / WEIGHTS} is not a whole safetensors file ({error})."
        ) from None
    return saved


def _refuse_lost(dropped: Collection[str], model: PeftModel, folder: Path) -> None:
    """A module that the adapter trained whole and this model has: what it learnt must not go."""
    here = {name for name, _ in model.get_base_model().named_modules()}
    lost = sorted({_module_of(key) for key in dropped} & here)
    if lost:
        raise CheckFailed(
            f"{folder} trained whole modules that this method would leave as the base has them: "
            f"{', '.join(lost)}; add them to method.modules_to_save."
        )


def _module_of(key: str) -> str:
    return key.removeprefix("base_model.model.").rpartition(".")[0]


def adapter_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's own tensors, sharing memory with the parameters, under their names on disk."""
    with vectors_allowed():
        tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(
            model, save_embedding_layers=False
        )
    return {name: tensor for name, tensor in tensors.items() if not doubled_bias(name)}


@contextmanager
def vectors_allowed() -> Iterator[None]:
    """PEFT takes the bias of `lora_bias` for the shard of a matrix, and warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Adapter '.*': \d+ LoRA tensor")
        yield


def doubled_bias(name: str) -> bool:
    """Whether a key is a bias that PEFT saves again under names inside `modules_to_save`."""
    return ".original_module." in name or ".modules_to_save." in name


def check_same_tensors(
    saved: Mapping[str, torch.Tensor], mine: Mapping[str, torch.Tensor], where: str
) -> None:
    """Same names, same shapes. Raises `CheckFailed` naming what differs."""
    missing, extra = sorted(mine.keys() - saved.keys()), sorted(saved.keys() - mine.keys())
    shapes = [k for k in sorted(mine.keys() & saved.keys()) if mine[k].shape != saved[k].shape]
    wrong = []
    if missing:
        wrong.append(f"lacks {len(missing)} tensors ({missing[0]}, ...)")
    if extra:
        wrong.append(f"has {len(extra)} tensors too many ({extra[0]}, ...)")
    if shapes:
        key = shapes[0]
        wrong.append(f"holds {key} as {tuple(saved[key].shape)}, here {tuple(mine[key].shape)}")
    if wrong:
        raise CheckFailed(
            f"{where} does not fit: it {' and '.join(wrong)}; the model or the method's targets "
            "differ from those it was trained with."
        )
