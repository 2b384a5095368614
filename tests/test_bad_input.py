"""Every mistake a user can make is an error that names it, and nothing that was learned before is lost by it."""

import json
import re
import shutil
from functools import cache

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.sparse import csr_array
from sklearn.exceptions import NotFittedError

from dbksvd_dask import DBKSVD, Dictionary, SparseCodes, StopOnPlateau, TimeBudget, open_codes, open_dictionary
from dbksvd_dask.embeddings import chunking

N_SAMPLES, N_FEATURES, N_ATOMS, K, ROWS = 300, 8, 12, 3, 100

EITHER = (TypeError, ValueError)
GROUPS_ARE_WHOLE = "Matryoshka groups .* must be a list of whole numbers: how many atoms each has"


def example(dtype="float32"):
    return np.random.default_rng(0).standard_normal((N_SAMPLES, N_FEATURES)).astype(dtype)


def model(n_components=N_ATOMS, n_nonzero_coefs=K, **parameters):
    defaults = {"max_iter": 3, "batch_size": ROWS, "random_state": 0}
    return DBKSVD(n_components, n_nonzero_coefs, **(defaults | parameters))


def fitted(**parameters):
    return model(**parameters).fit(example())


fitted_once = cache(fitted)  # for what only looks at the model


def dictionary(n_nonzero_coefs=2, **parameters):
    return Dictionary(np.eye(4, N_FEATURES, dtype="float32"), n_nonzero_coefs, **parameters)


def codes(n_samples=5, n_atoms=4, k=2):
    indices = np.tile(np.arange(k, dtype=np.int32), (n_samples, 1))
    return SparseCodes(indices, np.ones((n_samples, k), "float32"), n_atoms)


def rows(n_samples=N_SAMPLES, n_features=N_FEATURES, dtype="float32"):
    return np.ones((n_samples, n_features), dtype)


def case(name, mistake, error, message):
    """A row of a table: a call that is given a folder to write in, the error it raises, and what that says."""
    return pytest.param(mistake, error, f"(?s){message}", id=name.replace(" ", "-"))


def table(*cases):
    return pytest.mark.parametrize(("mistake", "error", "message"), cases)


# --- embeddings that are not finite ----------------------------------------------------------------------------------


def as_numpy(folder, array):
    return array


def as_dask(folder, array):
    return da.from_array(array, chunks=(ROWS, -1))


def as_xarray(folder, array):
    return xr.DataArray(as_dask(folder, array), dims=("sample", "feature"))


def as_npy(folder, array):
    np.save(folder / "rows.npy", array)
    return folder / "rows.npy"


def as_zarr(folder, array):
    da.to_zarr(as_dask(folder, array), folder / "rows.zarr")
    return folder / "rows.zarr"


SOURCES = [as_numpy, as_dask, as_xarray, as_npy, as_zarr]


def spoiled(row, value=np.nan):
    Y = example()
    Y[row, 5] = value
    return Y


@pytest.fixture
def chunks_of_100_rows(monkeypatch):
    """Files and arrays in memory are read in chunks of 100 rows of the example."""
    monkeypatch.setattr(chunking, "_rows_per_chunk", lambda shape, dtype: ROWS)


def in_memory(X):
    return X.compute() if isinstance(X, SparseCodes) else X


USES = {
    "fit": lambda Y: model().fit(Y),
    "fit-centred": lambda Y: model(center=True).fit(Y),
    "fit-from-random": lambda Y: model(init="random").fit(Y),
    "fit-shuffled": lambda Y: model(shuffle="chunks").fit(Y),
    "partial_fit": lambda Y: model().partial_fit(Y),
    "validation": lambda Y: model().fit(example(), validation=Y),
    "transform": lambda Y: in_memory(fitted_once().transform(Y)),
    "transform-centred": lambda Y: in_memory(fitted_once(center=True).transform(Y)),
    "score": lambda Y: fitted_once().score(Y),
    "encode": lambda Y: fitted_once().dictionary_.encode(Y).compute(),
}


@pytest.mark.usefixtures("chunks_of_100_rows")
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_row_that_is_not_finite_is_named_with_its_chunk(use, source, value, tmp_path):
    Y = spoiled(230, value)
    with pytest.raises(ValueError, match=r"contains NaN or infinity: row 230, in chunk 2, is the first found"):
        use(source(tmp_path, Y))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_values_whose_squares_overflow_are_an_error_that_says_so(use, dtype):
    Y = example().astype(dtype)
    Y[230] *= np.sqrt(np.finfo(dtype).max)
    with pytest.raises(ValueError, match=r"norm .* overflows .* scale the embeddings"):
        use(Y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_and_small_values_that_do_not_overflow_change_nothing_but_the_scale(dtype):
    expected = model().fit(example().astype(dtype)).components_
    for power in (-40, 40):
        np.testing.assert_array_equal(model().fit(np.ldexp(example().astype(dtype), power)).components_, expected)


@pytest.mark.parametrize("source", SOURCES)
def test_a_row_of_the_validation_embeddings_is_not_blamed_on_the_training_embeddings(source, tmp_path):
    with pytest.raises(ValueError, match=r"validation contains NaN or infinity: row 230"):
        model().fit(example(), validation=source(tmp_path, spoiled(230)))


# --- embeddings that do not fit --------------------------------------------------------------------------------------


def in_one_chunk(array):
    return da.from_array(array, chunks=array.shape)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "object", "str"])
@pytest.mark.parametrize("wrap", [np.asarray, in_one_chunk, xr.DataArray], ids=["numpy", "dask", "xarray"])
def test_embeddings_are_floating(use, dtype, wrap):
    with pytest.raises(TypeError, match=r'has dtype .*: embeddings are .*convert them with \.astype\("float32"\)'):
        use(wrap(rows().astype(dtype)))


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("wrap", [np.asarray, in_one_chunk, xr.DataArray], ids=["numpy", "dask", "xarray"])
def test_embeddings_are_not_complex(use, wrap):
    with pytest.raises(EITHER, match=r"Complex data not supported|has dtype complex128"):  # the first is scikit-learn's
        use(wrap(rows(dtype="complex128")))


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("wrap", [np.asarray, in_one_chunk], ids=["numpy", "dask"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(N_FEATURES), "Expected 2D array, got 1D|embeddings are two-dimensional"),
        (np.ones((3, 4, N_FEATURES)), "Found array with dim 3|embeddings are two-dimensional"),
        (np.ones((0, N_FEATURES)), r"Found array with 0 sample|is empty: shape \(0, 8\)"),
        (np.ones((N_SAMPLES, 0)), r"Found array with 0 feature|is empty: shape \(300, 0\)"),
    ],
    ids=["1-D", "3-D", "no-samples", "no-features"],
)
def test_embeddings_are_two_dimensional_and_not_empty(use, wrap, array, message):
    with pytest.raises(ValueError, match=message):
        use(wrap(array))


