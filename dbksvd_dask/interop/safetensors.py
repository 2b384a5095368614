"""Dictionaries as one safetensors file, which PyTorch, JAX and NumPy read without this package."""

import json
import os
from pathlib import Path

import numpy as np
import xarray as xr

from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.embeddings.checks import FORMAT
from dbksvd_dask.interop.settings import check_dictionary, dictionary_from, settings
from dbksvd_dask.interop.tensors import json_object, read_tensors, write_tensors
from dbksvd_dask.whole import check_place, written_whole

_FORMAT = f"{FORMAT}dictionary"
_TENSORS = {"atoms": 2, "mean": 1}


def to_safetensors(dictionary: Dictionary, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a dictionary as one safetensors file.

    The tensors are `atoms`, (m, d) in the precision they have, and where there is one `mean`, (d,). All else (k,
    pursuit, groups, labels, history, provenance) is in the metadata of the file, as JSON under "dictionary" and
    "history". Under `path` there is in the end the whole file or what was there before.

    Parameters
    ----------
    dictionary : Dictionary
    path : path
        Local file.
    overwrite : bool
        Replace a file that this function has written.

    Raises
    ------
    FileExistsError
        If there is something at `path` that may not be replaced.
    OSError
        If there is no room: nothing is left of what was written.
    TypeError
        If it is no dictionary.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from safetensors.numpy import load_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_safetensors(Dictionary(np.eye(3), n_nonzero_coefs=2), f"{folder}/dictionary.safetensors")
    ...     load_file(f"{folder}/dictionary.safetensors")["atoms"].shape
    (3, 3)
    """
    check_dictionary(dictionary)
    with written_whole(check_place(path, "a dictionary of dbksvd_dask", _is_dictionary, overwrite=overwrite)) as beside:
        write_dictionary(dictionary, beside)


def write_dictionary(dictionary: Dictionary, path: Path) -> None:
    """Write the file itself."""
    tensors = {"atoms": dictionary.atoms} | ({} if dictionary.mean is None else {"mean": dictionary.mean})
    history = {"history": json.dumps(dictionary.history.to_dict())} if dictionary.history else {}
    write_tensors(tensors, path, {"format": _FORMAT, "dictionary": json.dumps(settings(dictionary))} | history)


def from_safetensors(path: str | os.PathLike[str]) -> Dictionary:
    """Open a dictionary that `to_safetensors` has written, or a file with such tensors by anybody else.

    Parameters
    ----------
    path : path
        Local file. Without the metadata that `to_safetensors` writes, the settings are those of `Dictionary`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is cut off, or has no tensor `atoms` with unit rows.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_safetensors(Dictionary(np.eye(3), n_nonzero_coefs=2), f"{folder}/dictionary.safetensors")
    ...     from_safetensors(f"{folder}/dictionary.safetensors")
    <Dictionary: 3 atoms x 3 features, float64, k=2>
    """
    file = Path(path).expanduser()
    tensors, metadata = read_tensors(file, _TENSORS)
    if "atoms" not in tensors:
        raise ValueError(f"{file} has no tensor 'atoms': it holds no dictionary")
    found = json_object(metadata.get("dictionary", "{}"), f"the metadata of {file}")
    return dictionary_from(tensors["atoms"], tensors.get("mean"), found, str(file), _history(metadata, file))


def _history(metadata: dict[str, str], file: Path) -> xr.Dataset | None:
    if "history" not in metadata:
        return None
    document = json_object(metadata["history"], f"the history in {file}")
    try:
        history = xr.Dataset.from_dict(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the history in {file} cannot be read: {error!r}") from error
    texts = {str(name): array for name, array in history.variables.items() if array.dtype.kind in "UO"}
    return history.assign_coords({name: array.astype(np.dtypes.StringDType()) for name, array in texts.items()})


def _is_dictionary(path: Path) -> bool:
    try:
        return path.is_file() and read_tensors(path, {})[1].get("format") == _FORMAT
    except ValueError:
        return False
