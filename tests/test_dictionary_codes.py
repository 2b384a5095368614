"""Dictionary and SparseCodes: encoding and decoding, lazily or in memory, for any k and by any pursuit."""

import dask
import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from scipy.sparse import csr_array

from dbksvd_dask import DBKSVD, Dictionary, SparseCodes, metrics, open_codes, open_embeddings
from dbksvd_dask.batches import ROWS_PER_TASK

N_SAMPLES, N_FEATURES, N_ATOMS, K = 90, 9, 14, 3


def example(dtype="float64", n_samples=N_SAMPLES):
    rng = np.random.default_rng(0)
    return oracle.sparse_samples(rng, n_samples, atoms(), K).astype(dtype)


def atoms(dtype="float64"):
    return oracle.random_atoms(np.random.default_rng(1), N_ATOMS, N_FEATURES, dtype)


def dictionary(dtype="float64", n_nonzero_coefs=K, **parameters):
    return Dictionary(atoms(dtype), n_nonzero_coefs, **parameters)


def dense(codes):
    return codes.to_csr().toarray()


def refuse_to_compute(*args, **kwargs):
    raise AssertionError("something was computed")


@pytest.fixture
def nothing_computes():
    with dask.config.set(scheduler=refuse_to_compute):
        yield


# --- encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "k"), [("float32", 1), ("float32", K), *(("float64", k) for k in (1, 2, K, N_FEATURES, N_ATOMS))]
)
@pytest.mark.parametrize("options", [{}, {"nonnegative": True}, {"rtol": 0.4}, {"encoder": "omp"}], ids=str)
def test_codes_are_those_of_the_oracle(options, dtype, k):
    Y, D = example(dtype), dictionary(dtype)
    codes = D.encode(Y, k, **options)
    eps = np.finfo(dtype).eps
    if options.get("encoder") == "omp":
        expected = oracle.orthogonal_matching_pursuit(Y, D.atoms, k, rounding=eps)
    else:
        expected = oracle.matching_pursuit(Y, D.atoms, k, rounding=eps, **options)
    assert codes.indices.shape == codes.values.shape == (N_SAMPLES, k)
    assert (codes.indices.dtype, codes.dtype, codes.n_atoms) == (np.int32, dtype, N_ATOMS)
    # Residuals of a full OMP are rounding; the samples that are left with more are compared.
    if k < N_FEATURES or "encoder" not in options:
        rounding = 50 * oracle.pursuit_rounding(dtype, N_FEATURES, 4 * k)
        clear = expected.margins > 2 * rounding
        assert clear.any()
        np.testing.assert_array_equal(codes.indices[clear], expected.indices[clear])
        np.testing.assert_allclose(codes.values[clear], expected.values[clear], atol=1e4 * eps)


@pytest.mark.parametrize(
    ("own", "given"),
    [
        ({"n_nonzero_coefs": 5}, {"n_nonzero_coefs": 2}),
        ({"encoder": "omp"}, {"encoder": "mp"}),
        ({"encoder": "mp"}, {"encoder": "omp"}),
        ({"nonnegative": True}, {"nonnegative": False}),
        ({"nonnegative": False}, {"nonnegative": True}),
        ({"rtol": 0.5}, {"rtol": 0.0}),
    ],
)
def test_a_dictionary_encodes_by_its_own_parameters_unless_told_otherwise(own, given):
    Y = example()
    by_own, by_given = dictionary(**own).encode(Y), dictionary(**own).encode(Y, **given)
    assert not np.array_equal(dense(by_own), dense(by_given))
    np.testing.assert_array_equal(dense(by_own), dense(dictionary().encode(Y, **own)))
    np.testing.assert_array_equal(dense(by_given), dense(dictionary(**given).encode(Y)))


