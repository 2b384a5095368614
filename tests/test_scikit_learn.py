"""DBKSVD is a scikit-learn transformer: it passes scikit-learn's checks, but for what the project refuses."""

import pickle

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.sparse import csr_array, issparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dbksvd_dask import DBKSVD, ProgressBar, SparseCodes, StopOnPlateau, TimeBudget

N_SAMPLES, N_FEATURES, N_ATOMS, K = 120, 6, 8, 2

REFUSED = {
    "check_estimators_dtypes": "feeds integers: embeddings are floating, and a cast is the user's to make",
    "check_dtype_object": "feeds objects: embeddings are floating, and a cast is the user's to make",
}


@parametrize_with_checks(
    [
        DBKSVD(n_components=2, n_nonzero_coefs=1, max_iter=2, random_state=0),
        DBKSVD(
            n_components=2,
            n_nonzero_coefs=1,
            max_iter=2,
            batch_size=16,
            inner_batch_size=1,
            init="random",
            center=True,
            encoder="omp",
            shuffle="chunks",
            random_state=0,
        ),
    ],
    expected_failed_checks=lambda estimator: REFUSED,
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def example(dtype="float32"):
    return np.random.default_rng(0).standard_normal((N_SAMPLES, N_FEATURES)).astype(dtype)


def model(**parameters):
    return DBKSVD(N_ATOMS, K, **({"max_iter": 2, "batch_size": 50, "random_state": 0} | parameters))


# --- parameters ------------------------------------------------------------------------------------------------------


def test_every_parameter_can_be_read_and_set():
    parameters = model().get_params()
    assert set(parameters) == set(DBKSVD._parameter_constraints)
    changed = {
        "n_components": 5,
        "center": True,
        "encoder": "omp",
        "callbacks": [TimeBudget(1.0)],
        "init": np.eye(5, 6),
    }
    assert model().set_params(**changed).get_params() == parameters | changed


@pytest.mark.parametrize("fitted", [False, True])
def test_a_clone_has_the_parameters_and_nothing_learned(fitted):
    original = model(init=np.eye(N_ATOMS, N_FEATURES), center=True)
    if fitted:
        original.set_params(init="samples").fit(example())
    copy = clone(original)
    np.testing.assert_equal(copy.get_params(), original.get_params())
    with pytest.raises(NotFittedError):
        copy.transform(example())
    assert not [name for name in vars(copy) if name.endswith("_")]


def several_callbacks():
    return [ProgressBar(), TimeBudget(100.0), StopOnPlateau()]


@pytest.mark.parametrize("callback", several_callbacks(), ids=lambda callback: type(callback).__name__)
@pytest.mark.parametrize("copy", [clone, lambda fitted: pickle.loads(pickle.dumps(fitted))], ids=["clone", "pickle"])
def test_a_fitted_model_can_be_copied_with_its_callbacks(callback, copy):
    fitted = model(callbacks=[callback]).fit(example(), validation=example())
    copied = copy(fitted)
    assert [type(callback) for callback in copied.callbacks] == [type(callback)]
    copied.fit(example(), validation=example())
    np.testing.assert_array_equal(copied.components_, fitted.components_)


# --- pickle ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
def test_a_fitted_model_survives_pickling(center):
    Y = example()
    fitted = model(center=center).fit(Y, validation=Y)
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.components_, fitted.components_)
    np.testing.assert_array_equal(copied.transform(Y).toarray(), fitted.transform(Y).toarray())
    xr.testing.assert_identical(copied.history_, fitted.history_)
    assert copied.stopped_by_ == "max_iter"
    np.testing.assert_array_equal(copied.partial_fit(Y).components_, fitted.partial_fit(Y).components_)


# --- among other estimators ------------------------------------------------------------------------------------------


def test_a_pipeline_scales_encodes_and_goes_back():
    Y = example("float64") * np.arange(1, N_FEATURES + 1) + 10
    pipeline = make_pipeline(StandardScaler(), DBKSVD(N_ATOMS, N_FEATURES, encoder="omp", max_iter=2, random_state=0))
    codes = pipeline.fit_transform(Y)
    assert codes.shape == (N_SAMPLES, N_ATOMS)
    np.testing.assert_array_equal(codes.toarray(), pipeline.transform(Y).toarray())
    # With as many coefficients as features OMP reconstructs every sample.
    np.testing.assert_allclose(pipeline.inverse_transform(codes), Y, rtol=1e-8)
    assert pipeline.score(Y) == pytest.approx(1)


