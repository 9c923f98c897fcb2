"""Data sets of the Hugging Face hub, from its cache when offline."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from peftlab.data.reading.raw_splits import RawSplit, from_dataset, from_stream
from peftlab.errors import DataError


def load_hub_splits(
    name: str, subset: str | None, *, streaming: bool = False
) -> dict[str, RawSplit]:
    """Every split of a hub data set; with `streaming`, rows are downloaded as they are read.

    Raises `DataError` with the library's reason.
    """
    import datasets

    with quiet():
        try:
            loaded = datasets.load_dataset(
                name, subset, **({"streaming": True} if streaming else {})
            )
        except Exception as error:  # the library and its HTTP client raise many types
            raise DataError(_explain(name, subset, error)) from None
    if not isinstance(loaded, dict):
        loaded = {"train": loaded}
    return {
        split: (from_stream if streaming else from_dataset)(rows, f"{name} [{split}]")
        for split, rows in loaded.items()
    }


def _explain(name: str, subset: str | None, error: Exception) -> str:
    what = f"{name!r}" + (f", subset {subset!r}" if subset else "")
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    hint = (
        " HF_HUB_OFFLINE is set: only data sets already in the cache can be read."
        if offline
        else ""
    )
    return (
        f"data.source {what} is not a local file or folder, and no hub data set can be loaded: "
        f"{reason.rstrip('.')}.{hint} A local source is a path to a file or a folder."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars while loading; the user's setting is restored."""
    import datasets

    was_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            datasets.enable_progress_bars()
