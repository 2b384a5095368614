"""The atom explorer without a browser: what it says of real embeddings, and what labels and searches do."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from dbksvd_dask import DBKSVD, Dictionary, SparseCodes, open_codes, open_dictionary, open_embeddings
from dbksvd_dask.widgets import AtomExplorer
from dbksvd_dask.widgets.explorer import N_NEIGHBOURS

STORE = Path(__file__).parents[2] / "data" / "minilm-wikitext2.zarr"
N_ATOMS, K = 96, 6


@pytest.fixture(scope="module")
def embeddings():
    """The validation samples: 4,096 tokens."""
    Y = open_embeddings(STORE)
    return Y[(Y.split == "validation").values]


@pytest.fixture(scope="module")
def learned(embeddings):
    model = DBKSVD(N_ATOMS, K, max_iter=3, batch_size=2048, center=True, matryoshka=True, random_state=0)
    return model.fit(embeddings).dictionary_


@pytest.fixture(scope="module")
def codes(learned, embeddings, tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "codes.zarr"
    learned.encode(embeddings).to_zarr(path)
    return path


@pytest.fixture(scope="module")
def X(codes):
    return open_codes(codes).to_csr().toarray()


@pytest.fixture
def dictionary(learned):
    """The same atoms without labels: each test has its own."""
    return Dictionary(learned.atoms, K, mean=learned.mean, group_sizes=learned.group_sizes)


@pytest.fixture
def explorer(dictionary, codes, embeddings):
    return dictionary.explore(codes, embeddings)


@pytest.fixture(scope="module")
def text(embeddings):
    """Context, position and token of each sample, and the tokens of each context."""
    store = xr.open_zarr(STORE).load()
    words = dict(zip(store.token.values.tolist(), store.vocabulary.values.tolist(), strict=True))
    samples = zip(embeddings.context.values.tolist(), embeddings.position.values.tolist(), strict=True)
    contexts = [[words[i] for i in row] for row in store.context_tokens.values.tolist()]
    return list(samples), contexts


ATOMS = [0, 5, 40, N_ATOMS - 1]


def strongest(column, sign):
    """Samples of the twelve largest coefficients of a sign, largest first, equal ones in their order."""
    return [i for i in np.argsort(-sign * column, kind="stable")[:12].tolist() if sign * column[i] > 0]


# --- the chosen atom -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("atom", ATOMS)
def test_choosing_an_atom_shows_its_strongest_samples_in_their_contexts(atom, explorer, X, text, embeddings):
    samples, contexts = text
    sample_at = {place: sample for sample, place in enumerate(samples)}
    explorer.chosen = atom  # as the browser does
    detail = explorer.detail
    for sign, examples in ((1, detail["positive"]), (-1, detail["negative"])):
        assert [example["sample"] for example in examples] == strongest(X[:, atom], sign)
        for example in examples:
            context, position = samples[example["sample"]]
            assert example["value"] == X[example["sample"], atom]
            begin = max(position - 12, 0)
            assert example["tokens"] == contexts[context][begin : position + 13]
            assert example["at"] == position - begin
            # A token that is no sample here ([UNK]) has no coefficient.
            places = [sample_at.get((context, begin + i)) for i in range(len(example["tokens"]))]
            assert example["values"] == [0 if place is None else X[place, atom] for place in places]
            document = embeddings.document.values[example["sample"]]
            assert example["where"] == f"document {document}, split validation, sample {example['sample']}"
    assert detail["positive"] or detail["negative"]


@pytest.mark.parametrize("atom", ATOMS)
def test_and_its_figures(atom, explorer, X, learned):
    explorer.chosen = atom
    detail = explorer.detail
    used = X[:, atom][X[:, atom] != 0]
    assert (detail["atom"], detail["usage"], detail["label"]) == (atom, len(used), "")
    assert detail["mean_abs"] == pytest.approx(np.abs(used).mean())
    assert detail["coherence"] == pytest.approx(learned.coherence()[atom])
    assert detail["group"] == learned.group[atom]
    counts, edges = np.histogram(used.astype(np.float64), bins=40)
    assert detail["histogram"]["counts"] == counts.tolist()
    assert (detail["histogram"]["low"], detail["histogram"]["high"]) == (edges[0], edges[-1])


@pytest.mark.parametrize("atom", ATOMS)
def test_and_the_nearest_atoms(atom, explorer, learned):
    explorer.chosen = atom
    cosines = learned.atoms.astype(np.float64) @ learned.atoms[atom]
    others = [i for i in np.argsort(-np.abs(cosines)) if i != atom][:N_NEIGHBOURS]
    assert [near["atom"] for near in explorer.detail["nearest"]] == others
    assert [near["cos"] for near in explorer.detail["nearest"]] == pytest.approx(cosines[others], abs=1e-5)


@pytest.mark.parametrize("atom", ATOMS)
def test_and_those_that_fire_together_with_it(atom, explorer, X):
    explorer.chosen = atom
    used = X != 0
    share, overall = used[used[:, atom]].mean(axis=0), used.mean(axis=0)
    assert explorer.detail["n_sampled"] == np.count_nonzero(used[:, atom])
    gains = []
    for entry in explorer.detail["together"]:
        assert entry["share"] == pytest.approx(share[entry["atom"]])
        assert entry["lift"] == pytest.approx(share[entry["atom"]] / overall[entry["atom"]])
        gains.append(share[entry["atom"]] - overall[entry["atom"]])
    best = np.sort(np.delete(share - overall, atom))[::-1]
    np.testing.assert_allclose(gains, best[:N_NEIGHBOURS], atol=1e-12)


def test_the_table_is_that_of_all_atoms(explorer, X, learned):
    m = N_ATOMS
    assert explorer.atoms == {"n_atoms": m, "n_samples": len(X), "group": True}
    assert len(explorer.table) == 16 * m
    usage, group = (np.frombuffer(explorer.table, "<u4", m, 4 * m * i) for i in (0, 3))
    coherence, mean_abs = (np.frombuffer(explorer.table, "<f4", m, 4 * m * i) for i in (1, 2))
    np.testing.assert_array_equal(usage, np.count_nonzero(X, axis=0))
    np.testing.assert_allclose(coherence, learned.coherence(), atol=1e-6)
    np.testing.assert_allclose(mean_abs * usage, np.abs(X).sum(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(group, learned.group)


def test_everything_that_is_sent_is_plain_json(explorer):
    explorer.select(3)
    explorer.search("the")
    for name in ("atoms", "labels", "detail", "found", "details"):
        assert json.loads(json.dumps(getattr(explorer, name), allow_nan=False)) == getattr(explorer, name)


def test_selecting_is_choosing_and_none_or_no_atom_shows_nothing(explorer):
    explorer.select(np.int64(7))
    assert (explorer.chosen, explorer.detail["atom"]) == (7, 7)
    for nothing in (-1, N_ATOMS):
        explorer.chosen = nothing
        assert explorer.detail == {}


def test_an_unused_atom_has_nothing_to_show_but_its_neighbours():
    codes = SparseCodes(np.array([[0], [0]], np.int32), np.array([[2.0], [-3.0]]), n_atoms=3)
    explorer = Dictionary(np.eye(3)).explore(codes)
    explorer.select(1)
    assert explorer.detail == {
        **{"atom": 1, "usage": 0, "mean_abs": 0, "coherence": 0, "group": 0, "label": ""},
        **{"positive": [], "negative": [], "together": [], "n_sampled": 0},
        "histogram": {"counts": [0] * 40, "low": 0, "high": 0},
        "nearest": [{"atom": 0, "cos": 0}, {"atom": 2, "cos": 0}],
    }
    assert explorer.atoms["group"] is False


def test_a_single_atom_has_no_neighbours():
    explorer = Dictionary(np.eye(1)).explore(SparseCodes(np.array([[0]]), np.array([[2.0]]), n_atoms=1))
    explorer.select(0)
    assert (explorer.detail["nearest"], explorer.detail["together"], explorer.detail["coherence"]) == ([], [], 0)


# --- which tokens ----------------------------------------------------------------------------------------------------


def shown(explorer, atom=5):
    explorer.select(atom)
    return [(e["tokens"], e["at"], e["values"]) for e in explorer.detail["positive"] + explorer.detail["negative"]]


def test_wherever_the_codes_and_the_embeddings_are_the_same_is_shown(dictionary, codes, embeddings):
    expected = shown(dictionary.explore(codes, embeddings))
    opened = open_codes(codes)
    encoded = dictionary.encode(embeddings)  # lazy, of no store
    for given, source in [
        (opened, STORE),
        (opened.compute(), xr.open_zarr(STORE)),
        (encoded, open_embeddings(STORE)),
        (replace(opened.compute(), coords={}, store=None), embeddings),  # in the order of the samples
    ]:
        assert shown(dictionary.explore(given, source)) == expected


def test_codes_of_some_samples_show_their_own_tokens(dictionary, codes, X, text):
    rows = np.arange(4000, 0, -7)
    whole = open_codes(codes).compute()
    coords = {name: coord[rows] for name, coord in whole.coords.items()}
    explorer = dictionary.explore(SparseCodes(whole.indices[rows], whole.values[rows], N_ATOMS, coords), STORE)
    explorer.select(5)
    samples, contexts = text
    assert [e["sample"] for e in explorer.detail["positive"]] == strongest(X[rows, 5], 1)
    for example in explorer.detail["positive"]:
        context, position = samples[rows[example["sample"]]]
        assert example["tokens"][example["at"]] == contexts[context][position]


def test_without_embeddings_samples_are_shown_by_number_and_coordinates(dictionary, codes, X, embeddings):
    explorer = dictionary.explore(codes)
    explorer.select(5)
    example = explorer.detail["positive"][0]
    sample = strongest(X[:, 5], 1)[0]
    assert (example["tokens"], example["at"], example["values"]) == ([f"sample {sample}"], 0, [X[sample, 5]])
    assert example["where"] == f"document {embeddings.document.values[sample]}, split validation, sample {sample}"


def small(**coords):
    """Codes of four samples over two atoms; atom 0 is strongest in sample 2."""
    arrays = {name: xr.DataArray(np.array(coord), dims="sample") for name, coord in coords.items()}
    indices = np.array([[0], [1], [0], [0]], np.int32)
    return SparseCodes(indices, np.array([[1.0], [1.0], [3.0], [-2.0]]), 2, arrays)


def test_a_coordinate_token_is_shown_as_it_is():
    explorer = Dictionary(np.eye(2)).explore(small(token=["a", "b", "c", "d"]))
    assert shown(explorer, 0) == [(["c"], 0, [3.0]), (["a"], 0, [1.0]), (["d"], 0, [-2.0])]


def test_where_a_sample_is_is_told_in_words():
    coords = {
        "sample": ["p", "q", "r", "s"],
        "weight": [0.1, 0.2, 1 / 3, 0.4],
        "note": ["x", "x", "word " * 40, "x"],
        "day": np.datetime64("2026-01-01") + np.arange(4),
    }
    explorer = Dictionary(np.eye(2)).explore(small(**coords))
    explorer.select(0)
    where = explorer.detail["positive"][0]["where"]
    assert re.fullmatch(r"weight 0\.333333, note (word ){10,}\[\.\.\.\], day 2026-01-03\S*, sample r", where)


def test_two_samples_in_one_place_each_have_their_own_value():
    codes = small(context=[0, 0, 0, 0], position=[1, 1, 1, 1])
    tokens = xr.Dataset(
        {"context_tokens": (("c", "p"), [[0, 1, 0]]), "vocabulary": ("token", ["a", "b"])}, coords={"token": [0, 1]}
    )
    explorer = Dictionary(np.eye(2)).explore(codes, tokens)
    assert [values[at] for _, at, values in shown(explorer, 0)] == [3.0, 1.0, -2.0]


# --- search ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shares(X, text):
    """Share of each atom's strongest samples whose token is wanted, of those atoms where it is not zero."""
    samples, contexts = text
    tokens = [contexts[context][position] for context, position in samples]
    examples = [[tokens[i] for sign in (1, -1) for i in strongest(X[:, atom], sign)] for atom in range(N_ATOMS)]

    def of(wanted):
        found = {atom: np.mean([wanted(token) for token in own]) for atom, own in enumerate(examples)}
        return {atom: share for atom, share in found.items() if share}

    return of


