"""The nested JSON that SQuAD is published as: articles of paragraphs of questions."""

from __future__ import annotations

from typing import Any


def is_squad_file(content: Any) -> bool:
    """Whether a JSON document is `{"data": [{"paragraphs": [...]}, ...]}`."""
    articles = content.get("data") if isinstance(content, dict) else None
    return (
        isinstance(articles, list)
        and bool(articles)
        and all(isinstance(a, dict) and isinstance(a.get("paragraphs"), list) for a in articles)
    )


def squad_rows(content: Any) -> list[Any]:
    """A row for each question, its paragraph's context in it."""
    return [
        {**question, "context": paragraph.get("context"), "title": article.get("title")}
        for article in content["data"]
        for paragraph in article["paragraphs"]
        if isinstance(paragraph, dict)
        for question in paragraph.get("qas", ())
        if isinstance(question, dict)
    ]