@table(
    case("transform", lambda f: fitted().transform(rows(5, 7)), ValueError, "7 features, .*expecting 8 features"),
    case("score", lambda f: fitted().score(rows(5, 7)), ValueError, "7 features, .*expecting 8 features"),
    case("partial_fit", lambda f: fitted().partial_fit(rows(50, 7)), ValueError, "7 features, .*expecting 8 features"),
    case(
        "transform dask",
        lambda f: fitted().transform(da.ones((5, 7))),
        ValueError,
        "Y has 7 features, .*expecting 8 features",
    ),
    case(
        "partial_fit dask",
        lambda f: fitted().partial_fit(da.ones((50, 7))),
        ValueError,
        "Y has 7 features, .*expecting 8 features",
    ),
    case(
        "validation",
        lambda f: model().fit(example(), validation=rows(5, 7)),
        ValueError,
        "validation has 7 features, .*expecting 8 features",
    ),
    case(
        "validation dask",
        lambda f: model().fit(example(), validation=da.ones((5, 7))),
        ValueError,
        "validation has 7 features, .*expecting 8 features",
    ),
    case("encode", lambda f: dictionary().encode(rows(5, 7)), ValueError, "Y has 7 features, but the atoms have 8"),
    case(
        "encode dask",
        lambda f: dictionary().encode(da.ones((5, 7))),
        ValueError,
        "Y has 7 features, but the atoms have 8",
    ),
    case("a frame of other columns", lambda f: fit_and_transform_frames(), ValueError, "feature names should match"),
    case("few samples", lambda f: model(301).fit(example()), ValueError, "n_samples=300 is smaller than n_comp.*=301"),
    case(
        "few samples dask",
        lambda f: model(301).fit(da.from_array(example())),
        ValueError,
        "n_samples=300 is smaller than n_components=301",
    ),
    case(
        "few samples partial_fit",
        lambda f: model(301).partial_fit(example()),
        ValueError,
        "n_samples=300 is smaller than n_components=301",
    ),
    case("no path", lambda f: model().fit(str(f / "no.npy")), FileNotFoundError, "nothing at .*no.npy"),
    case(
        "a URL without its package", lambda f: model().fit("nfs9://host/rows"), ValueError, "nfs9://host/rows cannot be"
    ),
    case("nothing at a URL", lambda f: model().fit("memory://nowhere.zarr"), FileNotFoundError, "nothing at memory://"),
    case("unknown suffix", lambda f: model().fit(text_file(f, "rows.csv")), ValueError, "unknown suffix '.csv'"),
    case("a broken file", lambda f: model().fit(text_file(f, "rows.npy")), ValueError, "not a readable .npy file"),
    case("nothing", lambda f: model().fit(None), EITHER, "None"),
    case("sparse", lambda f: model().fit(csr_array(rows())), TypeError, "dense data is required"),
    case("masked", lambda f: model().fit(np.ma.masked_less(example(), 0)), TypeError, "MaskedArray"),
    case("masked encode", lambda f: dictionary().encode(np.ma.masked_less(example(), 0)), TypeError, "MaskedArray"),
    case("a list to encode", lambda f: dictionary().encode(rows().tolist()), TypeError, "opened from a builtins.list"),
)
def test_embeddings_that_do_not_fit(mistake, error, message, tmp_path):
    with pytest.raises(error, match=message):
        mistake(tmp_path)


def fit_and_transform_frames():
    names = list("abcdefgh")
    model().fit(pd.DataFrame(example(), columns=names)).transform(pd.DataFrame(example(), columns=names[::-1]))


def text_file(folder, name):
    (folder / name).write_text("1.0, 2.0")
    return folder / name


# --- parameters of the estimator -------------------------------------------------------------------------------------

WHOLE_NUMBERS = ["n_components", "n_nonzero_coefs", "batch_size", "max_iter", "inner_batch_size", "n_passes"]
NO_OPTIONS = {
    "solver": ["svd", "", 3, None],
    "init": ["svd", "", None, 3],
    "center": ["yes", 1, None],
    "average": ["yes", 1, None],
    "replace_unused": ["never", True],
    "encoder": ["lasso", "MP", None],
    "nonnegative": ["yes", 0, None],
    "rtol": [-0.1, 1.0, np.nan, "0.1", None],
    "dtype": ["float16", "int32", "complex64", 32, np.float16, np.int32, np.complex64, str],
    "shuffle": ["rows", True],
    "random_state": [-1, "0", 0.5],
    "tol": [-1e-9, np.nan, "0.1", None],
    "flat_share": [-0.1, 1.1, np.nan, "0.5", None],
    "matryoshka": ["yes", "", None, 8, 2.5],
    "max_coherence": [0, 0.0, 1, 1.0, 1.5, -0.5, np.nan, "a", True],
    "fixed_atoms": ["samples", 3, True],
    "known_atoms": ["samples", 3, True],
    "callbacks": [None, print, "print", {print}, iter([print])],
}


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in WHOLE_NUMBERS for value in (0, -1, 2.0, "2", np.nan)]
    + [(name, None) for name in WHOLE_NUMBERS if name != "inner_batch_size"]
    + [(name, value) for name, values in NO_OPTIONS.items() for value in values],
)
def test_a_parameter_out_of_range_is_named_with_its_value(method, name, value):
    with pytest.raises(ValueError, match=f"'{name}' parameter of DBKSVD must be .* Got "):
        getattr(model().set_params(**{name: value}), method)(example())


def atoms(n_atoms=N_ATOMS, n_features=N_FEATURES, dtype="float64"):
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((n_atoms, n_features))
    return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(dtype)


def changed(array, row, value):
    array = array.copy()
    array[row] = value
    return array


def continued(**parameters):
    return fitted().set_params(**parameters).partial_fit(example())