@pytest.mark.parametrize("query", ["the", "THE", " of "])
def test_a_token_finds_the_atoms_in_whose_strongest_samples_it_is(query, explorer, shares):
    expected = shares(lambda token: token == query.strip().lower())
    explorer.query = query  # as the browser does
    found = explorer.found
    assert found["query"] == query
    assert found["note"] == ""
    assert dict(zip(found["atoms"], found["share"], strict=True)) == expected
    assert found["atoms"] == sorted(expected, key=lambda atom: (-expected[atom], atom))
    assert explorer.search(query) == found["atoms"]


def test_a_part_of_a_word_finds_it_with_and_without_its_mark(explorer, shares):
    part = shares(lambda token: token.removeprefix("##") == "s")
    assert part
    assert set(explorer.search("##s")) == set(explorer.search("s")) == set(part)


def test_what_is_no_token_finds_those_that_contain_it(explorer, shares):
    assert set(explorer.search("tio")) == set(shares(lambda token: "tio" in token))
    assert "contain" in explorer.found["note"]


def test_an_atom_of_few_samples_is_found_by_their_tokens_only():
    explorer = Dictionary(np.eye(2)).explore(small(token=["a", "b", "a", "c"]))
    assert [explorer.search(token) for token in "abc"] == [[0], [1], [0]]
    assert explorer.found["share"] == [1 / 3]