@pytest.mark.parametrize("k", [1, 4, N_ATOMS])
@pytest.mark.parametrize("encoder", ["mp", "omp"])
def test_at_most_k_atoms_are_used_each_once_and_empty_slots_come_last(encoder, k):
    codes = dictionary(rtol=0.3).encode(example(), k, encoder=encoder)
    used = codes.indices >= 0
    assert np.all(np.sort(used, axis=1)[:, ::-1] == used)
    assert np.all(codes.indices[~used] == -1)
    assert np.all(codes.values[~used] == 0)
    assert all(len(set(row[row >= 0])) == np.count_nonzero(row >= 0) for row in codes.indices)


def test_more_coefficients_are_never_worse():
    D, Y = dictionary(), example()
    for encoder in ("mp", "omp"):
        errors = [metrics.relative_error(Y, D.decode(D.encode(Y, k, encoder=encoder))) for k in range(1, N_ATOMS + 1)]
        assert np.all(np.diff(errors) <= 1e-12)
    assert errors[N_FEATURES - 1] < 1e-10  # OMP with as many atoms as features is exact


def test_orthogonal_pursuit_leaves_a_residual_that_is_orthogonal_to_the_atoms_used():
    D, Y = dictionary(), example()
    codes = D.encode(Y, encoder="omp")
    products = np.take_along_axis((Y - D.decode(codes)) @ D.atoms.T, np.maximum(codes.indices, 0), axis=1)
    np.testing.assert_allclose(products, 0, atol=1e-12)


@pytest.mark.parametrize("rtol", [0.0, 0.2])
@pytest.mark.parametrize("encoder", ["mp", "omp"])
def test_refit_is_least_squares_on_the_support_that_the_pursuit_found(encoder, rtol):
    D, Y = dictionary(), example()
    found, refitted = (D.encode(Y, encoder=encoder, rtol=rtol, refit=refit) for refit in ("none", "lstsq"))
    np.testing.assert_array_equal(refitted.indices, found.indices)
    for y, support, values in zip(Y, refitted.indices, refitted.values, strict=True):
        used = support[support >= 0]
        expected = np.linalg.lstsq(D.atoms[used].T, y, rcond=None)[0]
        np.testing.assert_allclose(values[: len(used)], expected, rtol=1e-8, atol=1e-10)


def test_nonnegative_coefficients_are_positive():
    codes = dictionary().encode(example(), nonnegative=True)
    assert np.all(codes.values[codes.indices >= 0] > 0)
    assert np.any(dictionary().encode(example()).values < 0)


@pytest.mark.parametrize("encoder", ["mp", "omp"])
@pytest.mark.parametrize("rtol", [0.1, 0.4, 0.8])
def test_rtol_ends_a_sample_as_soon_as_its_error_is_that_small(rtol, encoder):
    D, Y = dictionary(), example()
    codes = D.encode(Y, N_ATOMS, rtol=rtol, encoder=encoder)
    errors = np.linalg.norm(Y - D.decode(codes), axis=1) / np.linalg.norm(Y, axis=1)
    assert np.all(errors <= rtol * (1 + 1e-12))
    used = np.count_nonzero(codes.indices >= 0, axis=1)
    for sample in np.flatnonzero(used > 1)[:10]:
        fewer = D.encode(Y[sample : sample + 1], int(used[sample]) - 1, encoder=encoder)
        assert np.linalg.norm(Y[sample] - D.decode(fewer)[0]) > rtol * np.linalg.norm(Y[sample])


def test_the_mean_is_taken_before_encoding_and_given_back_by_decoding():
    mean = np.arange(N_FEATURES) - 3.5
    centred, plain = dictionary(mean=mean), dictionary()
    Y = example()
    np.testing.assert_allclose(dense(centred.encode(Y + mean)), dense(plain.encode(Y)), atol=1e-12)
    np.testing.assert_allclose(centred.decode(centred.encode(Y + mean)), plain.decode(plain.encode(Y)) + mean)
    assert not centred.encode(np.tile(mean, (2, 1))).values.any()


