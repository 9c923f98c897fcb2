"""Which column plays which role: named by the user, else found by its usual names."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence

from peftlab.errors import ConfigError, DataError

logger = logging.getLogger("peftlab")

_USUAL_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("question", "sentence"),
    ("question", "passage"),
)
_USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "text": (
        "text", "sentence", "content", "review", "document", "body", "comment", "tweet", "story",
        "sentence1", "premise", "question", "input",
    ),
    "label": (
        "label", "labels", "class", "category", "target", "sentiment", "intent", "topic",
        "coarse_label",
    ),
    "prompt": ("prompt", "instruction", "input", "question", "query", "source"),
    "completion": ("completion", "output", "response", "answer", "target", "chosen"),
}  # fmt: skip


def resolve_columns(
    available: Sequence[str], explicit: Mapping[str, str], roles: Mapping[str, bool], where: str
) -> dict[str, str]:
    """Role to column.

    `roles` maps each role to whether it is required. A task that reads both `text` and
    `prompt`/`completion` gets one or the other: what the user named, else the pair where it is
    there, else the text. Raises `ConfigError` for a role that is none, `DataError` for a column
    that is not there.
    """
    for role in explicit:
        if role not in roles:
            near = difflib.get_close_matches(role, roles, 1)
            raise ConfigError(
                f"data.columns.{role} is not a role of this task; roles are {', '.join(roles)}."
                + (f" Did you mean {near[0]}?" if near else "")
            )
    for role, column in explicit.items():
        if column not in available:
            raise DataError(
                f"{where} has no column {column!r} (data.columns.{role}); "
                + describe_available(column, available)
            )
    doubled = next((c for c in explicit.values() if list(explicit.values()).count(c) > 1), None)
    if doubled is not None:
        raise ConfigError(f"data.columns uses column {doubled!r} for two roles.")
    chosen = dict(explicit)
    if "completion" in roles:
        _find_prompt_and_completion(chosen, available, where)
    else:
        _find_text_and_label(chosen, available, roles)
    missing = [role for role, required in roles.items() if required and role not in chosen]
    if missing:
        role = missing[0]
        raise DataError(
            f"{where} has no column for {role!r}: none is called {', '.join(_USUAL_NAMES[role])}; "
            + describe_available(role, available)
            + f" Name it with data.columns.{role}=..."
        )
    guessed = {role: column for role, column in chosen.items() if role not in explicit}
    if guessed:
        spoken = ", ".join(f"{role} = {column!r}" for role, column in guessed.items())
        logger.info("columns found by name in %s: %s", where, spoken)
    return {role: chosen[role] for role in roles if role in chosen}


def describe_available(wanted: str, available: Sequence[str]) -> str:
    """The columns that are there, nearest first."""
    lowered = {name.lower(): name for name in available}
    near = difflib.get_close_matches(wanted.lower(), lowered, 3, 0.5)
    nearest = f"nearest: {', '.join(lowered[name] for name in near)}; " if near else ""
    shown = ", ".join(available[:12]) + (", ..." if len(available) > 12 else "")
    return f"{nearest}its columns are {shown}."


def _by_usual_name(role: str, available: Sequence[str], taken: Sequence[str]) -> list[str]:
    lowered = {name.lower(): name for name in available if name not in taken}
    return [lowered[name] for name in _USUAL_NAMES[role] if name in lowered]


def _find_text_and_label(
    chosen: dict[str, str], available: Sequence[str], roles: Mapping[str, bool]
) -> None:
    lowered = {name.lower(): name for name in available if name not in chosen.values()}
    if "text" not in chosen and "text_pair" not in chosen and "text_pair" in roles:
        for first, second in _USUAL_PAIRS:
            if first in lowered and second in lowered:
                chosen |= {"text": lowered[first], "text_pair": lowered[second]}
                break
    for role in ("label", "text"):
        if role in roles and role not in chosen:
            found = _by_usual_name(role, available, list(chosen.values()))
            if found:
                chosen[role] = found[0]


def _find_prompt_and_completion(
    chosen: dict[str, str], available: Sequence[str], where: str
) -> None:
    if "text" in chosen:
        if len(chosen) > 1:
            raise ConfigError(
                "data.columns names both text and prompt/completion; plain text has neither "
                "prompt nor completion."
            )
        return
    asked, prompt_guessed = bool(chosen), "prompt" not in chosen
    prompts = _by_usual_name("prompt", available, list(chosen.values()))
    completions = _by_usual_name("completion", available, list(chosen.values()))
    found = dict(chosen)
    if "prompt" not in found and prompts:
        found["prompt"] = prompts[0]
    completions = [name for name in completions if name not in found.values()]
    if "completion" not in found and completions:
        found["completion"] = completions[0]
    if {"prompt", "completion"} <= found.keys():
        chosen.update(found)
        unused = [name for name in prompts if name not in found.values()]
        if unused and prompt_guessed:
            logger.warning(
                "%s: the prompt is column %r alone; %s is not read. Join the columns into one, or "
                "name another with data.columns.prompt=...",
                where, found["prompt"], ", ".join(map(repr, unused)),
            )  # fmt: skip
        return
    if asked:
        role = "completion" if "completion" not in found else "prompt"
        raise DataError(
            f"{where} has no column for {role!r}; {describe_available(role, available)} "
            f"Name it with data.columns.{role}=..."
        )
    texts = _by_usual_name("text", available, [])
    if not texts:
        raise DataError(
            f"{where} has neither a text column ({', '.join(_USUAL_NAMES['text'][:5])}, ...) nor "
            f"a prompt and a completion; {describe_available('text', available)} "
            "Name them with data.columns.text=... or data.columns.prompt=... and .completion=..."
        )
    chosen["text"] = texts[0]