def test_what_is_nowhere_is_said_to_be(explorer):
    assert explorer.search("xyzzyx") == []
    assert "“xyzzyx”" in explorer.found["note"]
    assert explorer.search("") == []
    assert explorer.found["note"] == ""


def test_without_tokens_a_search_says_what_is_missing(dictionary, codes):
    explorer = dictionary.explore(codes)
    assert explorer.search("the") == []
    assert "the path of the store that has them" in explorer.found["note"]


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_are_the_dictionarys_and_stored_with_it(explorer, dictionary, tmp_path):
    explorer.label(17, "rivers")
    explorer.labels = {**explorer.labels, "3": " Namen ß "}  # as the browser does
    assert dictionary.labels == {3: "Namen ß", 17: "rivers"}
    dictionary.to_zarr(tmp_path / "labelled.zarr")
    opened = open_dictionary(tmp_path / "labelled.zarr")
    assert opened.labels == dictionary.labels
    assert "label" not in opened.history
    store = xr.open_zarr(tmp_path / "labelled.zarr")
    assert store.label.dims == ("atom",)
    assert store.label.values[[3, 4, 17]].tolist() == ["Namen ß", "", "rivers"]


def test_labels_that_a_dictionary_has_are_shown(dictionary, codes):
    dictionary.labels = {17: "rivers"}
    explorer = dictionary.explore(codes)
    assert explorer.labels == {"17": "rivers"}
    explorer.select(17)
    assert explorer.detail["label"] == "rivers"


