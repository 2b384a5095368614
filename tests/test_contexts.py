"""Tokens of samples in their contexts: from stores, Datasets, selections, coordinates, or not at all."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dbksvd_dask import Dictionary, SparseCodes, open_embeddings
from dbksvd_dask.contexts import Contexts, bare, open_contexts, with_coordinates

STORE = Path(__file__).parents[1] / "data" / "minilm-wikitext2.zarr"
TEXT = [["the", "clear", "water", "##fall"], ["fish", "swim"]]
IDS = {"the": 7, "clear": 30, "water": 12, "##fall": 5, "fish": 101, "swim": 9}


def contexts():
    """Two contexts, the second of which is shorter: padded."""
    ids = np.full((2, 4), -1)
    for row, tokens in enumerate(TEXT):
        ids[row, : len(tokens)] = [IDS[token] for token in tokens]
    return Contexts(xr.DataArray(ids, dims=("window", "place")), {number: token for token, number in IDS.items()})


def place(*places):
    context, position = np.array(places).T
    return {"context": context, "position": position.astype(np.int16)}


@pytest.mark.parametrize("reach", [0, 1, 2, 5])
def test_a_window_is_the_tokens_within_reach_in_the_same_context(reach):
    places = [(row, at) for row, tokens in enumerate(TEXT) for at in range(len(tokens))][::-1]
    for (row, at), window in zip(places, contexts().windows(place(*places), reach), strict=True):
        near = [i for i in range(len(TEXT[row])) if abs(i - at) <= reach]
        assert window.tokens == [TEXT[row][i] for i in near]
        assert window.offsets == [i - at for i in near]
        assert window.tokens[window.at] == TEXT[row][at]


def test_contexts_may_hold_the_text_itself():
    padded = [[*tokens, *[""] * (4 - len(tokens))] for tokens in TEXT]
    for dtype in ("U", np.dtypes.StringDType()):
        tokens = Contexts(xr.DataArray(np.array(padded).astype(dtype), dims=("window", "place")))
        (window,) = tokens.windows(place((1, 1)), reach=5)
        assert window == (["fish", "swim"], 1, [-1, 0])
        ids, texts = tokens.token_ids(place((1, 1), (0, 3), (1, 1)))
        assert [texts[i] for i in ids.tolist()] == ["swim", "##fall", "swim"]


def test_ids_that_the_vocabulary_has_not_are_shown_as_such():
    known = contexts()
    del known.vocabulary[12]
    (window,) = known.windows(place((0, 1)), reach=1)
    assert window.tokens == ["the", "clear", "[12]"]


def test_without_contexts_the_token_alone_is_known():
    vocabulary = Contexts(vocabulary=contexts().vocabulary)
    assert vocabulary.windows({"token_id": np.array([12, 5, 6])}, reach=3) == [
        (["water"], 0, [0]),
        (["##fall"], 0, [0]),
        (["[6]"], 0, [0]),
    ]
    for words in (np.array(["water", "fish"]), np.array(["water", "fish"], object)):
        assert Contexts().windows({"token": words}, reach=3) == [(["water"], 0, [0]), (["fish"], 0, [0])]


@pytest.mark.parametrize("coords", [{}, {"document": np.array([1])}, {"token_id": np.array([7])}, place((0, 1))])
def test_where_nothing_tells_the_token_there_is_none(coords):
    assert Contexts().windows(coords, reach=3) == []
    assert Contexts().token_ids(coords) == (None, {})


def test_ids_of_tokens_have_the_shape_of_the_samples():
    coords = {name: array.reshape(2, 2) for name, array in place((0, 0), (1, 1), (0, 2), (0, 3)).items()}
    for known in (coords, {"token_id": np.array([[7, 9], [12, 5]])}):
        ids, texts = contexts().token_ids(known)
        assert [[texts[i] for i in row] for row in ids.tolist()] == [["the", "swim"], ["water", "##fall"]]


@pytest.mark.parametrize(
    ("context", "position", "message"),
    [(2, 0, "context from 0 to 2"), (0, 4, "position from 0 to 4"), (-1, 0, "context"), (0.5, 0, "context")],
)
def test_places_that_are_not_in_the_contexts_are_an_error(context, position, message):
    with pytest.raises(ValueError, match=rf"{message}.*\(2, 4\).*are these the embeddings"):
        contexts().check({"context": np.array([0, context]), "position": np.array([0, position])})
    contexts().check(place((0, 0), (1, 3)))
    Contexts().check(place((9, 9)))


@pytest.mark.parametrize(
    ("token", "plain"), [("##ing", "ing"), ("Ġthe", "the"), ("▁the", "the"), ("#", "#"), ("##", "##"), (" a", "a")]
)
def test_marks_of_tokenizers_are_no_part_of_the_word(token, plain):
    assert bare(token) == plain


# --- where they are found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        lambda: STORE,
        lambda: str(STORE),
        lambda: xr.open_zarr(STORE),
        lambda: open_embeddings(STORE),
        lambda: open_embeddings(STORE)[(xr.open_zarr(STORE).split == "validation").values],
        lambda: open_embeddings(open_embeddings(STORE)[5:50:7]).load(),
    ],
    ids=["Path", "str", "Dataset", "DataArray", "validation", "rows in memory"],
)
def test_the_sample_data_tell_the_tokens_of_their_samples(source):
    known = open_contexts(source())
    store = xr.open_zarr(STORE).load()
    rows = [0, 17, 24_575]
    coords = {name: store[name].values[rows] for name in ("context", "position", "token_id")}
    for row, window in zip(rows, known.windows(coords, reach=4), strict=True):
        assert window.tokens[window.at] == store.vocabulary.sel(token=store.token_id[row]).item()
        whole = store.vocabulary.sel(token=store.context_tokens[store.context[row]]).values.tolist()
        begin = max(int(store.position[row]) - 4, 0)
        assert window.tokens == whole[begin : int(store.position[row]) + 5]


def test_embeddings_remember_their_store_as_long_as_they_are_selected_from():
    Y = open_embeddings(STORE)
    for selected in (Y, Y[(Y.split == "train").values], Y[::3].load(), Y.isel(sample=slice(4)), open_embeddings(Y[:9])):
        assert selected.encoding["source"] == str(STORE)
    assert "source" not in Y.attrs
    assert "source" not in (Y[:5] * 2).encoding


def test_where_embeddings_are_from_is_not_written_with_them(tmp_path):
    open_embeddings(STORE)[:10].load().drop_vars("split").to_dataset().to_zarr(tmp_path / "e.zarr", consolidated=False)
    assert str(STORE) not in "".join(path.read_text() for path in (tmp_path / "e.zarr").rglob("zarr.json"))
    assert open_embeddings(tmp_path / "e.zarr").encoding["source"] == str(tmp_path / "e.zarr")


def test_a_vocabulary_without_labels_is_numbered():
    known = open_contexts(xr.Dataset({"vocabulary": ("token", ["a", "b"])}))
    assert known.vocabulary == {0: "a", 1: "b"}


def npy(folder):
    np.save(folder / "e.npy", np.eye(3))
    return folder / "e.npy"


def zarr_array(folder):
    xr.Dataset({"e": (("a", "b"), np.eye(3))}).to_zarr(folder / "e.zarr", consolidated=False)
    return folder / "e.zarr" / "e"


@pytest.mark.parametrize(
    "source",
    [lambda folder: None, lambda folder: np.eye(3), npy, zarr_array, lambda folder: open_embeddings(npy(folder))],
    ids=["nothing", "NumPy", "npy", "zarr array", "opened npy"],
)
def test_embeddings_without_tokens_tell_none(source, tmp_path):
    known = open_contexts(source(tmp_path))
    assert known.tokens is None
    assert not known.vocabulary


def dictionary_store(folder):
    Dictionary(np.eye(3)).to_zarr(folder / "dictionary.zarr")
    return folder / "dictionary.zarr"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda folder: folder / "none.zarr", FileNotFoundError, "there is nothing at"),
        (lambda folder: folder, ValueError, "not a readable zarr store"),
        (dictionary_store, ValueError, "dictionary store of dbksvd_dask"),
        (lambda folder: [[1.0]], TypeError, "list"),
        (lambda folder: xr.Dataset({"context_tokens": ("a", [1])}), ValueError, "context_tokens has shape .* 2 dim"),
        (lambda folder: xr.Dataset({"vocabulary": (("a", "b"), [["x"]])}), ValueError, "vocabulary has shape .* 1 dim"),
    ],
    ids=["missing", "empty folder", "dictionary", "list", "1-D contexts", "2-D vocabulary"],
)
def test_what_cannot_be_embeddings_says_so(source, error, message, tmp_path):
    with pytest.raises(error, match=message):
        open_contexts(source(tmp_path))


# --- coordinates of codes --------------------------------------------------------------------------------------------


def codes(n_samples, **coords):
    arrays = {name: xr.DataArray(coord, dims="sample") for name, coord in coords.items()}
    return SparseCodes(np.zeros((n_samples, 1), np.int32), np.ones((n_samples, 1)), 3, arrays)


def embeddings(n_samples, **coords):
    return xr.DataArray(
        np.ones((n_samples, 2)), dims=("row", "column"), coords={name: ("row", coord) for name, coord in coords.items()}
    )


def test_codes_that_tell_their_tokens_keep_to_themselves():
    own = codes(2, token=["a", "b"])
    assert with_coordinates(own, embeddings(5, token=list("vwxyz"))) is own


def test_codes_that_do_not_tell_their_tokens_have_them_from_the_embeddings_in_their_order():
    told = with_coordinates(codes(2, document=[8, 9]), embeddings(2, token=["a", "b"], document=[1, 2]))
    assert told.coords["token"].values.tolist() == ["a", "b"]
    assert told.coords["document"].values.tolist() == [8, 9]


def test_which_have_to_be_as_many():
    with pytest.raises(ValueError, match=r"codes are of 2 samples.*embeddings are 3 samples"):
        with_coordinates(codes(2), embeddings(3, token=["a", "b", "c"]))


def test_embeddings_that_tell_nothing_change_nothing():
    plain = codes(2)
    assert with_coordinates(plain, embeddings(2)) is plain
    assert with_coordinates(plain, None) is plain