@table(
    case("k > m", lambda f: model(12, 13).fit(example()), ValueError, "n_nonzero_coefs=13 exceeds n_components=12"),
    case(
        "k > m partial_fit",
        lambda f: model(12, 13).partial_fit(example()),
        ValueError,
        "n_nonzero_coefs=13 exceeds n_components=12",
    ),
    case(
        "k > m continued",
        lambda f: continued(n_nonzero_coefs=13),
        ValueError,
        "n_nonzero_coefs=13 exceeds n_components=12",
    ),
    case("another m continued", lambda f: continued(n_components=5), ValueError, "n_components=5 .*12"),
    case(
        "nonnegative omp",
        lambda f: model(encoder="omp", nonnegative=True).fit(example()),
        ValueError,
        'nonnegative=True needs encoder="mp"',
    ),
    case(
        "nonnegative omp continued",
        lambda f: continued(encoder="omp", nonnegative=True),
        ValueError,
        'nonnegative=True needs encoder="mp"',
    ),
    case("init atoms", lambda f: model(init=atoms(11)).fit(example()), ValueError, r"init has shape \(11, 8\)"),
    case("init features", lambda f: model(init=atoms(12, 7)).fit(example()), ValueError, r"init has shape \(12, 7\)"),
    case("init 1-D", lambda f: model(init=atoms()[0]).fit(example()), ValueError, r"init has shape \(8,\)"),
    case("init empty", lambda f: model(init=[]).fit(example()), ValueError, r"init has shape \(0,\)"),
    case("init ragged", lambda f: model(init=[[1.0], [0.6, 0.8]]).fit(example()), EITHER, "init|inhomogeneous"),
    case(
        "init long",
        lambda f: model(init=changed(atoms(), 3, 2.0)).fit(example()),
        ValueError,
        "init row 3 has norm 5.657: atoms have unit norm",
    ),
    case(
        "init zero", lambda f: model(init=changed(atoms(), 3, 0.0)).fit(example()), ValueError, "init row 3 has norm 0"
    ),
    case(
        "init NaN",
        lambda f: model(init=changed(atoms(), 3, np.nan)).fit(example()),
        ValueError,
        "init row 3 is not finite",
    ),
    case(
        "init infinite",
        lambda f: model(init=changed(atoms(), 3, np.inf)).fit(example()),
        ValueError,
        "init row 3 is not finite",
    ),
    case("init integers", lambda f: model(init=np.eye(12, 8, dtype=int)).fit(example()), TypeError, "init has dtype"),
    case("init complex", lambda f: model(init=atoms() + 0j).fit(example()), TypeError, "init has dtype complex128"),
    case(
        "init of low rank in float32",
        lambda f: DBKSVD(300, 2, init=low_rank(300, 200)).fit(np.ones((300, 200), "float32")),
        ValueError,
        "init has rank 150, but 300 atoms over 200 features should have 200",
    ),
    case(
        "init repeats atoms",
        lambda f: model(4, init=atoms(3)[[0, 1, 2, 0]]).fit(example()),
        ValueError,
        "init has rank 3, but 4 atoms over 8 features should have 4",
    ),
    case(
        "init lies in a plane",
        lambda f: model(init=plane(12)).fit(example()),
        ValueError,
        "init has rank 2, but 12 atoms over 8 features should have 8",
    ),
    case(
        "groups that are too many atoms",
        lambda f: model(matryoshka=[4, 9]).fit(example()),
        ValueError,
        r"Matryoshka groups \[4, 9\] add up to 13, but there are 12 atoms",
    ),
    case(
        "groups that are too few atoms partial_fit",
        lambda f: model(matryoshka=np.array([4, 7])).partial_fit(example()),
        ValueError,
        r"Matryoshka groups \[4, 7\] add up to 11, but there are 12 atoms",
    ),
    case(
        "groups continued",
        lambda f: continued(matryoshka=[4, 9]),
        ValueError,
        r"Matryoshka groups \[4, 9\] add up to 13, but there are 12 atoms",
    ),
    case(
        "other groups continued",
        lambda f: (
            model(matryoshka=[4, 8])
            .fit(example())
            .set_params(matryoshka=False, n_nonzero_coefs=1)
            .partial_fit(example())
        ),
        ValueError,
        r"matryoshka=False differs from the groups learned so far, \[4, 8\]: fit anew, or set it back",
    ),
    case("groups of halves", lambda f: model(matryoshka=[3.5, 8.5]).fit(example()), TypeError, GROUPS_ARE_WHOLE),
    case("groups in floats", lambda f: model(matryoshka=[4.0, 8.0]).fit(example()), TypeError, GROUPS_ARE_WHOLE),
    case("groups in words", lambda f: model(matryoshka=["4", "8"]).fit(example()), TypeError, GROUPS_ARE_WHOLE),
    case("groups of groups", lambda f: model(matryoshka=[[4, 8]]).fit(example()), TypeError, GROUPS_ARE_WHOLE),
    case("groups of booleans", lambda f: model(matryoshka=[True] * 12).fit(example()), TypeError, GROUPS_ARE_WHOLE),
    case("no group", lambda f: model(matryoshka=[]).fit(example()), TypeError, GROUPS_ARE_WHOLE),
    case(
        "an empty group",
        lambda f: model(matryoshka=[4, 0, 8]).fit(example()),
        ValueError,
        r"Matryoshka groups \[4, 0, 8\] hold one of 0: each has at least one atom",
    ),
    case(
        "a negative group",
        lambda f: model(matryoshka=[16, -4]).fit(example()),
        ValueError,
        r"Matryoshka groups \[16, -4\] hold one of -4: each has at least one atom",
    ),
    case(
        "k < groups",
        lambda f: model(matryoshka=[3, 3, 3, 3]).fit(example()),
        ValueError,
        "n_nonzero_coefs=3 is fewer than the 4 Matryoshka groups",
    ),
    case(
        "k < default groups",
        lambda f: model(12, 1, matryoshka=True).fit(example()),
        ValueError,
        "n_nonzero_coefs=1 is fewer than the 2 Matryoshka groups",
    ),
    case(
        "k < groups continued",
        lambda f: model(matryoshka=True).fit(example()).set_params(n_nonzero_coefs=1).partial_fit(example()),
        ValueError,
        "n_nonzero_coefs=1 is fewer than the 2 Matryoshka groups",
    ),
    case(
        "a group smaller than its share",
        lambda f: model(matryoshka=[1, 11]).fit(example()),
        ValueError,
        "group of 1 atoms has 2 of n_nonzero_coefs=3, more than it has atoms",
    ),
    case(
        "max_coherence below Welch",
        lambda f: model(max_coherence=0.2).fit(example()),
        ValueError,
        "max_coherence=0.2 is below what any 12 atoms over 8 features can have, 0.213",
    ),
    case(
        "max_coherence below Welch continued",
        lambda f: continued(max_coherence=0.2),
        ValueError,
        "max_coherence=0.2 is below what any 12 atoms over 8 features can have, 0.213",
    ),
    case(
        "max_coherence without replacement",
        lambda f: model(max_coherence=0.9, replace_unused=None).fit(example()),
        ValueError,
        "max_coherence replaces atoms, but replace_unused=None",
    ),
    case("callback", lambda f: model(callbacks=[print, 3]).fit(example()), TypeError, "callback 3 cannot be called"),
    case(
        "callback partial_fit",
        lambda f: model(callbacks=[None]).partial_fit(example()),
        TypeError,
        "callback None cannot be called",
    ),
    case(
        "callback continued", lambda f: continued(callbacks=["print"]), TypeError, "callback 'print' cannot be called"
    ),
    case(
        "callback class",
        lambda f: model(callbacks=[StopOnPlateau]).fit(example()),
        TypeError,
        r"StopOnPlateau.* is a class: pass an instance",
    ),
    case("no patience", lambda f: StopOnPlateau(patience=0), ValueError, "patience=0 must be a whole number"),
    case("plateau of text", lambda f: StopOnPlateau("a"), ValueError, "patience='a' must be a whole number"),
    case("negative tolerance", lambda f: StopOnPlateau(tolerance=-1), ValueError, "tolerance=-1 must be a number"),
    case("no time", lambda f: TimeBudget(float("nan")), ValueError, "seconds=nan must be a number of at least 0"),
    case(
        "more nonzeros than atoms, set after the fit",
        lambda f: model().fit(example()).set_params(n_nonzero_coefs=100).score(example()),
        ValueError,
        "n_nonzero_coefs=100 exceeds n_components",
    ),
    case("nonnegative text", lambda f: Dictionary(np.eye(3), nonnegative="x"), TypeError, "must be True or False"),
)
def test_parameters_that_do_not_go_together(mistake, error, message, tmp_path):
    with pytest.raises(error, match=message):
        mistake(tmp_path)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", ["fixed_atoms", "known_atoms"])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: 2 * atoms(3), ValueError, "row 0 has norm 2: atoms have unit norm"),
        (lambda: changed(atoms(3), 1, 0.0), ValueError, "row 1 has norm 0"),
        (lambda: changed(atoms(3), 1, np.nan), ValueError, "row 1 is not finite"),
        (lambda: changed(atoms(3), 2, np.inf), ValueError, "row 2 is not finite"),
        (lambda: atoms(3, 7), ValueError, r"has shape \(3, 7\), but .* leave room for 12 atoms over 8 features"),
        (lambda: atoms(13), ValueError, r"has shape \(13, 8\), but .* leave room for 12 atoms over 8 features"),
        (lambda: atoms(3)[0], ValueError, r"has shape \(8,\)"),
        (lambda: atoms(3)[:0], ValueError, r"has shape \(0, 8\)"),
        (lambda: [], ValueError, r"has shape \(0,\)"),
        (lambda: np.eye(3, 8, dtype=int), TypeError, "has dtype int64: atoms are floating"),
        (lambda: np.eye(3, 8, dtype=int).tolist(), TypeError, "has dtype int64: atoms are floating"),
        (lambda: np.eye(3, 8, dtype=bool), TypeError, "has dtype bool"),
        (lambda: atoms(3) + 0j, TypeError, "has dtype complex128"),
        (lambda: atoms(3)[[0, 1, 0]], ValueError, "has rank 2, but 3 atoms over 8 features should have 3"),
        (lambda: plane(4), ValueError, "has rank 2, but 4 atoms over 8 features should have 4"),
    ],
    ids=[
        "long",
        "zero",
        "NaN",
        "infinite",
        "features",
        "too-many",
        "1-D",
        "no-atoms",
        "empty",
        "integers",
        "integers-listed",
        "booleans",
        "complex",
        "repeated",
        "in-a-plane",
    ],
)
def test_atoms_known_beforehand_are_atoms(make, error, message, name, method):
    with pytest.raises(error, match=f"{name} {message}"):
        getattr(model(**{name: make()}), method)(example())