def test_cross_validation_scores_by_held_out_variance_explained():
    Y = example()
    scores = cross_val_score(model(), Y, cv=3)
    assert scores.shape == (3,)
    assert np.all((scores > 0) & (scores < 1))
    search = GridSearchCV(model(), {"n_nonzero_coefs": [1, 2, 4]}, cv=2).fit(Y)
    assert search.best_params_ == {"n_nonzero_coefs": 4}


def test_atoms_have_names_as_features():
    fitted = model().fit(example())
    assert fitted.get_feature_names_out().tolist() == [f"dbksvd{j}" for j in range(N_ATOMS)]


def test_names_of_the_features_are_checked():
    frame = pd.DataFrame(example(), columns=list("abcdef"))
    fitted = model().fit(frame)
    assert fitted.feature_names_in_.tolist() == list("abcdef")
    np.testing.assert_array_equal(
        fitted.transform(frame).toarray(), model().fit(example()).transform(example()).toarray()
    )
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.transform(frame[list("fedcba")])


def test_codes_are_sparse_whatever_output_is_set_to():
    Y = example()
    assert issparse(model().set_output(transform="default").fit_transform(Y))
    with pytest.raises(ValueError, match="sparse"):  # scikit-learn's words: a DataFrame does not hold sparse codes
        model().set_output(transform="pandas").fit_transform(Y)


# --- kinds of input and output ---------------------------------------------------------------------------------------


def test_transform_gives_scipy_codes_for_arrays_in_memory_and_lazy_codes_for_the_rest():
    Y = example()
    fitted = model().fit(Y)
    in_memory = fitted.transform(Y)
    assert isinstance(in_memory, csr_array)
    for lazily in (da.from_array(Y, chunks=(50, -1)), xr.DataArray(Y)):
        codes = fitted.transform(lazily)
        assert isinstance(codes, SparseCodes)
        assert isinstance(codes.indices, da.Array)
        np.testing.assert_array_equal(codes.to_csr().toarray(), in_memory.toarray())


@pytest.mark.parametrize("kind", [lambda codes: codes, csr_array.tocsc, csr_array.tocoo, csr_array.toarray])
def test_inverse_transform_takes_codes_of_any_format(kind):
    Y = example()
    fitted = model(center=True).fit(Y)
    codes = fitted.transform(Y)
    expected = codes.toarray() @ fitted.components_ + fitted.mean_
    np.testing.assert_allclose(fitted.inverse_transform(kind(codes)), expected, rtol=1e-5, atol=1e-5)
    lazily = fitted.inverse_transform(fitted.transform(da.from_array(Y)))
    np.testing.assert_allclose(lazily, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "asked", "computed"),
    [
        ("float16", None, "float32"),
        ("float32", None, "float32"),
        ("float64", None, "float64"),
        ("float64", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float32", np.float64, "float64"),
        ("float16", np.dtype("float64"), "float64"),
    ],
)
@pytest.mark.parametrize("wrap", [np.asarray, da.from_array], ids=["numpy", "dask"])
def test_precision_is_that_of_the_embeddings_unless_asked_for(given, asked, computed, wrap):
    Y = wrap(example(given))
    fitted = model(dtype=asked, center=True).fit(Y)
    codes = fitted.transform(Y)
    assert fitted.components_.dtype == computed
    assert fitted.mean_.dtype == computed
    assert codes.dtype == computed
    assert fitted.inverse_transform(codes).dtype == computed
    assert type(fitted.score(Y)) is float


# --- the second argument ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_transform"])
@pytest.mark.parametrize(
    "held_out",
    [
        np.asarray,
        da.from_array,
        xr.DataArray,
        pd.DataFrame,
        np.ndarray.tolist,
        lambda Y: "held-out.zarr",
    ],
    ids=["numpy", "dask", "xarray", "pandas", "list", "path"],
)
def test_held_out_embeddings_as_the_second_argument_are_refused(method, held_out):
    Y = example()
    with pytest.raises(TypeError, match=r"second argument is ignored.*pass validation=… by keyword"):
        getattr(model(), method)(Y, held_out(Y))


@pytest.mark.parametrize("y", [None, np.zeros(N_SAMPLES), [0] * N_SAMPLES, pd.Series(range(N_SAMPLES))])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_transform"])
def test_labels_as_the_second_argument_are_ignored(method, y):
    getattr(model(), method)(example(), y)