@pytest.mark.parametrize("given", ["float16", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dictionary_gives_the_precision(dtype, given):
    D = Dictionary(atoms().astype(dtype), K, mean=np.zeros(N_FEATURES))
    expected = "float32" if dtype == "float16" else dtype
    codes = D.encode(example(given))
    assert D.dtype == D.mean.dtype == codes.dtype == D.decode(codes).dtype == expected
    lazy = D.encode(da.from_array(example(given)))
    assert lazy.dtype == D.decode(lazy).dtype == lazy.compute().dtype == D.decode(lazy).values.dtype == expected


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_atoms_and_embeddings_of_any_layout_give_the_same_bits(order, byte_order):
    Y, D = (array.astype(f"{byte_order}f4", order=order) for array in (example(), atoms()))
    expected = dictionary("float32").encode(example("float32"))
    codes = Dictionary(D, K).encode(Y)
    np.testing.assert_array_equal(codes.indices, expected.indices)
    np.testing.assert_array_equal(codes.values, expected.values)


def test_nothing_given_is_changed_or_kept():
    given, mean, Y = atoms(), np.ones(N_FEATURES), example()
    copies = given.copy(), mean.copy(), Y.copy()
    D = Dictionary(given, K, mean=mean)
    D.decode(D.encode(Y, refit="lstsq"))
    for array, copy in zip((given, mean, Y), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [None, np.linspace(-1, 1, N_FEATURES)], ids=["plain", "centred"])
@pytest.mark.parametrize(
    "kind",
    [
        lambda codes: codes,
        SparseCodes.to_csr,
        lambda codes: codes.to_csr().tocsc(),
        dense,
        lambda codes: np.asarray(dense(codes), dtype="float32"),
    ],
    ids=["codes", "csr", "csc", "array", "float32"],
)
def test_decoding_is_the_product_with_the_atoms_whatever_holds_the_codes(kind, mean):
    D = dictionary(mean=mean)
    codes = D.encode(example())
    decoded = D.decode(kind(codes))
    expected = dense(codes) @ atoms() + (0 if mean is None else mean)
    assert isinstance(decoded, np.ndarray)
    assert decoded.dtype == np.float64
    np.testing.assert_allclose(decoded, expected, rtol=1e-6, atol=1e-6)


def test_codes_that_repeat_an_atom_add_up():
    codes = SparseCodes(np.array([[2, 2], [5, -1], [-1, -1]], np.int32), np.array([[1.0, 2], [-1, 0], [0, 0]]), N_ATOMS)
    expected = [3 * atoms()[2], -atoms()[5], np.zeros(N_FEATURES)]
    np.testing.assert_allclose(dictionary().decode(codes), expected)
    np.testing.assert_allclose(dictionary().decode(codes.to_csr()), expected)


# --- lazily ----------------------------------------------------------------------------------------------------------


def lazy_example(rows=25, dtype="float64"):
    document = np.arange(N_SAMPLES) // 10
    Y = xr.DataArray(example(dtype), dims=("sample", "feature"), coords={"document": ("sample", document)})
    return Y.chunk(sample=rows)


def test_nothing_is_computed_until_it_is_asked_for(nothing_computes):
    D = dictionary(mean=np.ones(N_FEATURES))
    codes = D.encode(lazy_example(), 4, encoder="omp", refit="lstsq")
    assert codes.shape == (N_SAMPLES, N_ATOMS)
    assert (codes.n_nonzero_coefs, codes.dtype) == (4, np.float64)
    assert "lazy" in repr(codes)
    dataset = codes.to_xarray()
    assert dataset.sizes == {"sample": N_SAMPLES, "slot": 4}
    decoded = D.decode(codes)
    assert decoded.dims == ("sample", "feature")
    assert decoded.shape == (N_SAMPLES, N_FEATURES)
    assert isinstance(decoded.data, da.Array)
    assert repr(decoded)
    repr(D), D.coherence(), D.to_xarray()


def test_transform_of_what_is_lazy_computes_nothing():
    model = DBKSVD(N_ATOMS, K, max_iter=1, random_state=0).fit(example())
    with dask.config.set(scheduler=refuse_to_compute):
        codes = model.transform(lazy_example())
        model.inverse_transform(codes)
    np.testing.assert_array_equal(dense(codes), model.transform(example()).toarray())


@pytest.mark.parametrize("rows", [1, 25, N_SAMPLES])
@pytest.mark.parametrize("options", [{}, {"encoder": "omp"}, {"nonnegative": True}, {"refit": "lstsq"}], ids=str)
def test_lazy_codes_are_those_in_memory(options, rows):
    D = dictionary("float32", mean=np.ones(N_FEATURES))
    in_memory = D.encode(example("float32"), **options)
    lazy = D.encode(lazy_example(rows, "float32"), **options)
    computed = lazy.compute()
    np.testing.assert_array_equal(computed.indices, in_memory.indices)
    np.testing.assert_array_equal(computed.values, in_memory.values)
    np.testing.assert_array_equal(D.decode(lazy), D.decode(in_memory))
    np.testing.assert_array_equal(lazy.to_csr().toarray(), dense(in_memory))


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_lazy_codes_may_be_computed_later_by_any_scheduler(scheduler):
    D = dictionary()
    codes = D.encode(lazy_example())
    decoded = D.decode(codes)
    with dask.config.set(scheduler=scheduler, num_workers=1):
        np.testing.assert_array_equal(dense(codes), dense(D.encode(example())))
        np.testing.assert_allclose(decoded, dense(codes) @ atoms(), atol=1e-12)


def test_codes_come_in_whole_chunks_of_the_embeddings_small_ones_together():
    large = ROWS_PER_TASK + 100
    D = Dictionary(np.eye(2, dtype="float32"), 1)
    together = (1000,) * 20
    for chunks, expected in ((together, (8000, 8000, 4000)), ((large, 10, 20, large), (large, 30, large))):
        codes = D.encode(da.ones((sum(chunks), 2), chunks=(chunks, 2), dtype="float32"))
        assert codes.indices.chunks == codes.values.chunks == (expected, (1,))
        assert D.decode(codes).chunks == (expected, (2,))
        np.testing.assert_array_equal(codes.values, 1)


def test_coordinates_of_the_samples_go_along():
    codes = dictionary().encode(lazy_example())
    for carrier in (codes.to_xarray(), codes.compute().to_xarray(), dictionary().decode(codes)):
        np.testing.assert_array_equal(carrier.document, np.arange(N_SAMPLES) // 10)


def test_lazy_codes_with_differently_chunked_values_are_decoded():
    codes = dictionary().encode(example())
    lazy = SparseCodes(
        da.from_array(codes.indices, chunks=(40, -1)), da.from_array(codes.values, chunks=(30, 1)), N_ATOMS
    )
    np.testing.assert_array_equal(dictionary().decode(lazy), dictionary().decode(codes))


def test_lazy_codes_with_chunked_slots_are_decoded():
    codes = dictionary().encode(example())
    lazy = SparseCodes(*(da.from_array(array, chunks=(40, 1)) for array in (codes.indices, codes.values)), N_ATOMS)
    np.testing.assert_array_equal(dictionary().decode(lazy), dictionary().decode(codes))
    np.testing.assert_array_equal(dense(lazy), dense(codes))


def test_codes_read_from_a_store_are_decoded_lazily(tmp_path):
    dictionary().encode(lazy_example()).to_zarr(tmp_path / "codes.zarr")
    with dask.config.set(scheduler=refuse_to_compute):
        decoded = dictionary().decode(open_codes(tmp_path / "codes.zarr"))
    np.testing.assert_allclose(decoded, dictionary().decode(dictionary().encode(example())), atol=1e-12)


@pytest.mark.parametrize("kind", ["numpy", "dask", "xarray", "dataset", "npy", "opened"])
def test_only_numpy_arrays_are_encoded_at_once(kind, tmp_path):
    Y = example()
    np.save(tmp_path / "rows.npy", Y)
    given = {
        "numpy": Y,
        "dask": da.from_array(Y),
        "xarray": xr.DataArray(Y),
        "dataset": xr.Dataset({"embeddings": (("sample", "feature"), Y)}),
        "npy": tmp_path / "rows.npy",
        "opened": open_embeddings(Y),
    }[kind]
    codes = dictionary().encode(given)
    assert isinstance(codes.indices, np.ndarray if kind == "numpy" else da.Array)
    np.testing.assert_array_equal(dense(codes), dense(dictionary().encode(Y)))


# --- other forms of codes --------------------------------------------------------------------------------------------


def test_to_csr_holds_the_used_slots_sorted_by_atom():
    matrix = dictionary(rtol=0.3).encode(example()).to_csr()
    assert isinstance(matrix, csr_array)
    assert matrix.shape == (N_SAMPLES, N_ATOMS)
    assert matrix.has_sorted_indices
    assert matrix.has_canonical_format
    codes = dictionary(rtol=0.3).encode(example())
    assert matrix.nnz == np.count_nonzero(codes.indices >= 0)
    np.testing.assert_array_equal(matrix.toarray(), oracle.dense(codes.indices, codes.values, N_ATOMS))


def test_to_csr_of_zero_rows_is_empty():
    matrix = dictionary().encode(np.zeros((4, N_FEATURES))).to_csr()
    assert (matrix.shape, matrix.nnz) == ((4, N_ATOMS), 0)


def test_to_xarray_names_the_dimensions():
    dataset = dictionary().encode(example()).to_xarray()
    assert dataset["indices"].dims == dataset["values"].dims == ("sample", "slot")
    assert dataset.attrs["n_atoms"] == N_ATOMS


def test_a_dictionary_as_xarray_shows_atoms_mean_and_parameters():
    dataset = dictionary(mean=np.ones(N_FEATURES), encoder="omp", rtol=0.1, provenance={"layer": 3}).to_xarray()
    assert dataset.atoms.dims == ("atom", "feature")
    assert dataset["mean"].dims == ("feature",)
    assert dataset.attrs == {
        "n_nonzero_coefs": K,
        "encoder": "omp",
        "nonnegative": 0,
        "rtol": 0.1,
        "provenance": '{"layer": 3}',
    }


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (dictionary(), "<Dictionary: 14 atoms x 9 features, float64, k=3>"),
        (dictionary("float32", None), "<Dictionary: 14 atoms x 9 features, float32>"),
        (dictionary().encode(example()), "<SparseCodes: 90 samples x 14 atoms, at most 3 nonzero, float64, in memory>"),
        (
            dictionary().encode(da.ones((20_000, N_FEATURES), chunks=(8000, -1))),
            "<SparseCodes: 20000 samples x 14 atoms, at most 3 nonzero, float64, lazy, 3 chunks>",
        ),
    ],
)
def test_reprs_are_one_line(shown, expected):
    assert repr(shown) == expected


# --- coherence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_coherence_is_the_largest_cosine_with_any_other_atom(dtype):
    np.testing.assert_allclose(dictionary(dtype).coherence(), oracle.coherence(atoms()), rtol=1e-5)


def test_coherence_of_repeated_orthogonal_and_single_atoms():
    np.testing.assert_array_equal(Dictionary(np.eye(3)[[0, 1, 0]]).coherence(), [1, 0, 1])
    np.testing.assert_array_equal(Dictionary(-np.eye(3)[[0, 0]] * [[1], [-1]]).coherence(), [1, 1])
    np.testing.assert_array_equal(Dictionary(np.eye(1, 3)).coherence(), [0])


def test_computed_codes_have_computed_coordinates():
    document = xr.DataArray(da.arange(6, chunks=2), dims="sample")
    indices = da.zeros((6, 1), chunks=2, dtype="int32")
    codes = SparseCodes(indices, indices.astype("float32"), 3, {"document": document}).compute()
    assert isinstance(codes.coords["document"].data, np.ndarray)
    np.testing.assert_array_equal(codes.coords["document"], np.arange(6))


def test_codes_may_be_mapped_from_files(tmp_path):
    for name, array in {"indices": np.array([[2, 0]], np.int32), "values": np.array([[0.5, -1.0]])}.items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("indices", "values"))
    np.testing.assert_array_equal(SparseCodes(*mapped, n_atoms=3).to_csr().toarray(), [[-1, 0, 0.5]])
