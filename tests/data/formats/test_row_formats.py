"""Each format of rows, written by its published description from known data, reads equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab.config.tasks.options import TASKS
from peftlab.data.loading import load_splits
from peftlab.data.splits import Splits
from tests.data.formats.known import (
    ENTITIES,
    PAIRS,
    TOKENS,
    WANTED,
    Rows,
    fewrel,
    flat,
    jsonl,
    label_studio_choices,
    label_studio_spans,
    marked,
    named,
    opennre_text,
    opennre_tokens,
    prodigy_choice,
    prodigy_label,
    prodigy_spans,
    squad,
    table,
    tacred,
    token_rows,
)

# Case: its format, its task, its file and what is written there, settings.
CASES: dict[str, tuple[str, str, str, Callable[[], str], dict[str, Any]]] = {
    "doccano": ("char-spans", "token-classification", "a.jsonl", lambda: jsonl(
        [{"id": 1, "text": t, "label": [list(s) for s in spans]} for t, spans, _ in ENTITIES]), {}),
    "doccano, labels": ("char-spans", "token-classification", "a.jsonl", lambda: jsonl(
        [{"text": t, "labels": [list(s) for s in spans]} for t, spans, _ in ENTITIES]), {}),
    "doccano, entities": ("char-spans", "token-classification", "a.jsonl", lambda: jsonl(
        [{"id": 1, "text": t, "Comments": [], "relations": [], "entities": [
            {"id": i, "label": n, "start_offset": s, "end_offset": e}
            for i, (s, e, n) in enumerate(spans)]} for t, spans, _ in ENTITIES]), {}),
    "label-studio JSON-MIN": ("char-spans", "token-classification", "a.json", lambda: json.dumps(
        [{"text": t, "id": 1, "annotator": 1, "label": [
            {"start": s, "end": e, "text": t[s:e], "labels": [n]} for s, e, n in spans]}
         for t, spans, _ in ENTITIES]), {}),
    "prodigy": ("char-spans", "token-classification", "a.jsonl", lambda: jsonl(prodigy_spans()),
                {}),
    "label-studio": ("label-studio-spans", "token-classification", "a.json",
                     lambda: json.dumps(label_studio_spans("points")), {}),
    "label-studio, UTF-16": ("label-studio-spans", "token-classification", "a.json",
                             lambda: json.dumps(label_studio_spans("units")), {}),
    "tokens and tags": ("tokens-tags", "token-classification", "a.jsonl", lambda: jsonl(TOKENS),
                        {}),
    "a token a row": ("token-rows", "token-classification", "a.csv", lambda: table(token_rows()),
                      {}),
    "tacred": ("tacred", "relation-extraction", "a.json", lambda: json.dumps(tacred()), {}),
    "opennre": ("opennre", "relation-extraction", "a.jsonl", lambda: jsonl(opennre_tokens()), {}),
    "opennre, text": ("opennre", "relation-extraction", "a.jsonl", lambda: jsonl(opennre_text()),
                      {}),
    "fewrel": ("opennre", "relation-extraction", "a.jsonl", lambda: jsonl(fewrel()), {}),
    "marks <e1>": ("relation", "relation-extraction", "a.csv",
                   lambda: table(marked("<e1>", "<e2>")), {}),
    "marks [E1]": ("relation", "relation-extraction", "a.jsonl",
                   lambda: jsonl(marked("[E1]", "[E2]")), {}),
    "squad": ("squad", "question-answering", "a.jsonl", lambda: jsonl(squad()), {}),
    "qa-flat": ("qa-flat", "question-answering", "a.jsonl", lambda: jsonl(flat(starts=True)), {}),
    "qa-flat in csv": ("qa-flat", "question-answering", "a.csv",
                       lambda: table(flat(starts=True, lists=False)), {}),
    "qa-flat without starts": ("qa-flat", "question-answering", "a.jsonl",
                               lambda: jsonl(flat(starts=False)), {}),
    "prodigy choices": ("prodigy-text", "text-classification", "a.jsonl",
                        lambda: jsonl(prodigy_choice()), {}),
    "prodigy labels": ("prodigy-text", "text-classification", "a.jsonl",
                       lambda: jsonl(prodigy_label()), {}),
    "label-studio choices": ("label-studio-choices", "text-classification", "a.json",
                             lambda: json.dumps(label_studio_choices()), {}),
    "text and label": ("text-label", "text-classification", "a.csv",
                       lambda: table(WANTED["text-classification"]), {}),
    "translation": ("translation", "seq2seq", "a.jsonl", lambda: jsonl(
        [{"translation": {"en": a, "de": b}} for a, b in PAIRS]),
        {"columns": {"prompt": "translation.en"}}),
    "translation, into": ("translation", "seq2seq", "a.csv", lambda: table(
        [{"translation": json.dumps({"en": a, "de": b})} for a, b in PAIRS]),
        {"columns": {"completion": "translation.de"}}),
    "translation, both named": ("translation", "seq2seq", "a.jsonl", lambda: jsonl(
        [{"translation": {"de": b, "en": a, "fr": "x"}} for a, b in PAIRS]),
        {"columns": {"prompt": "translation.en", "completion": "translation.de"}}),
    "text and summary": ("text-summary", "seq2seq", "a.jsonl",
                         lambda: jsonl(named("text", "summary")()), {}),
    **{f"{a}, {b}": ("prompt-completion", "seq2seq", "a.jsonl",
                     lambda a=a, b=b: jsonl(named(a, b)()), {})
       for a, b in (("input_text", "target_text"), ("article", "highlights"),
                    ("dialogue", "summary"), ("src", "tgt"), ("source", "target"))},
}  # fmt: skip


def load(source: Path, task: str, **settings: Any) -> Splits:
    kind = TASKS[task]
    options = kind.model_validate({"name": task})
    return load_splits(
        str(source), formats=kind.formats, roles=kind.roles, label_kind=options.label_kind,
        validation=0.0, **settings,
    )  # fmt: skip


def plain(splits: Splits, wanted: Rows) -> Rows:
    rows = [{name: row[name] for name in wanted[0]} for row in splits.train]
    # One label of a list of one is the label.
    return [{k: v[0] if k == "label" and isinstance(v, list) else v for k, v in row.items()}
            for row in rows]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_format_reads_as_it_was_written(case: str, tmp_path: Path) -> None:
    form, task, name, write, settings = CASES[case]
    file = tmp_path / name
    file.write_text(write(), encoding="utf-8")
    splits = load(file, task, **settings)
    assert splits.format == form
    assert plain(splits, WANTED[task]) == WANTED[task]
