"""The Gram matrix put together from panels is ``D Dᵀ``, and its coherence is the largest entry off the diagonal."""

import numpy as np
import oracle
import pytest

from dbksvd_dask.kernels.gram import ATOMS_PER_PANEL, assemble_gram, gram_panel, panel_starts, panels_coherence


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_atoms", [1, 2, ATOMS_PER_PANEL - 1, ATOMS_PER_PANEL, ATOMS_PER_PANEL + 1, 2500])
def test_panels_make_the_gram_matrix_and_its_coherence(n_atoms, dtype):
    D = oracle.random_atoms(np.random.default_rng(n_atoms), n_atoms, 7, dtype)
    panels = [gram_panel(D, start) for start in panel_starts(n_atoms)]
    gram, coherence = assemble_gram(panels), panels_coherence([panel.largest for panel in panels])
    assert gram.dtype == coherence.dtype == dtype
    np.testing.assert_allclose(gram, oracle.gram(D), atol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_allclose(coherence, oracle.coherence(D), atol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("pair", [(0, 1), (3, 1030), (1030, 2060), (1024, 2047)])
def test_coherent_atoms_find_each_other_in_every_panel(pair):
    D = np.zeros((2100, 2101))
    D[np.arange(2100), np.arange(2100)] = 1
    D[pair[1]] = -0.6 * D[pair[0]] + 0.8 * np.eye(1, 2101, 2100)[0]
    coherence = panels_coherence([gram_panel(D, start).largest for start in panel_starts(2100)])
    expected = np.zeros(2100)
    expected[list(pair)] = 0.6
    np.testing.assert_allclose(coherence, expected, rtol=1e-15)


def near_pairs(D, threshold):
    """All panels' atoms i < j that are near to each other."""
    return np.concatenate([gram_panel(D, start, threshold).near for start in panel_starts(len(D))])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_atoms", [1, 2, ATOMS_PER_PANEL, ATOMS_PER_PANEL + 1, 2500])
@pytest.mark.parametrize("threshold", [0.3, 0.9, 0.999])
def test_near_atoms_are_those_whose_cosine_is_above_the_threshold(threshold, n_atoms, dtype):
    D = oracle.random_atoms(np.random.default_rng(n_atoms), n_atoms, 4, dtype)  # few features: many are near
    products = np.abs(oracle.gram(D))
    clear = np.abs(products - threshold) > 4 * np.finfo(dtype).eps
    found = np.zeros(products.shape, bool)
    near = near_pairs(D, threshold)
    found[tuple(near.T)] = True
    assert np.count_nonzero(found) == len(near)  # each pair once
    np.testing.assert_array_equal(found[clear], np.triu(products > threshold, 1)[clear])


@pytest.mark.parametrize("pair", [(0, 1), (1023, 1024), (1030, 2060)])
def test_near_atoms_find_each_other_in_every_panel(pair):
    D = np.zeros((2100, 2101))
    D[np.arange(2100), np.arange(2100)] = 1
    D[pair[1]] = -0.6 * D[pair[0]] + 0.8 * np.eye(1, 2101, 2100)[0]
    assert near_pairs(D, 0.5).tolist() == [list(pair)]
    assert near_pairs(D, 0.7).shape == (0, 2)
    assert near_pairs(D, None).shape == (0, 2)


def test_a_cosine_of_just_the_threshold_is_not_above_it():
    D = np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)], [0.0, 1.0]])
    assert near_pairs(D, 0.5).tolist() == [[1, 2]]
