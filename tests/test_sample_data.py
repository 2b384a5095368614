"""The sample embeddings in data/ are what data/README.md says."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dbksvd_dask import DBKSVD
from dbksvd_dask.embeddings import open_embeddings

STORE = Path(__file__).parents[1] / "data" / "minilm-wikitext2.zarr"


@pytest.fixture(scope="module")
def sample():
    return xr.open_zarr(STORE).load()


def test_dimensions_and_dtypes(sample):
    assert sample.sizes == {
        "sample": 24_576,
        "feature": 384,
        "context_window": 260,
        "window_position": 126,
        "token": 5_310,
    }
    assert sample.embeddings.dims == ("sample", "feature")
    assert sample.embeddings.dtype == np.float16
    assert {name: sample[name].dtype.name for name in ("document", "context", "position", "token_id")} == {
        "document": "int32",
        "context": "int32",
        "position": "int16",
        "token_id": "int32",
    }
    assert set(sample.attrs) == {"title", "source", "model", "licence"}


def test_opens_lazily_as_embeddings():
    Y = open_embeddings(STORE)
    assert Y.chunks == ((4096,) * 6, (384,))
    assert set(Y.coords) == {"document", "context", "position", "token_id", "split"}


def test_embeddings_are_finite(sample):
    assert np.isfinite(sample.embeddings).all()


def test_train_comes_first_then_validation(sample):
    assert sample.split.values.tolist() == ["train"] * 20_480 + ["validation"] * 4_096


def test_no_document_is_in_both_splits(sample):
    train = set(sample.document.values[:20_480].tolist())
    validation = set(sample.document.values[20_480:].tolist())
    assert not train & validation
    assert len(train | validation) == 54


def test_every_sample_is_a_token_of_its_context(sample):
    np.testing.assert_array_equal(sample.context_tokens.values[sample.context, sample.position], sample.token_id)


def test_every_token_has_its_string(sample):
    assert sample.vocabulary.sel(token=2001).item() == "was"
    assert np.isin(sample.context_tokens, sample.token).all()


def test_the_store_is_small_enough_to_ship():
    files = [path for path in STORE.rglob("*") if path.is_file()]
    assert len(files) < 60
    assert sum(path.stat().st_size for path in files) < 25e6


@pytest.mark.parametrize("center", [False, True], ids=["as they are", "centred"])
def test_nonnegative_fits_get_better_on_the_same_rows_all_atoms_at_once(center):
    rows = xr.open_zarr(STORE).embeddings[:2048].values.astype(np.float32)
    parameters = {"nonnegative": True, "center": center, "max_iter": 8, "random_state": 0}
    errors = DBKSVD(128, 20, **parameters).fit(rows).history_.train_relative_error.values
    assert (np.diff(errors) < 0).all()
