"""What a dictionary is beside its atoms and its mean, as JSON, for the formats that keep it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from dbksvd_dask.dictionary import Dictionary


def settings(dictionary: Dictionary) -> dict[str, Any]:
    """How it encodes, its groups, labels and provenance: JSON values.

    Examples
    --------
    >>> import numpy as np
    >>> settings(Dictionary(np.eye(3), 2, labels={1: "rivers"}))["labels"]
    {'1': 'rivers'}
    """
    return {
        "n_nonzero_coefs": dictionary.n_nonzero_coefs,
        "encoder": dictionary.encoder,
        "nonnegative": bool(dictionary.nonnegative),
        "rtol": float(dictionary.rtol),
        "group_sizes": list(dictionary.group_sizes),
        "labels": {str(atom): text for atom, text in dictionary.labels.items()},
        "provenance": dictionary.provenance,
    }


def dictionary_from(
    atoms: np.ndarray,
    mean: np.ndarray | None,
    settings: Mapping[str, Any],
    source: str,
    history: xr.Dataset | None = None,
) -> Dictionary:
    """The dictionary of these atoms and settings; those that are missing are the defaults.

    Raises
    ------
    ValueError
        If they make no dictionary: it says what `source` it is that does not.
    """
    try:
        return Dictionary(
            atoms,
            settings.get("n_nonzero_coefs"),
            mean=mean,
            encoder=settings.get("encoder", "mp"),
            nonnegative=settings.get("nonnegative", False),
            rtol=settings.get("rtol", 0.0),
            group_sizes=settings.get("group_sizes", ()),
            history=history,
            provenance=settings.get("provenance"),
            labels={int(atom): text for atom, text in settings.get("labels", {}).items()},
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{source} makes no dictionary: {error}") from error


def check_dictionary(dictionary: Any) -> None:
    """Raise unless it is a dictionary.

    Examples
    --------
    >>> check_dictionary(np.eye(3))
    Traceback (most recent call last):
    ...
    TypeError: dictionary is a ndarray: pass a Dictionary, such as model.dictionary_
    """
    if not isinstance(dictionary, Dictionary):
        raise TypeError(f"dictionary is a {type(dictionary).__name__}: pass a Dictionary, such as model.dictionary_")


def check_place_in_model(model_name: str, hook_name: str) -> None:
    """Raise unless these can be the name of a model and of a place in it.

    Examples
    --------
    >>> check_place_in_model("gpt2", "")
    Traceback (most recent call last):
    ...
    ValueError: hook_name is empty: others find the place in the model by it
    """
    for name, text in {"model_name": model_name, "hook_name": hook_name}.items():
        if not isinstance(text, str):
            raise TypeError(f"{name}={text!r} must be a str")
        if not text.strip():
            raise ValueError(f"{name} is empty: others find the place in the model by it")