@table(
    case(
        "all atoms fixed",
        lambda f: model(fixed_atoms=atoms()).fit(example()),
        ValueError,
        "fixed_atoms are all 12 atoms of n_components: nothing is left to learn",
    ),
    case(
        "too many together",
        lambda f: model(fixed_atoms=atoms()[:8], known_atoms=atoms()[8:], n_components=11).fit(example()),
        ValueError,
        r"known_atoms has shape \(4, 8\), but .* leave room for 3 atoms over 8 features",
    ),
    case(
        "the same atom fixed and known",
        lambda f: model(fixed_atoms=atoms()[:3], known_atoms=atoms()[2:4]).fit(example()),
        ValueError,
        "fixed_atoms with known_atoms has rank 4, but 5 atoms over 8 features should have 5",
    ),
    case(
        "the same atom known and first",
        lambda f: DBKSVD(5, 2, known_atoms=atoms()[:3], init=atoms()[2:4]).fit(example()),
        ValueError,
        "known_atoms with init has rank 4, but 5 atoms over 8 features should have 5",
    ),
    case(
        "init of all atoms besides fixed ones",
        lambda f: model(fixed_atoms=atoms()[:3], init=atoms()).fit(example()),
        ValueError,
        r"init has shape \(12, 8\): .* make it \(9, 8\) besides fixed_atoms$",
    ),
    case(
        "init of too few atoms besides both",
        lambda f: model(fixed_atoms=atoms()[:3], known_atoms=atoms()[3:5], init=atoms()[5:11]).fit(example()),
        ValueError,
        r"init has shape \(6, 8\): .* make it \(7, 8\) besides fixed_atoms and known_atoms$",
    ),
)
def test_atoms_known_beforehand_leave_room_for_the_others(mistake, error, message, tmp_path):
    with pytest.raises(error, match=message):
        mistake(tmp_path)


