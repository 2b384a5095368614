"""Dictionaries as SAELens keeps sparse autoencoders."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.interop.settings import check_dictionary, check_place_in_model, settings
from dbksvd_dask.interop.tensors import write_tensors
from dbksvd_dask.whole import check_place, written_whole

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
"""The files of a SAELens folder."""

OURS = "dbksvd_dask"
"""Where, in the metadata of a SAELens configuration, the settings of the dictionary are."""

_OLDEST = "6.26.0"  # that has matching pursuit; without a version SAELens drops the metadata


def to_saelens(
    dictionary: Dictionary,
    path: str | os.PathLike[str],
    *,
    model_name: str,
    hook_name: str,
    n_nonzero_coefs: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a dictionary as a matching pursuit SAE, which ``sae_lens.SAE.load_from_disk`` loads.

    The pursuit of SAELens has positive coefficients only, so a signed dictionary is written as ``[D; −D]``; a
    nonnegative one as it is. The mean becomes `b_dec`. SAELens need not be installed. Under `path` there is in the end
    the whole folder or what was there before.

    SAELens ends after k steps, a `Dictionary` before the (k + 1)-th distinct atom: the reconstruction is the same for
    samples whose first k + 1 steps pick no atom twice; for the others that of SAELens is what the pursuit has after k
    steps, with fewer atoms. ``SAE.load_from_disk(path, converter=exact_pursuit)`` has the same for all samples.

    Parameters
    ----------
    dictionary : Dictionary
    path : path
        Local folder.
    model_name : str
        Whose embeddings it is of, as TransformerLens or the Hugging Face Hub call it.
    hook_name : str
        Where in the model they are from, e.g. ``"blocks.3.hook_resid_pre"``.
    n_nonzero_coefs : int, optional
        k; the dictionary's own by default.
    overwrite : bool
        Replace a SAELens folder that is there.

    Raises
    ------
    FileExistsError
        If there is something at `path` that may not be replaced.
    OSError
        If there is no room: nothing is left of what was written.
    TypeError, ValueError
        If it is no dictionary, there is no k, or it is out of range, or a name is not text.

    Warns
    -----
    UserWarning
        If the dictionary encodes by orthogonal matching pursuit or with ``rtol``: SAELens has neither.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> D = Dictionary(np.eye(3), n_nonzero_coefs=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_saelens(D, f"{folder}/sae", model_name="gpt2", hook_name="blocks.3.hook_resid_pre")
    ...     sorted(file.name for file in Path(folder, "sae").iterdir())
    ['cfg.json', 'sae_weights.safetensors']
    """
    cfg = saelens_cfg(dictionary, model_name, hook_name, n_nonzero_coefs)
    with written_whole(check_place(path, "a SAELens folder", _is_saelens, overwrite=overwrite)) as beside:
        write_saelens(dictionary, cfg, beside)


def saelens_cfg(
    dictionary: Dictionary, model_name: str, hook_name: str, n_nonzero_coefs: int | None = None
) -> dict[str, Any]:
    """The configuration that SAELens reads; raises and warns as `to_saelens` does."""
    check_dictionary(dictionary)
    check_place_in_model(model_name, hook_name)
    k = dictionary._k(n_nonzero_coefs)
    if dictionary.encoder != "mp" or dictionary.rtol > 0:
        warnings.warn(
            f'SAELens encodes by plain matching pursuit, but this dictionary by encoder="{dictionary.encoder}" with '
            f"rtol={dictionary.rtol:g}: the codes will differ",
            UserWarning,
            stacklevel=3,
        )
    return {
        "architecture": "matching_pursuit",
        "d_in": dictionary.n_features,
        "d_sae": dictionary.n_atoms * (1 if dictionary.nonnegative else 2),
        "dtype": str(dictionary.dtype),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if hook_name.endswith("hook_z") else "none",
        "max_iterations": k,
        "residual_threshold": 0.0,
        "stop_on_duplicate_support": False,
        "metadata": {
            "sae_lens_version": _OLDEST,
            "sae_lens_training_version": None,
            "model_name": model_name,
            "hook_name": hook_name,
            OURS: settings(dictionary) | {"n_nonzero_coefs": k},
        },
    }


def write_saelens(dictionary: Dictionary, cfg: dict[str, Any], folder: Path) -> None:
    """Write the folder itself."""
    atoms = dictionary.atoms
    decoder = atoms if dictionary.nonnegative else np.concatenate([atoms, -atoms])
    bias = np.zeros(dictionary.n_features, dictionary.dtype) if dictionary.mean is None else dictionary.mean
    folder.mkdir()
    write_tensors({"W_dec": decoder, "b_dec": bias}, folder / WEIGHTS)
    (folder / CFG).write_text(json.dumps(cfg, indent=2), encoding="utf-8")


def _is_saelens(path: Path) -> bool:
    return path.is_dir() and {file.name for file in path.iterdir()} == {CFG, WEIGHTS}
