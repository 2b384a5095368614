"""A sweep is the fits that DBKSVD makes one by one, and reads each outer batch once."""

import dask.array as da
import numpy as np
import pytest
from small_fits import BATCH, N_BATCHES, N_SAMPLES, example, in_chunks

from dbksvd_dask import DBKSVD, sweep

GRID = {"n_components": [8, 12], "n_nonzero_coefs": [2, 3], "matryoshka": [False, True]}
COMMON = {"batch_size": BATCH, "max_iter": 5, "random_state": 3}


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("init", ["samples", "random"])
def test_each_fit_is_that_of_the_estimator_to_the_last_bit(init, center):
    Y, held_out = example(), example(seed=1)
    common = COMMON | {"init": init, "center": center}
    results = sweep(Y, GRID, validation=held_out, **common)
    assert dict(results.sizes) == {
        "n_components": 2,
        "n_nonzero_coefs": 2,
        "matryoshka": 2,
        "iteration": 5,
        "quantile": 5,
        "bin": 40,
        "stage": results.sizes["stage"],
    }
    for m in GRID["n_components"]:
        for k in GRID["n_nonzero_coefs"]:
            for matryoshka in GRID["matryoshka"]:
                one = DBKSVD(m, k, matryoshka=matryoshka, **common).fit(Y, validation=held_out)
                found = results.sel(n_components=m, n_nonzero_coefs=k, matryoshka=matryoshka)
                dictionary = found.dictionary.item()
                np.testing.assert_array_equal(dictionary.atoms, one.components_)
                assert dictionary.group_sizes == one.dictionary_.group_sizes
                assert dictionary.provenance["parameters"] == one.dictionary_.provenance["parameters"]
                for name, variable in one.history_.data_vars.items():
                    if name not in {"seconds", "stage_seconds", "peak_memory"}:
                        np.testing.assert_array_equal(found[name], variable)


def test_each_outer_batch_is_read_once_for_all_fits():
    read = []
    sweep(in_chunks(example(), read.append), GRID, init="random", batch_size=BATCH, max_iter=N_BATCHES, random_state=0)
    assert sorted(read) == list(range(N_BATCHES))


def test_fits_of_one_size_begin_with_the_same_atoms_which_are_made_once():
    read = []
    Y = in_chunks(example(), read.append, rows=N_SAMPLES)
    sweep(Y, {"n_nonzero_coefs": [1, 2, 3]}, n_components=10, max_iter=1, random_state=0)
    assert len(read) == 2  # for the first atoms and for the iteration


def test_without_a_seed_all_fits_still_share_one():
    results = sweep(example(), {"n_nonzero_coefs": [3, 3]}, n_components=12, **(COMMON | {"random_state": None}))
    first, second = results.dictionary.values
    np.testing.assert_array_equal(first.atoms, second.atoms)


def test_a_generator_of_random_numbers_seeds_each_fit_as_it_would_seed_one():
    def generator():
        return np.random.RandomState(5)

    results = sweep(example(), {"n_nonzero_coefs": [2, 3]}, n_components=12, **(COMMON | {"random_state": generator()}))
    one = DBKSVD(12, 3, **(COMMON | {"random_state": generator()})).fit(example())
    np.testing.assert_array_equal(results.dictionary.sel(n_nonzero_coefs=3).item().atoms, one.components_)


def test_values_that_label_nothing_are_labelled_by_their_text():
    results = sweep(example(), {"inner_batch_size": [None, 4], "n_components": [12]}, n_nonzero_coefs=3, **COMMON)
    assert results.inner_batch_size.values.tolist() == ["None", "4"]
    lists = sweep(example(), {"matryoshka": [[4, 8], [6, 6]]}, n_components=12, n_nonzero_coefs=3, **COMMON)
    assert lists.dictionary.sel(matryoshka="[6, 6]").item().group_sizes == (6, 6)


def test_the_figures_can_be_shown_and_survive_a_zarr_store(tmp_path):
    results = sweep(example(), {"n_nonzero_coefs": [2, 3]}, n_components=12, **COMMON)
    assert "<Dictionary: 12 atoms x" in repr(results.dictionary)
    assert "dictionary" in repr(results)
    results.drop_vars("dictionary").to_zarr(tmp_path / "sweep.zarr", consolidated=False)


@pytest.mark.parametrize(
    ("grid", "parameters", "error", "message"),
    [
        ({}, {}, ValueError, "grid is empty"),
        ([3], {}, TypeError, "grid is a list: pass a mapping"),
        ({"n_component": [3]}, {}, ValueError, "'n_component', which is no parameter"),
        ({"batch_size": [3]}, {}, ValueError, "'batch_size', which all fits share"),
        ({"n_nonzero_coefs": [3]}, {"n_nonzero_coefs": 2}, ValueError, "in the grid and among the keywords"),
        ({"n_nonzero_coefs": []}, {}, ValueError, r"grid\['n_nonzero_coefs'\] is empty"),
        ({"init": "random"}, {"n_nonzero_coefs": 2}, TypeError, "pass a list of values"),
        ({"n_nonzero_coefs": [3]}, {"callbacks": [print]}, ValueError, "a sweep takes none"),
        ({"n_nonzero_coefs": [3, 0]}, {}, ValueError, "'n_nonzero_coefs' parameter of DBKSVD must be"),
        ({"n_nonzero_coefs": [3, 50]}, {}, ValueError, "n_nonzero_coefs=50 exceeds n_components=12"),
    ],
)
def test_mistakes_are_named_before_any_data_are_read(grid, parameters, error, message):
    def fail(chunk):
        raise AssertionError("read")

    with pytest.raises(error, match=message):
        sweep(in_chunks(example(), fail), grid, n_components=12, **parameters)


def test_a_sweep_takes_what_fit_takes(tmp_path):
    np.save(tmp_path / "rows.npy", example())
    for Y in (da.from_array(example(), chunks=(BATCH, -1)), tmp_path / "rows.npy"):
        results = sweep(Y, {"n_nonzero_coefs": [2]}, n_components=12, **COMMON)
        assert results.train_relative_error.sizes == {"n_nonzero_coefs": 1, "iteration": 5}