def low_rank(n_atoms, n_features):
    """Float32 unit rows that span three quarters of the space."""
    rng = np.random.default_rng(0)
    n_directions = n_features * 3 // 4
    rows = rng.standard_normal((n_atoms, n_directions)) @ rng.standard_normal((n_directions, n_features))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("float32")


def plane(n_atoms):
    angles = np.linspace(0, 3, n_atoms)
    return np.pad(np.stack([np.cos(angles), np.sin(angles)], axis=1), ((0, 0), (0, N_FEATURES - 2)))


# --- atoms -----------------------------------------------------------------------------------------------------------


def unit():
    return np.eye(3)


@table(
    case("not a number", lambda f: Dictionary(changed(unit(), 1, np.nan)), ValueError, "atoms row 1 is not finite"),
    case("infinite", lambda f: Dictionary(changed(unit(), 1, np.inf)), ValueError, "atoms row 1 is not finite"),
    case("long", lambda f: Dictionary(2 * unit()), ValueError, "atoms row 0 has norm 2: .*divide each row by its norm"),
    case("zero", lambda f: Dictionary(changed(unit(), 1, 0.0)), ValueError, "atoms row 1 has norm 0"),
    case("one-dimensional", lambda f: Dictionary(np.ones(1)), ValueError, r"atoms has shape \(1,\)"),
    case("three-dimensional", lambda f: Dictionary(np.ones((1, 1, 1))), ValueError, r"atoms has shape \(1, 1, 1\)"),
    case("no atoms", lambda f: Dictionary(np.ones((0, 3))), ValueError, r"atoms has shape \(0, 3\)"),
    case("no features", lambda f: Dictionary(np.ones((3, 0))), ValueError, r"atoms has shape \(3, 0\)"),
    case("integers", lambda f: Dictionary(np.eye(3, dtype=int)), TypeError, "atoms has dtype int64: .*astype"),
    case("booleans", lambda f: Dictionary(np.eye(3, dtype=bool)), TypeError, "atoms has dtype bool"),
    case("complex", lambda f: Dictionary(unit() + 0j), TypeError, "atoms has dtype complex128"),
    case("objects", lambda f: Dictionary(unit().astype(object)), TypeError, "atoms has dtype object"),
    case("quadruple", lambda f: Dictionary(unit().astype(np.longdouble)), TypeError, "atoms has dtype (float|long)"),
    case("a path", lambda f: Dictionary("dictionary.zarr"), TypeError, "atoms has dtype <U"),
    case("mean too narrow", lambda f: Dictionary(unit(), mean=np.ones(2)), ValueError, r"mean has shape \(2,\): .* 3"),
    case("mean two-dimensional", lambda f: Dictionary(unit(), mean=np.ones((1, 3))), ValueError, r"mean has shape"),
    case("mean not a number", lambda f: Dictionary(unit(), mean=[0.0, np.nan, 0.0]), ValueError, "mean .*not finite"),
    case("mean complex", lambda f: Dictionary(unit(), mean=np.ones(3) + 1j), TypeError, "mean has dtype complex128"),
    case("k zero", lambda f: Dictionary(unit(), 0), ValueError, "n_nonzero_coefs=0 must be between 1 and .* 3"),
    case("k > m", lambda f: Dictionary(unit(), 4), ValueError, "n_nonzero_coefs=4 must be between 1 and .* 3"),
    case("k fractional", lambda f: Dictionary(unit(), 1.5), EITHER, "n_nonzero_coefs=1.5"),
    case("k text", lambda f: Dictionary(unit(), "2"), EITHER, "n_nonzero_coefs='2'"),
    case("unknown encoder", lambda f: Dictionary(unit(), 1, encoder="lasso"), ValueError, "encoder='lasso'"),
    case("rtol negative", lambda f: Dictionary(unit(), 1, rtol=-0.1), ValueError, "rtol=-0.1"),
    case("rtol not a number", lambda f: Dictionary(unit(), 1, rtol=np.nan), ValueError, "rtol=nan"),
    case(
        "nonnegative omp",
        lambda f: Dictionary(unit(), 1, encoder="omp", nonnegative=True),
        ValueError,
        'nonnegative=True needs encoder="mp"',
    ),
    case(
        "groups that are too many atoms",
        lambda f: Dictionary(unit(), group_sizes=[2, 2]),
        ValueError,
        r"Matryoshka groups \[2, 2\] add up to 4, but there are 3 atoms",
    ),
    case("an empty group", lambda f: Dictionary(unit(), group_sizes=[3, 0]), ValueError, "hold one of 0"),
    case("groups in floats", lambda f: Dictionary(unit(), group_sizes=[1.0, 2.0]), TypeError, GROUPS_ARE_WHOLE),
    case("groups in words", lambda f: Dictionary(unit(), group_sizes="12"), TypeError, GROUPS_ARE_WHOLE),
    case("groups of groups", lambda f: Dictionary(unit(), group_sizes=[[1, 2]]), TypeError, GROUPS_ARE_WHOLE),
    case("a group of text", lambda f: Dictionary(unit(), group_sizes=["3"]), TypeError, GROUPS_ARE_WHOLE),
    case(
        "provenance that JSON does not know",
        lambda f: Dictionary(unit(), provenance={"layers": {1, 2}}).to_zarr(f / "dictionary.zarr"),
        TypeError,
        "JSON",
    ),
)
def test_atoms_and_their_parameters(mistake, error, message, tmp_path):
    with pytest.raises(error, match=message):
        mistake(tmp_path)


@pytest.mark.parametrize("group_sizes", [3, 1.5, None, True])
def test_groups_of_a_dictionary_are_a_list(group_sizes):
    with pytest.raises(TypeError, match=GROUPS_ARE_WHOLE):
        Dictionary(unit(), group_sizes=group_sizes)


# --- encoding --------------------------------------------------------------------------------------------------------


def encode(*arguments, **options):
    return dictionary().encode(rows(5), *arguments, **options)


