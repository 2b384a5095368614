"""Embeddings in folders that ``datasets.Dataset.save_to_disk`` writes, as SAELens' caches are; without that package."""

from __future__ import annotations

import json
import os

from dbksvd_dask.embeddings.arrow import embeddings_of
from dbksvd_dask.embeddings.stored import StoredEmbeddings

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def dataset_embeddings(folder: str, name: str | None) -> StoredEmbeddings:
    """Choose a column of a folder that ``datasets.Dataset.save_to_disk`` has written, and describe it."""
    return embeddings_of(_data_files(folder), name, folder)


def is_dataset(folder: str) -> bool:
    """Whether ``save_to_disk`` has written this folder, whole or not."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (_STATE, _SPLITS, "dataset_info.json"))


def _data_files(folder: str) -> list[str]:
    """The Arrow files of a dataset, in order."""
    if os.path.isfile(os.path.join(folder, _SPLITS)):
        splits = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        choices = ", ".join(os.path.join(folder, split) for split in splits)
        raise ValueError(f"{folder} is a dataset in several splits: open one of {choices}")
    try:
        with open(os.path.join(folder, _STATE), encoding="utf-8") as stream:
            state = json.load(stream)
        names = [entry["filename"] for entry in state["_data_files"]]
        mapped = state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder} is not a readable dataset ({type(error).__name__}: {error}): its {_STATE} is missing or broken; "
            "was it only half written?"
        ) from error
    if mapped:
        raise ValueError(
            f"{folder} selects and orders its rows by indices of their own: write it anew with "
            "Dataset.flatten_indices().save_to_disk(…)"
        )
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise ValueError(f"{folder} has a data file {name!r}, which is not inside of it: it is not opened")
        if not os.path.isfile(os.path.join(folder, name)):
            raise ValueError(f"{folder} lacks its data file {name}: was it only half written or copied?")
    if not names:
        raise ValueError(f"{folder} is empty: it has no data files")
    return [os.path.join(folder, name) for name in names]
