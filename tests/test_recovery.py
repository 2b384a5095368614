"""Samples made of a few atoms of a known dictionary give that dictionary back."""

import numpy as np
import oracle
import pytest
from scipy.optimize import linear_sum_assignment

from dbksvd_dask import DBKSVD

N_SAMPLES, N_FEATURES, N_ATOMS, K = 4000, 32, 64, 3


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    D = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    return D, oracle.sparse_samples(rng, N_SAMPLES, D, K, noise=0.01).astype(np.float32)


def share_recovered(atoms, planted):
    """Share of planted atoms with |cos| > 0.99 to the atom that a one-to-one matching gives them."""
    cosines = np.abs(planted @ atoms.T)
    return np.mean(cosines[linear_sum_assignment(-cosines)] > 0.99)


@pytest.mark.parametrize("encoder", ["mp", "omp"])
def test_a_planted_dictionary_is_recovered_from_samples_alone(planted, encoder):
    # Small batches: all samples at once end in a local minimum with some 90 % of the atoms, as classic K-SVD does.
    D, Y = planted
    model = DBKSVD(N_ATOMS, K, batch_size=300, max_iter=300, encoder=encoder, shuffle="chunks", random_state=0).fit(Y)
    assert share_recovered(model.components_, D) >= 0.95


@pytest.mark.parametrize("encoder", ["mp", "omp"])
@pytest.mark.parametrize("inner_batch_size", [None, 8])
def test_a_planted_dictionary_is_recovered_whole_from_nearby(planted, encoder, inner_batch_size):
    D, Y = planted
    start = oracle.unit_rows(D + 0.1 * np.random.default_rng(1).standard_normal(D.shape))
    model = DBKSVD(
        N_ATOMS, K, max_iter=8, inner_batch_size=inner_batch_size, encoder=encoder, init=start, random_state=0
    ).fit(Y)
    assert share_recovered(start, D) < 0.1
    assert share_recovered(model.components_, D) == 1
    np.testing.assert_array_less(0, np.sum(model.components_ * start, axis=1))  # no atom changed sides