@table(
    case("no k", lambda f: dictionary(None).encode(rows(5)), ValueError, "no n_nonzero_coefs of its own: pass"),
    case("k zero", lambda f: encode(0), ValueError, "n_nonzero_coefs=0 must be between 1 and the number of atoms, 4"),
    case("k negative", lambda f: encode(-1), ValueError, "n_nonzero_coefs=-1 must be between 1 and"),
    case("k > m", lambda f: encode(5), ValueError, "n_nonzero_coefs=5 must be between 1 and the number of atoms, 4"),
    case("k fractional", lambda f: encode(1.5), EITHER, "n_nonzero_coefs=1.5"),
    case("k text", lambda f: encode("2"), EITHER, "n_nonzero_coefs='2'"),
    case("unknown encoder", lambda f: encode(encoder="lasso"), ValueError, "encoder='lasso'"),
    case("unknown refit", lambda f: encode(refit="ridge"), ValueError, "refit='ridge'"),
    case("refit as a flag", lambda f: encode(refit=True), EITHER, "refit=True"),
    case("rtol negative", lambda f: encode(rtol=-0.1), ValueError, "rtol=-0.1"),
    case("rtol not a number", lambda f: encode(rtol=np.nan), ValueError, "rtol=nan"),
    case("rtol text", lambda f: encode(rtol="0.1"), EITHER, "rtol='0.1'"),
    case(
        "nonnegative omp",
        lambda f: encode(encoder="omp", nonnegative=True),
        ValueError,
        'nonnegative=True needs encoder="mp"',
    ),
    case(
        "nonnegative of an omp dictionary",
        lambda f: dictionary(encoder="omp").encode(rows(5), nonnegative=True),
        ValueError,
        'nonnegative=True needs encoder="mp"',
    ),
    case(
        "group-wise in words", lambda f: encode(group_wise="yes"), TypeError, "group_wise='yes' must be True or False"
    ),
    case(
        "group by group without groups",
        lambda f: encode(group_wise=True),
        ValueError,
        "group_wise=True, but this dictionary has no groups",
    ),
    case(
        "group by group with fewer nonzeros than groups",
        lambda f: dictionary(group_sizes=(1, 2, 1)).encode(rows(5), group_wise=True),
        ValueError,
        "n_nonzero_coefs=2 is fewer than the 3 Matryoshka groups",
    ),
    case(
        "group by group with a share larger than a group",
        lambda f: dictionary(group_sizes=(1, 3)).encode(rows(5), 4, group_wise=True),
        ValueError,
        "group of 1 atoms has 2 of n_nonzero_coefs=4",
    ),
    case(
        "nonnegative refit",
        lambda f: encode(nonnegative=True, refit="lstsq"),
        ValueError,
        "nonnegative",
    ),
)
def test_options_of_encode(mistake, error, message, tmp_path):
    with pytest.raises(error, match=message):
        mistake(tmp_path)


@table(
    case("codes", lambda f: dictionary().decode(codes(n_atoms=3)), ValueError, "over 3 atoms, .* dictionary has 4"),
    case("csr", lambda f: dictionary().decode(csr_array((2, 5))), ValueError, "over 5 atoms, .* dictionary has 4"),
    case("array", lambda f: dictionary().decode(np.ones((2, 5))), ValueError, "over 5 atoms, .* dictionary has 4"),
    case("one-dimensional", lambda f: dictionary().decode(np.ones(4)), ValueError, r"\(4,\).* two-dimensional"),
    case("inverse_transform", lambda f: fitted().inverse_transform(np.ones((2, 5))), ValueError, "over 5 atoms"),
    case(
        "an atom that is not there",
        lambda f: dictionary().decode(SparseCodes(np.full((2, 1), 4), np.ones((2, 1)), n_atoms=4)),
        (*EITHER, IndexError),
        "4",
    ),
    case(
        "an atom that is not there lazily",
        lambda f: (
            dictionary().decode(SparseCodes(da.full((2, 1), 4, dtype="int32"), da.ones((2, 1)), n_atoms=4)).compute()
        ),
        (*EITHER, IndexError),
        "4",
    ),
    case(
        "shapes", lambda f: SparseCodes(np.zeros((3, 2), int), np.zeros((3, 1)), 4), ValueError, r"\(3, 2\).*\(3, 1\)"
    ),
    case("1-D", lambda f: SparseCodes(np.zeros(3, int), np.zeros(3), 4), ValueError, r"must both be \(samples, slots"),
    case("float indices", lambda f: SparseCodes(np.zeros((3, 2)), np.zeros((3, 2)), 4), TypeError, "indices must be"),
    case("integer values", lambda f: SparseCodes(codes().indices, codes().indices, 4), TypeError, "values floats"),
    case(
        "half lazy",
        lambda f: SparseCodes(codes().indices, da.ones((5, 2)), 4),
        TypeError,
        "both .*NumPy.*dask|both .*dask",
    ),
    case("lists", lambda f: SparseCodes([[0]], [[1.0]], 4), TypeError, "list"),
)
def test_codes_that_do_not_fit(mistake, error, message, tmp_path):
    with pytest.raises(error, match=message):
        mistake(tmp_path)


# --- stores ----------------------------------------------------------------------------------------------------------


def stored_dictionary(folder):
    dictionary(mean=np.ones(N_FEATURES)).to_zarr(folder / "store.zarr")
    return folder / "store.zarr"


def stored_codes(folder):
    lazy = SparseCodes(da.ones((9, 2), chunks=(3, 2), dtype="int32"), da.ones((9, 2), chunks=(3, 2)), n_atoms=4)
    lazy.to_zarr(folder / "store.zarr")
    return folder / "store.zarr"


def nothing(path):
    shutil.rmtree(path)


def without(*names):
    def remove(path):
        for name in names:
            shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()

    return remove


def a_file(path):
    shutil.rmtree(path)
    path.write_text("not a store")


def an_empty_folder(path):
    shutil.rmtree(path)
    path.mkdir()


def half_of(name):
    def cut(path):
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2])

    return cut


def attributes(**changes):
    def edit(path):
        metadata = json.loads((path / "zarr.json").read_text())
        metadata["attributes"] |= changes
        metadata["attributes"] = {name: value for name, value in metadata["attributes"].items() if value is not None}
        (path / "zarr.json").write_text(json.dumps(metadata))

    return edit


def without_variable(name):
    def edit(path):
        metadata = json.loads((path / "zarr.json").read_text())
        del metadata["consolidated_metadata"]["metadata"][name]
        (path / "zarr.json").write_text(json.dumps(metadata))
        shutil.rmtree(path / name)

    return edit


HALF_WRITTEN = "half written|incomplete|interrupted|missing|no data|not complete"


