"""What LoRA's keys name in a model: layers, ranks, parameters, rows. Each must name something."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from peftlab.config.methods.lora import AdapterOptions
from peftlab.config.methods.lora_rules import takes_from_base
from peftlab.errors import CheckFailed
from peftlab.methods.patterns import pattern_for
from peftlab.methods.targets import matches, meant, resolve_targets
from peftlab.model.structure import input_embeddings

Rows = list[int] | dict[str, list[int]]


def layers_to_adapt(
    model: nn.Module, options: AdapterOptions, saved: Sequence[str]
) -> tuple[str, ...]:
    """Exact names of the layers to adapt, after exclusions and the choice of blocks.

    PEFT ignores `layers_to_transform` for names that are given whole, so neither is passed on.
    Raises `CheckFailed`.
    """
    if options.target_modules == []:
        return ()
    names = resolve_targets(model, options.target_modules, saved)
    names = _not_excluded(model, names, options.exclude_modules)
    if options.layers_to_transform is not None:
        names = _in_blocks(names, options)
    return names


def _not_excluded(
    model: nn.Module, names: tuple[str, ...], excluded: str | Sequence[str] | None
) -> tuple[str, ...]:
    if excluded is None:
        return names
    out: set[str] = set()
    for pattern in [excluded] if isinstance(excluded, str) else excluded:
        if isinstance(excluded, str):
            matched = [name for name in names if re.fullmatch(pattern, name)]
            what = f"is the regular expression {pattern!r}, which matches no whole name"
        else:
            matched = [name for name in names if matches(name, pattern)]
            what = f"names {pattern!r}, which is none"
        if not matched:
            raise CheckFailed(
                f"method.exclude_modules {what} of the layers to adapt{meant(pattern, names)}"
            )
        out.update(matched)
    left = tuple(name for name in names if name not in out)
    if not left:
        raise CheckFailed(
            f"method.exclude_modules leaves out all {len(names)} layers of method.target_modules; "
            "narrow it."
        )
    return left


def _in_blocks(names: tuple[str, ...], options: AdapterOptions) -> tuple[str, ...]:
    patterns = _listed(options.layers_pattern)
    numbers = {name: _block(name, patterns) for name in names}
    known = sorted({number for number in numbers.values() if number is not None})
    if not known:
        where = f"method.layers_pattern is {options.layers_pattern!r}, which" if patterns else ""
        raise CheckFailed(
            f"{where or 'method.layers_to_transform is set, but no name'} numbers none of the "
            f"layers to adapt, {names[0]} among them; leave it out."
        )
    given = options.layers_to_transform
    wanted = {given} if isinstance(given, int) else set(given or ())
    if missing := sorted(wanted - set(known)):
        raise CheckFailed(
            f"method.layers_to_transform names {missing[0]}, but the layers to adapt are in blocks "
            f"{known[0]} to {known[-1]}."
        )
    return tuple(name for name in names if numbers[name] in wanted)


def _block(name: str, patterns: Sequence[str]) -> int | None:
    """The number of the block that a layer lies in, by PEFT's own expressions."""
    tries = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns]
    for expression in tries or [r".*?\.[^.]*\.(\d+)\."]:
        if (match := re.match(expression, name)) is not None:
            return int(match[1])
    return None


def check_ranks(model: nn.Module, options: AdapterOptions, names: Sequence[str]) -> None:
    """Every pattern must be the one for some name, and a start must have as many directions.

    `names` are those of adapted layers and of adapted parameters. Raises `CheckFailed`.
    """
    for key, patterns in (
        ("rank_pattern", options.rank_pattern),
        ("alpha_pattern", options.alpha_pattern),
    ):
        _check_used(key, patterns, names)
    init = options.init_lora_weights
    if not (takes_from_base(init) or init in ("mica", "eva")):
        return
    for name in names:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        rank = options.rank_pattern.get(pattern_for(options.rank_pattern, name) or "", options.r)
        if init != "eva" and rank > min(weight.shape):
            raise CheckFailed(
                f"method.init_lora_weights is {init}, which has {min(weight.shape)} directions in "
                f"{name}, but its rank is {rank}; lower method.r or give it a rank_pattern."
            )


