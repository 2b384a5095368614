"""Dictionaries of any format that a command is given."""

from pathlib import Path

from dbksvd_dask.dictionary import Dictionary, open_dictionary

_FOLDERS = {"cfg.json": "from_saelens", "dictionary.safetensors": "from_hub"}
"""What a folder of another format has in it, and what of `dbksvd_dask.interop` opens it."""

_FILES = {".npy": "from_npy", ".safetensors": "from_safetensors"}


def is_folder_of_others(path: str) -> bool:
    """Whether at a path is a dictionary as SAELens or the Hugging Face Hub have them."""
    return any((Path(path).expanduser() / name).is_file() for name in _FOLDERS)


def open_any_dictionary(path: str) -> Dictionary:
    """A dictionary of any format, told by what is at the path."""
    from dbksvd_dask import interop

    place = Path(path).expanduser()
    if place.suffix in _FILES:
        return getattr(interop, _FILES[place.suffix])(place)
    for name, opening in _FOLDERS.items():
        if (place / name).is_file():
            return getattr(interop, opening)(place)
    return open_dictionary(path)