@pytest.mark.parametrize(
    ("make", "open_it", "spoil", "error", "message"),
    [
        *(
            pytest.param(make, open_it, spoil, error, f"(?s){message}", id=f"{kind}-{name}")
            for kind, make, open_it in (
                ("dictionary", stored_dictionary, open_dictionary),
                ("codes", stored_codes, lambda path: open_codes(path).compute()),
            )
            for name, spoil, error, message in (
                ("nothing", nothing, FileNotFoundError, f"no {kind} store at .*store.zarr"),
                ("a-file", a_file, ValueError, "store.zarr is not a zarr store"),
                ("empty", an_empty_folder, ValueError, "store.zarr is not a zarr store"),
                ("no-metadata", without("zarr.json"), ValueError, "store.zarr is not a zarr store"),
                ("half-metadata", half_of("zarr.json"), ValueError, "store.zarr is not a zarr store"),
                ("newer", attributes(format_version=2), ValueError, "written by .*upgrade dbksvd_dask"),
                ("no-version", attributes(format_version=None), ValueError, "format_version"),
                ("no-format", attributes(format=None), ValueError, f"not a {kind} store of dbksvd_dask"),
                ("other-format", attributes(format=1), ValueError, f"not a {kind} store of dbksvd_dask"),
            )
        ),
        pytest.param(
            stored_codes, open_dictionary, None, ValueError, "not a dictionary store", id="codes-as-dictionary"
        ),
        pytest.param(stored_dictionary, open_codes, None, ValueError, "not a codes store", id="dictionary-as-codes"),
        *(
            pytest.param(stored_dictionary, open_dictionary, spoil, ValueError, message, id=f"dictionary-{name}")
            for name, spoil, message in (
                ("no-atoms", without_variable("atoms"), f"atoms|{HALF_WRITTEN}"),
                ("no-chunks", without("atoms/c"), HALF_WRITTEN),
                ("no-chunks-of-the-mean", without("mean/c"), HALF_WRITTEN),
                ("half-a-chunk", half_of("atoms/c/0/0"), f"atoms|{HALF_WRITTEN}"),
                ("no-encoder", attributes(encoder=None), "encoder"),
                ("unknown-encoder", attributes(encoder="lasso"), "encoder"),
                ("no-k", attributes(n_nonzero_coefs=None), "n_nonzero_coefs"),
                ("half-a-provenance", attributes(provenance='{"seed": '), "provenance"),
            )
        ),
        *(
            pytest.param(
                stored_codes, lambda path: open_codes(path).compute(), spoil, ValueError, message, id=f"codes-{name}"
            )
            for name, spoil, message in (
                ("no-values", without_variable("values"), f"values|{HALF_WRITTEN}"),
                ("a-chunk-of-indices-missing", without("indices/c/1"), HALF_WRITTEN),
                ("a-chunk-of-values-missing", without("values/c/2"), HALF_WRITTEN),
                ("no-atoms", attributes(n_atoms=None), "n_atoms"),
            )
        ),
    ],
)
def test_what_is_not_a_whole_store_is_not_opened(make, open_it, spoil, error, message, tmp_path):
    path = make(tmp_path)
    if spoil is not None:
        spoil(path)
    with pytest.raises(error, match=message):
        open_it(path)


@table(
    case("dictionary", lambda f: dictionary().to_zarr("s3://bucket/store"), ValueError, "s3://bucket/store is a URL"),
    case("codes", lambda f: codes().to_zarr("gs://bucket/store"), ValueError, "gs://bucket/store is a URL"),
    case(
        "open dictionary", lambda f: open_dictionary("memory://no"), FileNotFoundError, "no dictionary store at memory"
    ),
    case(
        "open codes", lambda f: open_codes("memory://nowhere"), FileNotFoundError, "no codes store at memory://nowhere"
    ),
    case(
        "existing dictionary", lambda f: dictionary().to_zarr(stored_dictionary(f)), FileExistsError, "overwrite=True"
    ),
    case("existing codes", lambda f: codes().to_zarr(stored_codes(f)), FileExistsError, "overwrite=True"),
    case("existing folder", lambda f: dictionary().to_zarr(f), FileExistsError, "exists: choose another path"),
    case("not a path", lambda f: dictionary().to_zarr(3), TypeError, "PathLike"),
)
def test_paths_of_stores(mistake, error, message, tmp_path):
    with pytest.raises(error, match=message):
        mistake(tmp_path)


# --- a model that is not fitted --------------------------------------------------------------------------------------

NEEDS_A_FIT = {
    "transform": lambda m: m.transform(example()),
    "transform-dask": lambda m: m.transform(da.from_array(example())),
    "inverse_transform": lambda m: m.inverse_transform(np.ones((2, N_ATOMS))),
    "score": lambda m: m.score(example()),
    "dictionary_": lambda m: m.dictionary_,
    "history_": lambda m: m.history_,
    "get_feature_names_out": lambda m: m.get_feature_names_out(),
}


@pytest.mark.parametrize("use", NEEDS_A_FIT.values(), ids=NEEDS_A_FIT)
def test_an_unfitted_model_says_so(use):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        use(model())


MISFITS = {
    "few-samples": lambda m: m.fit(example()[:5]),
    "other-features": lambda m: m.fit(example()[:5, :4]),
    "integers": lambda m: m.fit(example().astype(int)),
    "not-finite": lambda m: m.fit(spoiled(0)),
    "not-finite-when-read": lambda m: m.fit(da.from_array(spoiled(0), chunks=(ROWS, -1))),
    "validation": lambda m: m.fit(1 + example(), validation=example()[:, :4]),
    "validation-not-finite": lambda m: m.fit(1 + example(), validation=da.from_array(spoiled(0))),
    "interrupt": lambda m: m.fit(
        da.from_array(1 + example(), chunks=(ROWS, -1)).map_blocks(interrupt, meta=rows(0, 0))
    ),
}


def interrupt(block):
    raise KeyboardInterrupt


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_a_model_whose_first_fit_failed_before_any_iteration_is_not_fitted(misfit):
    failed = model()
    with pytest.raises((TypeError, ValueError, KeyboardInterrupt)):
        misfit(failed)
    for use in NEEDS_A_FIT.values():
        with pytest.raises(NotFittedError, match="not fitted yet"):
            use(failed)


# --- nothing is lost -------------------------------------------------------------------------------------------------