def _check_used(key: str, patterns: Mapping[str, object], names: Sequence[str]) -> None:
    used = {pattern_for(patterns, name) for name in names}
    for pattern in patterns:
        if pattern in used:
            continue
        earlier = [pattern_for(patterns, name) for name in names if pattern_for([pattern], name)]
        if earlier:
            raise CheckFailed(
                f"method.{key} has {pattern!r}, which is never used: {earlier[0]!r} comes first."
            )
        raise CheckFailed(
            f"method.{key} has {pattern!r}, which matches the end of no adapted layer's name"
            f"{meant(pattern, names)}"
        )


def parameters_to_adapt(
    model: nn.Module, given: Sequence[str] | None, layers: Sequence[str]
) -> tuple[str, ...]:
    """Whole names of the parameters that get an adapter of their own. Raises `CheckFailed`."""
    known = dict(model.named_parameters())
    wanted: list[str] = []
    for pattern in given or ():
        matched = [name for name in known if name == pattern or name.endswith(f".{pattern}")]
        if not matched:
            raise CheckFailed(
                f"method.target_parameters names {pattern!r}, which is no parameter of "
                f"{type(model).__name__}{meant(pattern, known)}"
            )
        for name in matched:
            shape = tuple(known[name].shape)
            if len(shape) not in (2, 3):
                raise CheckFailed(
                    f"method.target_parameters names {name} of shape {shape}; matrices and stacks "
                    "of them are adapted."
                )
            if not known[name].is_floating_point():
                raise CheckFailed(
                    f"method.target_parameters names {name}, which is {known[name].dtype}; "
                    "take method lora, or leave it out."
                )
            if name.rpartition(".")[0] in layers:
                raise CheckFailed(
                    f"method.target_parameters names {name}, whose layer has an adapter already by "
                    "method.target_modules; leave it out of one."
                )
            wanted.append(name)
    return tuple(dict.fromkeys(wanted))


def rows_to_train(
    model: nn.Module,
    given: Rows | None,
    markers: Sequence[int],
    saved: Sequence[str],
    layers: Sequence[str],
) -> Rows | None:
    """The rows of embeddings that train: those named, with the tokens that the task adds.

    Raises `CheckFailed` for rows that are not there, and tables that train otherwise.
    """
    names = {module: name for name, module in model.named_modules()}
    own = names[input_embeddings(model)]
    if not isinstance(given, dict):
        rows = sorted({*(given or ()), *markers})
        if rows and given:
            _check_table(model, own, rows, saved, layers)
        return rows or None
    tables: dict[str, list[int]] = {}
    for name, ids in given.items():
        exact = [k for k in names.values() if k == name] or [
            k for k in names.values() if matches(k, name)
        ]
        if len(exact) != 1:
            what = f"could be {len(exact)} modules" if exact else "is no module"
            raise CheckFailed(
                f"method.trainable_token_indices names {name!r}, which {what} of "
                f"{type(model).__name__}{meant(name, names.values())}"
            )
        tables[exact[0]] = sorted(ids)
        _check_table(model, exact[0], ids, saved, layers)
    if markers:
        tables[own] = sorted({*tables.get(own, ()), *markers})
    return tables


def _check_table(
    model: nn.Module, name: str, ids: Sequence[int], saved: Sequence[str], layers: Sequence[str]
) -> None:
    key = "method.trainable_token_indices"
    module = model.get_submodule(name)
    if not isinstance(module, nn.Embedding | nn.Linear):
        raise CheckFailed(
            f"{key} names {name}, a {type(module).__name__}; it takes an embedding or a linear "
            "layer."
        )
    rows = module.weight.shape[0]
    if max(ids) >= rows:
        raise CheckFailed(f"{key} names {max(ids)}, but {name} has rows 0 to {rows - 1}.")
    if name in saved:
        raise CheckFailed(f"{key} names {name}, which trains whole; leave it out of one.")
    if name in layers:
        raise CheckFailed(f"{key} names {name}, which has an adapter; leave it out of one.")


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
