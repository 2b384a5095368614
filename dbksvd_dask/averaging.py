"""The average of the dictionaries of successive iterations: what a fit over several outer batches reports.

The atoms that an iteration makes carry the noise of its outer batch: an atom is the direction of a few hundred samples.
Their average over iterations carries less of it and explains more of other samples, at the price of an addition
(Polyak and Juditsky 1992). The iterations themselves go on from the latest atoms, which move fastest. Weights that grow
with the iteration let the average forget the beginning without a constant to tune (Shamir and Zhang, ICML 2013:
"polynomial-decay averaging").
"""

from typing import NamedTuple, Self

import numpy as np

from dbksvd_dask.kernels.backend import backend_of, to_host

DEGREE = 7
"""The t-th dictionary counts about as t^DEGREE: most of the weight is on the last eighth of the iterations."""

LEAST_COSINE = 0.5
"""With its average; below that an atom was replaced, or has become another one, and its average starts anew."""


class LearnedAtoms(NamedTuple):
    """A dictionary between two iterations."""

    latest: np.ndarray
    """(m, d) floats: the atoms that the last iteration made; the next one begins with them."""
    average: np.ndarray
    """(m, d) floats: the average of each atom over iterations, unit rows."""
    n_averaged: np.ndarray
    """(m,) int64: how many iterations each average is over; on the host in any case."""

    @classmethod
    def of(cls, atoms: np.ndarray) -> Self:
        """These atoms, with nothing to average them with."""
        return cls(atoms, atoms, np.zeros(len(atoms), np.int64))

    def averaged_with(self, atoms: np.ndarray) -> Self:
        """The same after one more iteration.

        Parameters
        ----------
        atoms : (m, d) floats
            Unit rows.

        Examples
        --------
        >>> import numpy as np
        >>> learned = LearnedAtoms.of(np.array([[1.0, 0.0]]))
        >>> for atom in ([0.8, 0.6], [0.6, 0.8]):
        ...     learned = learned.averaged_with(np.array([atom]))
        >>> learned.latest, learned.average.round(3), learned.n_averaged
        (array([[0.6, 0.8]]), array([[0.625, 0.781]]), array([2]))
        """
        ops = backend_of(atoms)
        xp = ops.xp
        same = to_host(xp.einsum("jf,jf->j", self.average, atoms)) >= LEAST_COSINE
        n_averaged = np.where(same, self.n_averaged, 0)
        weights = xp.asarray(((DEGREE + 1) / (DEGREE + 1 + n_averaged)).astype(atoms.dtype))[:, np.newaxis]
        average = (1 - weights) * self.average
        average += weights * atoms
        average /= xp.sqrt(ops.squared_row_norms(average)).astype(atoms.dtype)[:, np.newaxis]
        kept = xp.asarray(n_averaged == 0) | (self.average == atoms).all(axis=1)
        average = xp.where(kept[:, np.newaxis], atoms, average)  # to the last bit: new ones, and those that stay
        return type(self)(atoms, average, n_averaged + 1)