def assert_same_model(one, other):
    np.testing.assert_array_equal(one.components_, other.components_)
    np.testing.assert_equal(one.mean_, other.mean_)
    assert one.n_iter_ == other.n_iter_ == one.history_.sizes["iteration"]
    assert one.n_features_in_ == other.n_features_in_
    costs = ["seconds", "stage_seconds", "peak_memory"]
    xr.testing.assert_equal(one.history_.drop_vars(costs), other.history_.drop_vars(costs))
    np.testing.assert_array_equal(one.transform(example()).toarray(), other.transform(example()).toarray())


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_a_fit_that_fails_before_its_first_iteration_leaves_a_fitted_model_as_it_was(misfit):
    refitted = fitted(center=True)
    with pytest.raises((TypeError, ValueError, KeyboardInterrupt)):
        misfit(refitted)
    assert_same_model(refitted, fitted(center=True))


@pytest.mark.parametrize("source", [as_dask, as_xarray, as_npy, as_zarr])
@pytest.mark.parametrize("continue_it", [False, True], ids=["fit", "partial_fit"])
def test_a_row_that_is_not_finite_in_a_later_batch_costs_no_iteration_before_it(source, continue_it, tmp_path):
    """The model is what it would be had the fit ended before that batch."""
    (tmp_path / "good").mkdir()
    good, broken = model(max_iter=2), model(max_iter=9)
    good.fit(source(tmp_path / "good", example()))
    if continue_it:
        good, broken = model(max_iter=5).fit(example()), model(max_iter=3).fit(example())
    with pytest.raises(ValueError, match="contains NaN or infinity: row 230"):
        (broken.partial_fit if continue_it else broken.fit)(source(tmp_path, spoiled(230)))
    assert_same_model(broken, good)
    broken.dictionary_.to_zarr(tmp_path / "kept.zarr")
    np.testing.assert_array_equal(open_dictionary(tmp_path / "kept.zarr").atoms, good.components_)


def test_a_fit_that_failed_does_not_say_that_it_came_to_its_end():
    broken = model()
    with pytest.raises(ValueError, match="row 230"):
        broken.fit(as_dask(None, spoiled(230)))
    assert broken.stopped_by_ != "max_iter"
    assert broken.dictionary_.provenance["stopped_by"] != "max_iter"


# --- no mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["mp", "omp"])
@pytest.mark.parametrize("source", SOURCES)
def test_zero_rows_get_empty_codes_and_are_left_out_of_the_relative_error(encoder, source, tmp_path):
    Y = example()
    Y[[0, 7, 299]] = 0
    m = model(encoder=encoder).fit(source(tmp_path, Y), validation=Y)
    X = m.dictionary_.encode(Y)
    empty = np.all(X.indices == -1, axis=1)
    assert np.flatnonzero(empty).tolist() == [0, 7, 299]
    assert not X.values[empty].any()
    norms = np.linalg.norm(Y - m.inverse_transform(X), axis=1)[~empty] / np.linalg.norm(Y, axis=1)[~empty]
    last = m.history_.isel(iteration=-1)
    np.testing.assert_allclose(last.validation_relative_error, norms.mean(), rtol=1e-5)
    np.testing.assert_allclose(last.validation_l0, np.count_nonzero(X.indices >= 0) / N_SAMPLES)


def test_only_zero_rows_are_no_error_either():
    m = model().fit(np.zeros((N_SAMPLES, N_FEATURES)))
    assert np.isnan(m.history_.train_relative_error).all()
    assert m.transform(np.zeros((2, N_FEATURES))).nnz == 0
    np.testing.assert_allclose(np.linalg.norm(m.components_, axis=1), 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_nonzero_coefs", N_ATOMS),
        ("n_nonzero_coefs", np.int64(2)),
        ("inner_batch_size", 1000),
        ("batch_size", 1),
        ("batch_size", 10**9),
        ("n_passes", 1),
        ("rtol", 0.999),
        ("callbacks", ()),
        ("random_state", np.random.RandomState(0)),
        ("replace_unused", None),
        ("tol", 0),
        ("tol", np.float32(0.5)),
        ("flat_share", 0),
        ("flat_share", 1),
        ("matryoshka", [1, 1, N_ATOMS - 2]),
        ("matryoshka", (N_ATOMS,)),
        ("matryoshka", np.True_),
        ("max_coherence", 0.22),
        ("max_coherence", 0.999),
        ("fixed_atoms", atoms()[:-1]),
        ("fixed_atoms", atoms()[:1].tolist()),
        ("known_atoms", atoms()),
        ("init", atoms().astype("float16")),
        ("init", atoms().tolist()),
    ],
)
def test_the_ends_of_the_ranges_are_within_them(name, value):
    assert model().set_params(**{name: value}).fit(example()).n_iter_ == 3


def test_as_many_samples_as_atoms_are_enough():
    m = model(N_SAMPLES, 1).fit(example())
    assert m.history_.train_variance_explained[0] == pytest.approx(1)  # every sample is an atom


@pytest.mark.parametrize("n_atoms", [40, 256, 600])
def test_a_first_dictionary_may_be_any_of_full_rank_however_badly_conditioned(n_atoms):
    """As learned ones are of embeddings that nearly lie in a subspace."""
    rng = np.random.default_rng(0)
    init = rng.standard_normal((n_atoms, 256)) * np.geomspace(1, 1e-2, 256)
    init = (init / np.linalg.norm(init, axis=1, keepdims=True)).astype("float32")
    rows = rng.standard_normal((700, 256)).astype("float32")
    first = DBKSVD(n_atoms, 2, max_iter=1, init=init, random_state=0).fit(rows)
    DBKSVD(n_atoms, 2, max_iter=1, init=first.components_).fit(rows)


@pytest.mark.parametrize("make", [lambda block: block[:, :5], lambda block: block[:, :1], lambda block: block[:-1]])
@pytest.mark.parametrize(
    "use",
    [
        lambda Y: DBKSVD(4, 2, max_iter=1, batch_size=30).fit(Y),
        lambda Y: DBKSVD(4, 2, max_iter=1, center=True).fit(Y),
        lambda Y: Dictionary(np.eye(8, dtype="float32"), 2).encode(Y).compute(),
    ],
    ids=["fit", "centred", "encode"],
)
def test_blocks_of_another_shape_than_their_dask_array_says_are_named(make, use):
    lying = da.from_array(np.ones((100, 8), "float32"), chunks=(50, 8)).map_blocks(make, meta=np.empty((0, 0), "f4"))
    shape = make(np.ones((50, 8))).shape
    with pytest.raises(ValueError, match=re.escape(f"chunk 0 of Y has shape {shape}, but its dask array says (50, 8)")):
        use(lying)
