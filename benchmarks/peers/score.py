"""How good a dictionary is on held-out rows: by its learner's own codes, and by our pursuits on its unit-norm atoms."""

from typing import Any, Literal

import numpy as np
from clock import Snapshot
from scipy.sparse import csr_array

from dbksvd_dask import Dictionary, metrics


def scores(snapshot: Snapshot, k: int, held_out: np.ndarray) -> dict[str, Any]:
    """Its cost, and the scores of its codes by each encoder, k nonzeros a row."""
    dictionary = unit_dictionary(snapshot.atoms)
    cost = {name: getattr(snapshot, name) for name in ("n_samples", "seconds", "cpu_seconds")}
    return cost | {
        "native": codes_scores(held_out, *snapshot.encode(held_out)),
        "mp": codes_scores(held_out, *pursue(dictionary, held_out, k, "mp")),
        "omp": codes_scores(held_out, *pursue(dictionary, held_out, k, "omp")),
    }


def by_sparsity(snapshot: Snapshot, sparsities: tuple[int, ...], held_out: np.ndarray) -> list[dict[str, Any]]:
    """Scores of the same atoms with other numbers of nonzeros."""
    dictionary = unit_dictionary(snapshot.atoms)
    return [
        {"k": k} | {name: codes_scores(held_out, *pursue(dictionary, held_out, k, name)) for name in ("mp", "omp")}
        for k in sparsities
    ]


def atoms_coherence(snapshot: Snapshot) -> dict[str, float]:
    """Median and maximum over the atoms of an atom's largest ``|cos|`` to another."""
    coherence = metrics.coherence(unit_dictionary(snapshot.atoms).atoms)
    return {"median": float(np.median(coherence)), "max": float(np.max(coherence))}


def unit_dictionary(atoms: np.ndarray) -> Dictionary:
    """The atoms scaled to unit norm, without those that are zero."""
    norms = np.linalg.norm(atoms, axis=1)
    return Dictionary((atoms[norms > 0] / norms[norms > 0, None]).astype(np.float32))


def pursue(
    dictionary: Dictionary, rows: np.ndarray, k: int, encoder: Literal["mp", "omp"]
) -> tuple[csr_array, np.ndarray]:
    """Codes by one of our pursuits, and their reconstruction."""
    codes = dictionary.encode(rows, k, encoder=encoder)
    return codes.to_csr(), dictionary.decode(codes)


def codes_scores(rows: np.ndarray, codes: csr_array, reconstruction: np.ndarray) -> dict[str, float]:
    """Scores of centred rows' codes; an atom is unused where no row has it."""
    nonzero = codes.astype(bool)
    return {
        "variance_explained": metrics.variance_explained(rows, reconstruction),
        "variance_explained_per_feature": metrics.variance_explained(rows, reconstruction, per_feature=True),
        "relative_error": metrics.relative_error(rows, reconstruction),
        "l0": nonzero.sum() / len(rows),
        "unused": int(np.count_nonzero(nonzero.sum(axis=0) == 0)),
    }
