"""What happened at each iteration: one record each, and all of them as an xarray.Dataset."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import xarray as xr

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Quantiles of the atoms' coherence that the history holds."""

COHERENCE_BINS = 40
"""Equal bins over [0, 1] into which the history counts the atoms by their coherence."""

STAGES = ("wait", "read", "gram", "product", "pursuit", "residual", "statistics", "update", "validation")
"""Stages of an iteration. "wait" is the driver's, for rows that were not read in time; the others are task seconds."""


@dataclass(frozen=True)
class Iteration:
    """Figures of one iteration.

    Training figures are those of its batch under the atoms that it began with, which are not averaged; group by group
    where there are Matryoshka groups. Validation figures are those of the held-out embeddings, by one pursuit over all
    atoms, under the dictionary that is learned when it ends, averaged over iterations where the fit does that.
    """

    iteration: int
    """From 0."""
    n_samples_seen: int
    """Samples seen so far, those of this iteration included."""
    train_relative_error: float
    """Mean of ‖y − x D‖ / ‖y‖ over nonzero samples (paper, eq. 6)."""
    train_variance_explained: float
    """1 − Σ‖r‖² / Σ‖y − ȳ‖², features pooled."""
    train_variance_explained_per_feature: float
    """The same for each feature, averaged (paper, eq. 7)."""
    train_l0: float
    """Mean number of atoms a sample uses."""
    validation_relative_error: float
    """NaN without held-out embeddings, as are the next three."""
    validation_variance_explained: float
    validation_variance_explained_per_feature: float
    validation_l0: float
    n_unused_atoms: int
    """Atoms that no sample of the batch used."""
    n_duplicate_atoms: int
    """Atoms nearer than `max_coherence` to one that is used more, and replaced for it; 0 without `max_coherence`."""
    coherence: np.ndarray = field(metadata={"dims": ("quantile",)})
    """`QUANTILES` over the atoms of the largest ``|cos|`` with any other atom; the dictionary it began with."""
    coherence_histogram: np.ndarray = field(metadata={"dims": ("bin",)})
    """How many atoms have a coherence in each of `COHERENCE_BINS`."""
    seconds: float
    """Wall time of the iteration."""
    stage_seconds: np.ndarray = field(metadata={"dims": ("stage",)})
    """Seconds of each of `STAGES`, summed over tasks."""
    peak_memory: np.ndarray = field(metadata={"dims": ("stage",)})
    """Bytes: the most resident memory of any process in each of `STAGES`, as `StageCosts` sees it; 0 where none was.
    That of "wait" is the driver's; of what is computed on a device, it is what is taken there."""


def history_dataset(iterations: Sequence[Iteration]) -> xr.Dataset:
    """The records as a Dataset over `iteration`; empty for none."""
    shapes = {"quantile": len(QUANTILES), "bin": COHERENCE_BINS, "stage": len(STAGES)}
    variables = {}
    for f in fields(Iteration)[1:]:
        dims = f.metadata.get("dims", ())
        values = np.array([getattr(record, f.name) for record in iterations])
        variables[f.name] = (("iteration", *dims), values.reshape(len(iterations), *(shapes[dim] for dim in dims)))
    return xr.Dataset(
        variables,
        coords={
            "iteration": [record.iteration for record in iterations],
            "quantile": list(QUANTILES),
            "bin": (np.arange(COHERENCE_BINS) + 0.5) / COHERENCE_BINS,
            "stage": np.array(STAGES, np.dtypes.StringDType()),
        },
    )
