"""Languages of translation models: mBART, mBART-50, NLLB, M2M100 and those built like them.

Their tokenizers mark the language of every text with a token. Before a target's text it is the
first token that generation is forced to write (mBART-50, NLLB, M2M100), or the token with which the
decoder starts (mBART); both follow from how the tokenizer writes a target.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Languages:
    """A source's and a target's language, with ids: one of `forced` and `start`.

    `forced` is the first token of every target, `start` the decoder's start token.
    """

    source: str
    target: str
    forced: int | None = None
    start: int | None = None


def set_languages(
    tokenizer: PreTrainedTokenizerBase, source: str | None, target: str | None
) -> Languages | None:
    """Set `task.src_lang` and `task.tgt_lang` in the tokenizer, which saves them; None: has none.

    Where both are None, a checkpoint of one pair says which in its tokenizer_config.json. Raises
    `ConfigError` for an unknown code, a missing one, and codes where the tokenizer has none.
    """
    name, marked = tokenizer.name_or_path, _codes(tokenizer)
    if not marked:
        if source is not None or target is not None:
            key = "task.src_lang" if source is not None else "task.tgt_lang"
            raise ConfigError(
                f"{key} is {source or target!r}, but the tokenizer of {name} has no languages; "
                "leave it out. T5 reads a language in the text: "
                'task.prefix="translate English to German: "'
            )
        return None
    saved = tokenizer.init_kwargs
    chosen = {"src_lang": source, "tgt_lang": target}
    if source is None and target is None and saved.get("tgt_lang") is not None:
        # Alone, a saved src_lang is the library's default, written by every `save_pretrained`.
        chosen = {key: saved.get(key) for key in chosen}
    missing = [f"task.{key}" for key, code in chosen.items() if code is None]
    if missing:
        raise ConfigError(
            f"{name} translates between languages that its tokenizer marks, and nothing says "
            f"which: set {' and '.join(missing)}, each one of {_listed(marked)}."
        )
    for key, code in chosen.items():
        if code not in marked:
            near = did_you_mean(str(code), marked, most=3, cutoff=0.5) or _alike(str(code), marked)
            raise ConfigError(
                f"task.{key} is {code!r}, which {name} does not know{near or ';'} it has "
                f"{_listed(marked)}."
            )
    languages: Any = tokenizer
    languages.src_lang, languages.tgt_lang = chosen["src_lang"], chosen["tgt_lang"]
    # What `save_pretrained` writes.
    saved.update(chosen)
    return _of_target(tokenizer, str(chosen["src_lang"]), str(chosen["tgt_lang"]))


def _codes(tokenizer: Any) -> tuple[str, ...]:
    """The codes of a tokenizer's languages; empty where it marks none."""
    if not (hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")):
        return ()
    known: Iterable[Any] = getattr(tokenizer, "lang_code_to_id", ())
    # NLLB's are its additional special tokens.
    return tuple(map(str, known or getattr(tokenizer, "extra_special_tokens", ())))


def _of_target(tokenizer: Any, source: str, target: str) -> Languages:
    known = getattr(tokenizer, "lang_code_to_id", {})
    mark = known[target] if target in known else tokenizer.convert_tokens_to_ids(target)
    written = list(tokenizer(text_target="")["input_ids"])
    # NLLB's legacy form moves the mark behind a text, though its decoder expects it before.
    before = getattr(tokenizer, "legacy_behaviour", False) or (
        mark in written and written.index(mark) < written.index(tokenizer.eos_token_id)
    )
    if before:
        return Languages(source, target, forced=mark)
    return Languages(source, target, start=mark)


def _alike(code: str, known: tuple[str, ...]) -> str:
    """A hint for codes of another convention: `fr` for fra_Latn, `fr-FR` for fr_XX."""
    near = [name for name in known if name.lower().strip("_")[:2] == code.lower().strip("_")[:2]]
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def _listed(codes: tuple[str, ...]) -> str:
    more = f", ... ({len(codes)} in all)" if len(codes) > _SHOWN else ""
    return ", ".join(codes[:_SHOWN]) + more
