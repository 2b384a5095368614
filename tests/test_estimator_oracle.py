"""A whole fit is the oracle's loop: outer batch after outer batch, each from the atoms before; then the averages."""

import dask.array as da
import numpy as np
import oracle
import pytest

from dbksvd_dask import DBKSVD

N_SAMPLES, N_FEATURES, N_ATOMS, K, N_ITERATIONS = 600, 10, 16, 3, 5


@pytest.fixture(scope="module")
def problem():
    """Embeddings with a mean, held-out ones, and a dictionary to begin with."""
    rng = np.random.default_rng(0)
    planted = oracle.random_atoms(rng, N_ATOMS, N_FEATURES)
    Y = oracle.sparse_samples(rng, N_SAMPLES + 100, planted, K) + 0.5 * rng.standard_normal(N_FEATURES)
    init = oracle.unit_rows(planted + 0.2 * rng.standard_normal(planted.shape))
    return Y[:N_SAMPLES], Y[N_SAMPLES:], init


def fit_by_hand(Y, D, n_batches, **options):
    """The dictionaries before and after each iteration, and the codes of its batch."""
    batches = np.split(Y, n_batches)
    dictionaries, codes = [D], []
    for number in range(N_ITERATIONS):
        seed = [*options["seed"], 1, number]
        found, D = oracle.iteration(batches[number % n_batches], D, K, **(options | {"seed": seed}))
        assert found.margins.min() > 1e-9  # no choice of a pursuit is left to rounding
        dictionaries.append(D)
        codes.append(found)
    return dictionaries, codes


@pytest.mark.parametrize(
    ("batch_size", "average"),
    [(1000, True), (200, True), (200, False)],
    ids=["all in one batch", "three batches an epoch", "not averaged"],
)
@pytest.mark.parametrize("center", [False, True], ids=["as they are", "centred"])
@pytest.mark.parametrize(
    ("encoder", "inner_batch_size", "solver"), [("mp", None, "lanczos"), ("mp", 5, "power"), ("omp", None, "power")]
)
def test_a_fit_is_the_loop_of_the_oracle(problem, batch_size, average, center, encoder, inner_batch_size, solver):
    Y, held_out, init = problem
    model = DBKSVD(
        N_ATOMS,
        K,
        batch_size=batch_size,
        max_iter=N_ITERATIONS,
        inner_batch_size=inner_batch_size,
        solver=solver,
        init=init,
        center=center,
        average=average,
        encoder=encoder,
        replace_unused=None,
        random_state=3,
    ).fit(Y, validation=held_out)
    mean = Y.mean(axis=0) if center else 0
    seed = [model.dictionary_.provenance["seed"]]
    n_batches = -(-N_SAMPLES // batch_size)
    options = {"encoder": encoder, "solver": solver, "size": inner_batch_size, "seed": seed}
    dictionaries, codes = fit_by_hand(Y - mean, init, n_batches, **options)
    learned = oracle.averages(dictionaries[1:]) if average and n_batches > 1 else dictionaries[1:]
    np.testing.assert_allclose(model.components_, learned[-1], rtol=0, atol=1e-8)

    history = model.history_
    batches = np.split(Y - mean, n_batches)
    for number, found in enumerate(codes):
        batch = batches[number % n_batches]
        R = oracle.residual(batch, dictionaries[number], found.indices, found.values)
        record = history.isel(iteration=number)
        assert record.train_relative_error == pytest.approx(oracle.relative_error(batch, R), rel=1e-8)
        assert record.train_variance_explained == pytest.approx(oracle.variance_explained(batch, R), rel=1e-8)
        per_feature = oracle.variance_explained_per_feature(batch, R)
        assert record.train_variance_explained_per_feature == pytest.approx(per_feature, rel=1e-8)
        assert record.train_l0 == np.count_nonzero(found.indices >= 0) / len(batch)
        assert record.n_unused_atoms == N_ATOMS - len(set(found.indices.ravel()) - {-1})
        assert record.n_samples_seen == (number + 1) * len(batch)
        quantiles = np.quantile(oracle.coherence(dictionaries[number]), history["quantile"])
        np.testing.assert_allclose(record.coherence, quantiles, rtol=1e-7)

        encode = oracle.matching_pursuit if encoder == "mp" else oracle.orthogonal_matching_pursuit
        validated = encode(held_out - mean, learned[number], K)
        R = oracle.residual(held_out - mean, learned[number], validated.indices, validated.values)
        assert record.validation_relative_error == pytest.approx(oracle.relative_error(held_out - mean, R), rel=1e-7)
        assert record.validation_variance_explained == pytest.approx(oracle.variance_explained(held_out, R), rel=1e-7)


@pytest.mark.parametrize("center", [False, True], ids=["as they are", "centred"])
@pytest.mark.parametrize("encoder", ["mp", "omp"])
def test_transform_score_and_inverse_transform_follow_from_the_atoms(problem, center, encoder):
    Y, held_out, init = problem
    model = DBKSVD(N_ATOMS, K, max_iter=2, init=init, center=center, encoder=encoder, random_state=0).fit(Y)
    mean, D = Y.mean(axis=0) if center else 0, model.components_
    encode = oracle.matching_pursuit if encoder == "mp" else oracle.orthogonal_matching_pursuit
    codes = encode(held_out - mean, D, K)
    X = oracle.dense(codes.indices, codes.values, N_ATOMS)
    np.testing.assert_allclose(model.transform(held_out).toarray(), X, atol=1e-11)
    np.testing.assert_allclose(model.inverse_transform(model.transform(held_out)), X @ D + mean, atol=1e-11)
    lazy = model.transform(da.from_array(held_out, chunks=(30, N_FEATURES)))
    np.testing.assert_allclose(lazy.to_csr().toarray(), X, atol=1e-11)
    np.testing.assert_allclose(model.inverse_transform(lazy), X @ D + mean, atol=1e-11)
    R = held_out - mean - X @ D
    assert model.score(held_out) == pytest.approx(oracle.variance_explained(held_out, R), rel=1e-9)
