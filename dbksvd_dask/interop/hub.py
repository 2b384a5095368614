"""Dictionaries as folders that are repositories of the Hugging Face Hub."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.interop.model_card import model_card
from dbksvd_dask.interop.saelens import saelens_cfg, write_saelens
from dbksvd_dask.interop.safetensors import from_safetensors, write_dictionary
from dbksvd_dask.interop.settings import settings
from dbksvd_dask.whole import check_place, written_whole

_DICTIONARY, _CONFIG, _CARD, _SAELENS = "dictionary.safetensors", "config.json", "README.md", "saelens"


def to_hub(
    dictionary: Dictionary,
    folder: str | os.PathLike[str],
    *,
    model_name: str,
    hook_name: str,
    license: str | None = None,
    datasets: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Write a dictionary as a repository of the Hugging Face Hub, ready for upload.

    ========================== ================================================================================
    ``dictionary.safetensors`` The whole dictionary, as `to_safetensors` writes it.
    ``config.json``            Its sizes and settings.
    ``saelens/``               What ``SAE.from_pretrained(repository, "saelens")`` loads, as `to_saelens` writes it.
    ``README.md``              The model card: figures of the fit, how it was made, how to load it.
    ========================== ================================================================================

    Nothing is uploaded: ``hf upload USER/NAME FOLDER`` does that. Under `folder` there is in the end the whole
    repository or what was there before.

    Parameters
    ----------
    dictionary : Dictionary
        With a k of its own.
    folder : path
        Local folder.
    model_name : str
        Whose embeddings it is of; the card names it as base model where it can be the name of one on the Hub.
    hook_name : str
        Where in the model they are from, e.g. ``"blocks.3.hook_resid_pre"``.
    license : str, optional
        Of the dictionary, as the Hub calls it, e.g. ``"mit"``.
    datasets : sequence of str
        Data sets of the Hub that the embeddings were made of.
    overwrite : bool
        Replace a repository that this function has written.

    Raises
    ------
    FileExistsError
        If there is something at `folder` that may not be replaced.
    OSError
        If there is no room: nothing is left of what was written.
    TypeError, ValueError
        If the dictionary has no k, or a name is not text.

    Warns
    -----
    UserWarning
        As `to_saelens` does.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> D = Dictionary(np.eye(3), n_nonzero_coefs=2)
    >>> with tempfile.TemporaryDirectory() as place:
    ...     to_hub(D, f"{place}/repository", model_name="gpt2", hook_name="blocks.3.hook_resid_pre", license="mit")
    ...     from_hub(f"{place}/repository")
    <Dictionary: 3 atoms x 3 features, float64, k=2>
    """
    if isinstance(datasets, str) or not all(isinstance(name, str) for name in datasets):
        raise TypeError(f"datasets={datasets!r} must be a list of names")
    cfg = saelens_cfg(dictionary, model_name, hook_name)
    facts = {"model_name": model_name, "hook_name": hook_name, "dtype": str(dictionary.dtype)}
    sizes = {"n_atoms": dictionary.n_atoms, "n_features": dictionary.n_features}
    card = model_card(dictionary, model_name, hook_name, license=license, datasets=datasets)
    with written_whole(check_place(folder, "a repository of to_hub", _is_repository, overwrite=overwrite)) as beside:
        beside.mkdir()
        write_dictionary(dictionary, beside / _DICTIONARY)
        write_saelens(dictionary, cfg, beside / _SAELENS)
        config = {"library_name": "dbksvd_dask"} | sizes | facts | settings(dictionary)
        (beside / _CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
        (beside / _CARD).write_text(card, encoding="utf-8")


def from_hub(folder: str | os.PathLike[str]) -> Dictionary:
    """Open the dictionary of a repository that `to_hub` has written.

    Parameters
    ----------
    folder : path
        Local folder, as ``huggingface_hub.snapshot_download`` gives it.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no dictionary in it.
    ValueError
        If its file is cut off, or holds no dictionary.
    """
    place = Path(folder).expanduser()
    if not (place / _DICTIONARY).is_file():
        raise FileNotFoundError(f"there is no repository of to_hub at {place}: it has no {_DICTIONARY}")
    return from_safetensors(place / _DICTIONARY)


def _is_repository(path: Path) -> bool:
    return path.is_dir() and {file.name for file in path.iterdir()} == {_DICTIONARY, _CONFIG, _CARD, _SAELENS}
