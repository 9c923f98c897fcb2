"""One known data set a task, and what is needed to write it in published forms."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]

# Text, its entities' spans in code points, and its words with their tags, all by hand.
ENTITIES: list[tuple[str, list[tuple[int, int, str]], str]] = [
    ("Ada Lovelace lived in London.", [(0, 12, "PER"), (22, 28, "LOC")],
     "Ada/B-PER Lovelace/I-PER lived/O in/O London/B-LOC ./O"),
    ("No name, none.", [], "No/O name/O ,/O none/O ./O"),
    ("😀 Zoë met O'Brien in Åre", [(2, 5, "PER"), (10, 17, "PER"), (21, 24, "LOC")],
     "😀/O Zoë/B-PER met/O O/B-PER '/I-PER Brien/I-PER in/O Åre/B-LOC"),
    ("東京は大きい", [(0, 2, "LOC")], "東/B-LOC 京/I-LOC は/O 大/O き/O い/O"),
    ("preEUpost", [(3, 5, "ORG")], "pre/O EU/B-ORG post/O"),
]  # fmt: skip
TAGGED = [[pair.rsplit("/", 1) for pair in words.split()] for _, _, words in ENTITIES]
TOKENS = [{"tokens": [w for w, _ in row], "tags": [t for _, t in row]} for row in TAGGED]

# Tokens; first and last token, included, of subject and object; relation.
RELATIONS: list[tuple[str, tuple[int, int], tuple[int, int], str]] = [
    ("Ada Lovelace was born in London", (0, 1), (5, 5), "born_in"),
    ("In Paris , Marie Curie worked", (3, 4), (1, 1), "works_in"),
    ("The left wing of the plane", (1, 2), (5, 5), "part_of"),
]
QUESTIONS: list[tuple[str, str, list[tuple[str, int]]]] = [
    ("Who?", "Ada lived in London.", [("Ada", 0)]),
    ("Where?", "Ada lived in London.", [("London", 13), ("in London", 10)]),
    ("When?", "Ada lived in London.", []),
]
TEXTS = [("fine film", "good"), ("dull film", "bad"), ("great fun", "good"), ("a bore", "bad")]
PAIRS = [("A house.", "Ein Haus."), ("A cat.", "Eine Katze."), ("Rain.", "Regen.")]


def relation(words: str, first: tuple[int, int], second: tuple[int, int], name: str) -> Any:
    tokens = words.split()
    starts = [len(" ".join(tokens[:at])) + (at > 0) for at in range(len(tokens))]
    spans = [{"start": starts[a], "end": starts[b] + len(tokens[b])} for a, b in (first, second)]
    return {"text": words, "head": spans[0], "tail": spans[1], "label": name}


WANTED: dict[str, Rows] = {
    "token-classification": TOKENS,
    "relation-extraction": [relation(*row) for row in RELATIONS],
    "question-answering": [
        {"question": question, "context": context,
         "answers": {"text": [a for a, _ in answers], "answer_start": [s for _, s in answers]}}
        for question, context, answers in QUESTIONS
    ],
    "text-classification": [{"text": text, "label": label} for text, label in TEXTS],
    "seq2seq": [{"prompt": prompt, "completion": completion} for prompt, completion in PAIRS],
}  # fmt: skip


def jsonl(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(rows: Rows) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def prodigy_spans() -> Rows:
    rows: Rows = []
    for text, spans, _ in ENTITIES:
        starts = [(m.start(), m.end()) for m in re.finditer(r"\S+", text)]
        rows += [
            {"text": text, "_input_hash": 1, "_task_hash": 2, "_view_id": "ner_manual",
             "tokens": [{"text": text[s:e], "start": s, "end": e, "id": i, "ws": True}
                        for i, (s, e) in enumerate(starts)],
             "spans": [{"start": s, "end": e, "token_start": 0, "token_end": 0, "label": label}
                       for s, e, label in spans],
             "answer": answer}
            for answer in ("accept", "reject")
        ]  # fmt: skip
    return rows


def label_studio_spans(units: str) -> Rows:
    rows: Rows = []
    for at, (text, spans, _) in enumerate(ENTITIES):

        def offset(index: int, text: str = text) -> int:
            return index if units == "points" else len(text[:index].encode("utf-16-le")) // 2

        result = [
            {"id": f"r{at}", "type": "labels", "from_name": "label", "to_name": "text",
             "value": {"start": offset(s), "end": offset(e), "text": text[s:e], "labels": [label]}}
            for s, e, label in spans
        ]  # fmt: skip
        done = {"id": at, "was_cancelled": False, "ground_truth": False, "result": result}
        rows.append({"id": at, "annotations": [done], "predictions": [], "data": {"text": text}})
    skipped = {"id": 98, "was_cancelled": True, "ground_truth": False, "result": []}
    rows.append({"id": 98, "annotations": [skipped], "predictions": [], "data": {"text": "x y"}})
    rows.append({"id": 99, "annotations": [], "predictions": [], "data": {"text": "not done"}})
    return rows


def label_studio_choices() -> Rows:
    return [
        {"id": at, "data": {"review": text}, "annotations": [
            {"id": at, "was_cancelled": False, "result": [
                {"type": "choices", "from_name": "sentiment", "to_name": "text",
                 "value": {"choices": [label]}}]}]}
        for at, (text, label) in enumerate(TEXTS)
    ]  # fmt: skip


def token_rows() -> Rows:
    return [
        {
            "Sentence #": f"Sentence: {at}" if first == 0 else "",
            "Word": word,
            "POS": "X",
            "Tag": tag,
        }
        for at, row in enumerate(TAGGED, start=1)
        for first, (word, tag) in enumerate(row)
    ]


def opennre_tokens() -> Rows:
    return [
        {"token": words.split(), "h": {"name": "a", "id": "Q1", "pos": [a[0], a[1] + 1]},
         "t": {"name": "b", "id": "Q2", "pos": [b[0], b[1] + 1]}, "relation": name}
        for words, a, b, name in RELATIONS
    ]  # fmt: skip


def opennre_text() -> Rows:
    return [
        {"text": row["text"], "relation": row["label"],
         **{k: {"id": "Q1", "name": "x", "pos": [row[r]["start"], row[r]["end"]]}
            for k, r in (("h", "head"), ("t", "tail"))}}
        for row in WANTED["relation-extraction"]
    ]  # fmt: skip


def fewrel() -> Rows:
    return [
        {"tokens": words.split(), "h": ["a", "Q1", [list(range(a[0], a[1] + 1))]],
         "t": ["b", "Q2", [list(range(b[0], b[1] + 1))]], "relation": name}
        for words, a, b, name in RELATIONS
    ]  # fmt: skip


def tacred() -> Rows:
    return [
        {"id": "e1", "docid": "d", "relation": name, "token": words.split(),
         "subj_start": a[0], "subj_end": a[1], "obj_start": b[0], "obj_end": b[1],
         "subj_type": "PERSON", "obj_type": "CITY", "stanford_ner": ["O"] * len(words.split())}
        for words, a, b, name in RELATIONS
    ]  # fmt: skip


def marked(first: str, second: str) -> Rows:
    rows: Rows = []
    for words, a, b, name in RELATIONS:
        tokens = words.split()
        for (start, end), mark in ((a, first), (b, second)):
            tokens[start] = mark + tokens[start]
            tokens[end] += mark.replace("<", "</").replace("[", "[/")
        rows.append({"sentence": " ".join(tokens), "relation": name})
    return rows


def squad() -> Rows:
    return [{"id": str(at), "title": "Ada", **row}
            for at, row in enumerate(WANTED["question-answering"])]  # fmt: skip


def flat(*, starts: bool, lists: bool = True) -> Rows:
    rows: Rows = []
    for question, context, answers in QUESTIONS:
        row: dict[str, Any] = {"question": question, "context": context}
        row["answer_text"] = [text for text, _ in answers]
        row |= {"answer_start": [start for _, start in answers]} if starts else {}
        rows.append(row)
    return rows if lists else [{k: json.dumps(v) if isinstance(v, list) else v
                                for k, v in row.items()} for row in rows]  # fmt: skip


def prodigy_choice() -> Rows:
    options = [{"id": "good", "text": "Good"}, {"id": "bad", "text": "Bad"}]
    rows = [{"text": t, "options": options, "accept": [label], "answer": "accept"}
            for t, label in TEXTS]  # fmt: skip
    return [*rows, {"text": "unsure", "options": options, "accept": ["bad"], "answer": "ignore"}]


def prodigy_label() -> Rows:
    rows = [{"text": text, "label": label, "answer": "accept"} for text, label in TEXTS]
    return [*rows, {"text": "not good", "label": "good", "answer": "reject"}]


def named(*names: str) -> Callable[[], Rows]:
    return lambda: [dict(zip(names, pair, strict=True)) for pair in PAIRS]