def test_explorers_of_one_dictionary_do_not_undo_each_others_labels(dictionary, codes):
    first, second = dictionary.explore(codes), dictionary.explore(codes)
    first.label(1, "one")
    dictionary.labels[2] = "two"
    second.labels = {"3": "three"}
    assert dictionary.labels == {1: "one", 2: "two", 3: "three"}
    first.label(1, "")
    assert dictionary.labels == {2: "two", 3: "three"}


def test_an_empty_label_is_none(explorer, dictionary):
    explorer.label(17, "rivers")
    explorer.label(3, "  ")
    assert explorer.labels == {"17": "rivers"}
    explorer.label(17, "")
    assert (explorer.labels, dictionary.labels) == ({}, {})


def test_a_dictionary_without_labels_is_stored_without(dictionary, tmp_path):
    dictionary.to_zarr(tmp_path / "plain.zarr")
    assert "label" not in xr.open_zarr(tmp_path / "plain.zarr")
    assert open_dictionary(tmp_path / "plain.zarr").labels == {}


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ({3: "x"}, ValueError, "labels has atom 3: the atoms are 0 to 2"),
        ({-1: "x"}, ValueError, "labels has atom -1"),
        ({0: 5}, TypeError, "0: 5"),
        ({"0": "x"}, TypeError, "'0': 'x'"),
        ({True: "x"}, TypeError, "True"),
        ({1: " "}, ValueError, "label of atom 1 is empty"),
        (["x"], TypeError, "must be a mapping"),
    ],
)
def test_labels_that_are_none_are_errors(labels, error, message, tmp_path):
    with pytest.raises(error, match=message):
        Dictionary(np.eye(3), labels=labels)
    changed = Dictionary(np.eye(3))
    changed.labels = labels
    with pytest.raises(error, match=message):
        changed.to_zarr(tmp_path / "dictionary.zarr")


