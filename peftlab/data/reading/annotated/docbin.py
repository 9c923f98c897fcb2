"""spaCy's DocBin (.spacy): documents with their tokens and entities."""

from __future__ import annotations

from typing import Any

from peftlab.config.reader import ReaderConfig
from peftlab.data.formats.cells import Unreadable
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.raw_splits import Numbered, RawSplit, first_line, from_records
from peftlab.errors import DataError


def open_docbin(file: DataFile, _: ReaderConfig) -> RawSplit:
    """A row a document: `text`, and lists `tokens` and `tags`, without tokens of white space.

    Raises `DataError` where spaCy is not installed, or cannot read the file.
    """
    return from_records(
        file.where, lambda: _rows(file), counts_lines=False, nothing="no documents"
    )  # fmt: skip


def _rows(file: DataFile) -> Numbered:
    try:
        from spacy.tokens import DocBin
        from spacy.vocab import Vocab
    except ImportError:
        raise DataError(
            f"{file.where} is spaCy's; reading it needs spaCy: pip install 'peftlab[spacy]'."
        ) from None
    with file.open() as stream:
        content = stream.read()
    try:
        docs = list(DocBin().from_bytes(content).get_docs(Vocab()))
    except Exception as error:  # msgpack, zlib and spaCy raise many types
        raise DataError(f"{file.where} is no readable DocBin: {first_line(error)}.") from None
    for number, doc in enumerate(docs, start=1):
        words: list[Any] = [token for token in doc if not token.is_space]
        row: dict[str, Any] = {"text": doc.text, "tokens": [token.text for token in words]}
        if any(not token.ent_iob_ for token in words):
            why = "the document has tokens without an annotation of entities (spaCy's missing)"
            row |= {"tokens": Unreadable(doc.text, why), "tags": []}
        else:
            row["tags"] = [
                f"{token.ent_iob_}-{token.ent_type_}" if token.ent_iob_ != "O" else "O"
                for token in words
            ]
        yield number, row
