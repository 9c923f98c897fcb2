"""Folders that `save_to_disk` of datasets wrote: one data set, or one a split."""

from __future__ import annotations

from collections.abc import Mapping

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.hub import quiet
from peftlab.data.reading.raw_splits import RawSplit, first_line, from_dataset
from peftlab.errors import DataError


def is_saved(folder: DataFile) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    state = (folder.path / "state.json").is_file() and (folder.path / "dataset_info.json").is_file()
    return state or (folder.path / "dataset_dict.json").is_file()


def open_saved(folder: DataFile, _: ReaderConfig) -> RawSplit | Mapping[str, RawSplit]:
    """The rows of a saved data set, by split where it has splits. Raises `DataError`."""
    import datasets

    with quiet():
        try:
            loaded = datasets.load_from_disk(str(folder.path))
        except Exception as error:  # the library raises many types
            raise DataError(
                f"{folder.where} was written by save_to_disk and cannot be loaded: "
                f"{first_line(error)}."
            ) from None
    if not isinstance(loaded, dict):
        return from_dataset(loaded, folder.where)
    return {name: from_dataset(rows, f"{folder.where} [{name}]") for name, rows in loaded.items()}