def test_labels_are_sorted_and_copied():
    labels = {np.int64(2): "b", 0: "a"}
    D = Dictionary(np.eye(3), labels=labels)
    labels[1] = "c"
    assert list(D.labels.items()) == [(0, "a"), (2, "b")]
    assert all(type(atom) is int for atom in D.labels)


# --- a static page ---------------------------------------------------------------------------------------------------


def state_of(path):
    """What the page says to its script."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r"const state = (\{.*\});$", text, re.MULTILINE)
    return json.loads(found[1]), text


def test_a_page_holds_the_most_used_atoms_and_the_chosen_one(explorer, X, tmp_path):
    least = int(np.argmin(np.count_nonzero(X, axis=0)))
    explorer.label(least, "</script><b>rare")
    explorer.select(least)
    explorer.to_html(tmp_path / "atoms.html", n_atoms=10)
    state, text = state_of(tmp_path / "atoms.html")
    most_used = np.argsort(-np.count_nonzero(X, axis=0), kind="stable")[:10].tolist()
    assert {int(atom) for atom in state["details"]} == {*most_used, least}
    assert (state["static"], state["chosen"], state["labels"]) == (True, least, explorer.labels)
    assert state["detail"] == state["details"][str(least)]
    kept, live = state["detail"]["positive"], explorer.detail["positive"]
    assert [(e["tokens"], e["sample"], e["where"]) for e in kept] == [
        (e["tokens"], e["sample"], e["where"]) for e in live
    ]
    for one, other in zip(kept, live, strict=True):
        assert one["values"] == pytest.approx(other["values"], rel=1e-3)
    assert "</script><b>" not in text
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)


def test_a_page_of_which_nothing_is_chosen_shows_the_most_used_atom(explorer, X, tmp_path):
    explorer.to_html(str(tmp_path / "atoms.html"))
    state, text = state_of(tmp_path / "atoms.html")
    assert state["chosen"] == np.argmax(np.count_nonzero(X, axis=0))
    assert len(state["details"]) == N_ATOMS
    assert len(text) < 12_000 * N_ATOMS + 100_000
    explorer.chosen = N_ATOMS  # no atom
    explorer.to_html(tmp_path / "bare.html", n_atoms=1)
    assert state_of(tmp_path / "bare.html")[0]["chosen"] == state["chosen"]
    explorer.chosen = -1
    explorer.to_html(tmp_path / "bare.html", n_atoms=0)
    state, _ = state_of(tmp_path / "bare.html")
    assert (state["chosen"], state["details"], state["detail"]) == (-1, {}, {})


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e.select(N_ATOMS), ValueError, f"atom={N_ATOMS} is none of the atoms: they are 0 to {N_ATOMS - 1}"),
        (lambda e: e.select(-1), ValueError, "atom=-1"),
        (lambda e: e.select("3"), TypeError, "atom='3'"),
        (lambda e: e.select(True), TypeError, "atom=True"),
        (lambda e: e.search(3), TypeError, "token=3 must be text"),
        (lambda e: e.label(N_ATOMS, "x"), ValueError, f"atom={N_ATOMS}"),
        (lambda e: e.label(3, None), TypeError, "text=None must be text"),
        (lambda e: e.to_html("x.html", n_atoms=-1), ValueError, "n_atoms=-1"),
        (lambda e: e.to_html("x.html", n_atoms=2.5), ValueError, r"n_atoms=2\.5"),
    ],
)
def test_what_cannot_be_says_so(call, error, message, explorer):
    with pytest.raises(error, match=message):
        call(explorer)
    assert (explorer.chosen, explorer.labels) == (-1, {})


def test_codes_of_another_number_of_atoms_are_refused():
    with pytest.raises(ValueError, match="codes are over 2 atoms, but the dictionary has 3"):
        Dictionary(np.eye(3)).explore(small())


def test_what_are_no_codes_is_refused(tmp_path):
    D = Dictionary(np.eye(3))
    D.to_zarr(tmp_path / "dictionary.zarr")
    with pytest.raises(ValueError, match="not a codes store"):
        D.explore(tmp_path / "dictionary.zarr")
    with pytest.raises(FileNotFoundError, match="no codes store at"):
        D.explore(tmp_path / "codes.zarr")
    with pytest.raises(TypeError, match="codes is a ndarray: pass what encode returns"):
        D.explore(np.eye(3))


def test_embeddings_of_other_samples_are_refused(dictionary, codes, embeddings):
    plain = replace(open_codes(codes).compute(), coords={}, store=None)
    with pytest.raises(ValueError, match=r"codes are of 4096 samples.*embeddings are 24576"):
        dictionary.explore(plain, STORE)
    few = xr.open_zarr(STORE).isel(context_window=slice(10))
    with pytest.raises(ValueError, match=r"context from 0 to \d+, but context_tokens has shape \(10, 126\)"):
        dictionary.explore(codes, few)


def test_without_widgets_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "dbksvd_dask.widgets.explorer")
    with pytest.raises(ImportError, match=r"dbksvd-dask\[notebook\]"):
        Dictionary(np.eye(2)).explore(small())


def test_a_click_reads_none_of_the_codes(dictionary, codes, embeddings, monkeypatch):
    dictionary.explore(codes, embeddings)  # makes the index

    def fail(block, block_info=None):
        raise AssertionError("the codes were read")

    opened = open_codes(codes)
    unreadable = [a.map_blocks(fail, dtype=a.dtype, meta=a._meta) for a in (opened.indices, opened.values)]
    assert isinstance(unreadable[0], da.Array)
    explorer = dictionary.explore(replace(opened, indices=unreadable[0], values=unreadable[1]), embeddings)
    assert isinstance(explorer, AtomExplorer)
    explorer.select(3)
    assert explorer.detail["positive"]
    assert explorer.search("the")


def test_labels_given_to_the_dictionary_of_a_model_are_found_again(tmp_path):
    Y = np.random.default_rng(0).standard_normal((200, 8))
    model = DBKSVD(12, 2, max_iter=2, random_state=0).fit(Y)
    model.dictionary_.explore(model.dictionary_.encode(Y)).label(3, "rivers")
    assert model.dictionary_.labels == {3: "rivers"}
    model.dictionary_.to_zarr(tmp_path / "dictionary.zarr")
    assert open_dictionary(tmp_path / "dictionary.zarr").labels == {3: "rivers"}
    model.partial_fit(Y)
    assert model.dictionary_.labels == {3: "rivers"}
    assert model.fit(Y).dictionary_.labels == {}


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"999999": "x"}, "labels has atom 999999"), ({"abc": "x"}, "by their number"), ({"3": "\ud83d"}, "half a char")],
)
def test_labels_that_the_browser_must_not_send_change_nothing(labels, message, explorer, dictionary):
    explorer.label(3, "kept")
    with pytest.raises(ValueError, match=message):
        explorer.labels = labels
    assert explorer.labels == {"3": "kept"}
    assert dictionary.labels == {3: "kept"}
    explorer.label(4, "more")
    assert dictionary.labels == {3: "kept", 4: "more"}


def test_embeddings_of_another_number_of_samples_are_an_error():
    D = Dictionary(np.eye(4), n_nonzero_coefs=1)
    Y = np.random.default_rng(0).standard_normal((20, 4))
    with pytest.raises(ValueError, match=r"the codes are of 20 samples .* but the embeddings are 10 samples"):
        D.explore(D.encode(Y), Y[:10])


def test_a_page_is_written_whole_into_a_folder_that_is_made(explorer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    explorer.to_html("~/new/atoms.html", n_atoms=1)
    assert "</html>" in (tmp_path / "new" / "atoms.html").read_text()


def test_its_repr_says_what_it_is_of(explorer):
    assert repr(explorer) == f"<AtomExplorer: {N_ATOMS} atoms, 4096 samples>"
