"""HTML reprs: well-formed, harmless, and right in every number that they show."""

import inspect
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest
import small_fits
import xarray as xr
from dask.utils import format_bytes, format_time
from sklearn import config_context

from dbksvd_dask import DBKSVD, Callback, Dictionary, SparseCodes
from dbksvd_dask.baseline import ksvd_baseline
from dbksvd_dask.reprs import codes_html, dictionary_html, model_html, run_html

EVIL = """<img src=x onerror="alert(1)"> & </td></table><script>'"""
PARAMETERS = {name: p.default for name, p in inspect.signature(DBKSVD).parameters.items()}


class Page(HTMLParser):
    """What a browser would see; fails where the HTML is not well-formed."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.html = html
        self.open, self.elements, self.tables, self.texts = [], [], [], {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.elements.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        assert self.open[-1] == "svg", f"<{tag}/> outside of a drawing"
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    @property
    def rows(self):
        return {name: values[0] if len(values) == 1 else values for rows in self.tables for name, *values in rows}

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def Y():
    return small_fits.example()


@pytest.fixture(scope="module")
def fitted(Y):
    return small_fits.model(center=True).fit(Y[:150], validation=Y[150:])


def run_of(model, state="running", n_done=0, n_iterations=0, message=""):
    return SimpleNamespace(state=state, model=model, n_done=n_done, n_iterations=n_iterations, message=message)


def lazy_codes(rows=(100, 100, 50), n_atoms=40, coords=()):
    arrays = (da.ones((sum(rows), 3), chunks=(rows, 3), dtype=dtype) for dtype in ("int32", "float32"))
    return SparseCodes(*arrays, n_atoms, {name: xr.DataArray(np.arange(sum(rows)), dims="sample") for name in coords})


def evil_pages():
    """One of each, with a text wherever there is one that is not ours."""
    model = DBKSVD(EVIL, 3, encoder=EVIL, matryoshka=[EVIL])
    dictionary = Dictionary(np.eye(3), provenance={EVIL: {EVIL: [EVIL]}}, labels={1: EVIL})
    run = run_of(model, EVIL, message=EVIL)
    return model_html(model), dictionary_html(dictionary), codes_html(lazy_codes(coords=[EVIL])), run_html(run)


def test_texts_of_others_stay_texts():
    for html in evil_pages():
        page = Page(html)
        cells = [cell for table in page.tables for row in table for cell in row]
        assert any(EVIL in text for text in cells + page.texts.get("div", []) + page.texts.get("span", []))
        assert not page.all("img")
        assert not page.all("script")


def test_pages_are_self_contained_and_their_drawings_have_titles(fitted):
    dictionary = fitted.dictionary_
    codes = dictionary.encode(small_fits.example())
    run = run_of(fitted, n_done=6, n_iterations=6)
    for html in (model_html(fitted), dictionary_html(dictionary), codes_html(codes), run_html(run), *evil_pages()[2:3]):
        page = Page(html)
        assert not re.search(r"http|<script|url\(|@import|javascript:", html)
        for _, attributes in page.elements:
            assert not {"href", "src", "id", "xlink:href"} & attributes.keys()
            assert not [name for name in attributes if name.startswith("on")]
        drawings = [attributes for attributes in page.all("svg") if attributes.get("aria-hidden") != "true"]
        assert drawings
        assert all(attributes["role"] == "img" for attributes in drawings)
        assert len(page.texts["title"]) == len(drawings)


def test_every_rule_of_the_style_is_about_reprs_only():
    (style,) = Page(model_html(DBKSVD(4, 2))).texts["style"]
    selectors = re.findall(r"([^{}]+)\{[^}]*\}", style)
    assert selectors
    assert all(selector.strip().startswith(".dbksvd-repr") for selector in selectors)


def test_an_unfitted_model_shows_m_k_and_what_is_not_at_its_default():
    changed = {"max_iter": 7, "init": np.eye(4, 8, dtype="float32"), "matryoshka": [16, 48], "dtype": np.float64}
    changed |= {"callbacks": [Callback()], "batch_size": np.int64(100), "rtol": 0.25}
    page = Page(model_html(DBKSVD(1024, 20, n_passes=np.int64(2), **changed)))
    first, others = map(dict, page.tables)
    assert "not fitted" in page.texts["span"]
    assert " m = 1024, k = 20" in page.texts["div"]
    assert first == {
        "batch_size": "100",
        "max_iter": "7",
        "init": "4 × 8 ndarray of float32",
        "matryoshka": "[16, 48]",
        "rtol": "0.25",
        "dtype": "float64",
        "callbacks": "[Callback]",
    }
    defaults = {name: str(value) for name, value in PARAMETERS.items() if name not in changed}
    assert others == {name: defaults[name] for name in list(defaults)[2:]}
    assert page.texts["summary"] == [f"{len(others)} parameters at their defaults"]


def test_a_model_at_its_defaults_is_one_line_and_the_defaults():
    assert len(Page(model_html(DBKSVD(1024, 20))).tables) == 1


def test_a_fitted_model_shows_the_figures_of_its_last_iteration(fitted):
    page, last = Page(model_html(fitted)), fitted.history_.isel(iteration=-1)
    assert "fitted" in page.texts["span"]
    expected = {
        "Atoms": "12 × 8",
        "Dtype": "float32",
        "Iterations": "6",
        "Samples seen": f"{6 * small_fits.BATCH}",
        "Unused atoms": f"{int(last.n_unused_atoms)}",
        "Wall time": format_time(float(sum(fitted.history_.seconds.values))),
        "Ended by": "max_iter",
        "": ["training", "validation"],
        "Relative error": [f"{last.train_relative_error:.4f}", f"{last.validation_relative_error:.4f}"],
        "Variance explained": [f"{last.train_variance_explained:.4f}", f"{last.validation_variance_explained:.4f}"],
        "L0": [f"{last.train_l0:.2f}", f"{last.validation_l0:.2f}"],
    }
    assert {name: page.rows[name] for name in expected} == expected


def test_without_validation_there_is_no_column_for_it(Y):
    model = small_fits.model().fit(Y)
    page = Page(model_html(model))
    assert page.rows[""] == "training"
    assert page.rows["L0"] == f"{model.history_.train_l0.values[-1]:.2f}"
    assert len(page.all("polyline")) == 1


def test_a_last_iteration_without_validation_has_dashes(Y):
    model = small_fits.model().fit(Y[:150], validation=Y[150:]).partial_fit(Y)
    page = Page(model_html(model))
    assert [page.rows[name][1] for name in ("Relative error", "Variance explained", "L0")] == ["–"] * 3
    training, validation = (len(curve["points"].split()) for curve in page.all("polyline"))
    assert (training, validation) == (10, 6)


def test_a_fit_that_fails_later_is_shown_with_what_it_has_learned(Y):
    model = small_fits.model(callbacks=[small_fits.Noting([], failure=RuntimeError("enough"))])
    with pytest.raises(RuntimeError, match="enough"):
        model.fit(Y)
    page = Page(model_html(model))
    assert (page.rows["Ended by"], page.rows["Iterations"]) == ("error", "2")


def test_a_fit_that_fails_at_once_leaves_the_model_unfitted(Y):
    model = small_fits.model()
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.full_like(Y, np.nan))
    assert model_html(model) == model_html(small_fits.model())


def test_before_the_first_iteration_there_are_atoms_and_no_figures(Y):
    pages = []

    class Look(Callback):
        def begin(self, model, n_iterations):
            pages.append(Page(model_html(model)))
            pages.append(Page(run_html(run_of(model, n_iterations=n_iterations))))

    small_fits.model(callbacks=[Look()]).fit(Y)
    of_model, of_run = pages
    assert (of_model.rows["Atoms"], of_model.rows["Iterations"]) == ("12 × 8", "0")
    assert of_run.rows == {"Iterations": "0 of 6"}
    for page in pages:
        assert "Relative error" not in page.rows
        assert not page.all("polyline")


@pytest.mark.parametrize("n", [2, 40, 3000])
def test_the_curves_are_the_errors(n):
    rng = np.random.default_rng(n)
    errors = {"train_relative_error": rng.uniform(0.2, 0.9, n), "validation_relative_error": rng.uniform(0.2, 0.9, n)}
    history = xr.Dataset({name: ("iteration", values) for name, values in errors.items()})
    page = Page(dictionary_html(Dictionary(np.eye(3), history=history)))
    high, low = map(float, page.texts["text"][2:])
    assert high == pytest.approx(max(values.max() for values in errors.values()), abs=0.01)
    foot = float(page.all("path")[-1]["d"].split("H")[0].split()[1])
    for curve, values in zip(page.all("polyline"), errors.values(), strict=True):
        x, y = np.array([point.split(",") for point in curve["points"].split()], float).T
        drawn = high - y / foot * (high - low)
        assert drawn[[0, -1]] == pytest.approx(values[[0, -1]], abs=0.002)
        if n < 100:
            assert x / x[-1] * (n - 1) == pytest.approx(np.arange(n), abs=0.1)
            assert drawn == pytest.approx(values, abs=0.002)
        else:
            assert 100 < len(x) < 300
    first, last = ([f"{values[at]:.4f}" for values in errors.values()] for at in (0, -1))
    (title,) = (text for text in page.texts["title"] if "Relative error" in text)
    assert title == (
        f"Relative error over {n:,} iterations: training from {first[0]} to {last[0]}, "
        f"validation from {first[1]} to {last[1]}"
    )


@pytest.mark.parametrize("values", [[], [0.5], [np.nan, np.nan]])
def test_there_is_no_curve_of_fewer_than_two_errors(values):
    history = xr.Dataset({"train_relative_error": ("iteration", np.array(values, float))})
    assert not Page(dictionary_html(Dictionary(np.eye(3), history=history))).all("polyline")


def test_a_constant_error_is_a_level_line():
    history = xr.Dataset({"train_relative_error": ("iteration", np.full(3, 0.5))})
    (curve,) = Page(dictionary_html(Dictionary(np.eye(3), history=history))).all("polyline")
    assert len({point.split(",")[1] for point in curve["points"].split()}) == 1


def test_a_dictionary_shows_its_size_and_how_it_encodes(fitted):
    page = Page(dictionary_html(fitted.dictionary_))
    expected = {
        "Atoms": "12",
        "Features": "8",
        "Dtype": "float32",
        "Size": format_bytes(12 * 8 * 4),
        "k": "at most 3 nonzero a sample",
        "Encoder": "mp",
        "Mean": "taken before encoding",
    }
    assert {name: page.rows[name] for name in expected} == expected
    assert page.texts["title"][0] == "12 atoms × 8 features"
    assert page.texts["text"][:2] == ["12", "8"]
    assert len(page.all("polyline")) == 2


def test_a_bare_dictionary():
    page = Page(dictionary_html(Dictionary(np.eye(1200), nonnegative=True, rtol=0.1)))
    assert page.rows == {
        "Atoms": "1,200",
        "Features": "1,200",
        "Dtype": "float64",
        "Size": "10.99 MiB",
        "k": "chosen when encoding",
        "Encoder": "mp, nonnegative, rtol 0.1",
        "Mean": "none",
    }
    assert not page.all("details")


def heights_of_cuts(page):
    """The lines across the block, as fractions of its height."""
    height = float(page.all("rect")[0]["height"])
    return [float(line["d"].split("H")[0].split()[1]) / height for line in page.all("path")]


def test_groups_are_listed_and_drawn():
    page = Page(dictionary_html(Dictionary(np.eye(16), group_sizes=[2, 2, 4, 8])))
    assert page.rows["Matryoshka groups"] == "4: [2, 2, 4, 8]"
    assert heights_of_cuts(page) == pytest.approx([2 / 16, 4 / 16, 8 / 16], abs=0.002)


def test_labels_are_listed_by_atom_and_not_without_end():
    few = Page(dictionary_html(Dictionary(np.eye(200), labels={17: "rivers", 3: "dates"})))
    assert few.tables[1] == [["3", "dates"], ["17", "rivers"]]
    assert few.rows["Labelled atoms"] == "2"
    many = Page(dictionary_html(Dictionary(np.eye(200), labels={atom: str(atom) for atom in range(130)})))
    assert many.rows["Labelled atoms"] == "130"
    assert many.tables[1][98:] == [["98", "98"], ["99", "99"], ["…", "30 more"]]


def test_the_provenance_is_all_there(fitted):
    dictionary = fitted.dictionary_
    provenance, rows = dictionary.provenance, dict(Page(dictionary_html(dictionary)).tables[-1])
    nested = {name: value for name, value in provenance.items() if isinstance(value, dict)}
    expected = {name: str(value) for name, value in provenance.items() if name not in nested}
    expected |= {f"{outer} / {name}": str(v) for outer, values in nested.items() for name, v in values.items()}
    assert rows == expected


def test_a_dictionary_of_the_baseline_has_its_curve(Y):
    dictionary = ksvd_baseline(Y, n_components=12, n_nonzero_coefs=2, max_iter=3, random_state=0).dictionary
    assert len(Page(dictionary_html(dictionary)).all("polyline")[0]["points"].split()) == 3


def test_lazy_codes_are_shown_without_computing_anything():
    def refuse(graph, keys, **options):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        page = Page(codes_html(lazy_codes(coords=["document", "token"])))
    assert "lazy" in page.texts["span"]
    assert page.rows == {
        "Samples": "250",
        "Atoms": "40",
        "k": "at most 3 nonzero a sample",
        "Dtype": "float32, atoms int32",
        "Size once computed": format_bytes(250 * 3 * (4 + 4)),
        "Chunks": "3 chunks of 50 to 100 samples",
        "Coordinates": "document, token",
    }
    assert page.texts["title"] == ["250 samples × 40 atoms in 3 chunks"]
    assert heights_of_cuts(page) == pytest.approx([100 / 250, 200 / 250], abs=0.002)


def test_codes_in_memory():
    codes = lazy_codes().compute()
    page = Page(codes_html(codes))
    assert "in memory" in page.texts["span"]
    assert page.rows["Size in memory"] == format_bytes(codes.indices.nbytes + codes.values.nbytes)
    assert page.rows["Chunks"] == "none"
    assert "Coordinates" not in page.rows
    assert heights_of_cuts(page) == []


def test_of_very_many_chunks_some_are_drawn():
    page = Page(codes_html(lazy_codes(rows=(10,) * 5000)))
    assert page.rows["Chunks"] == "5,000 chunks of 10 samples"
    assert 20 <= len(heights_of_cuts(page)) <= 40


@pytest.mark.parametrize("codes", [lazy_codes(rows=(0, 0)), lazy_codes(rows=(0,)).compute()])
def test_codes_of_no_samples(codes):
    assert Page(codes_html(codes)).rows["Samples"] == "0"


def test_a_run_that_has_not_begun():
    run = run_of(small_fits.model(), "starting", message="compiling the kernels")
    page = Page(run_html(run))
    assert page.rows == {"Iterations": "none yet"}
    assert "starting" in page.texts["span"]
    assert " compiling the kernels" in page.texts["div"]
    assert not page.all("svg")


def test_a_run_shows_how_far_it_is_and_the_last_figures(fitted):
    page, last = Page(run_html(run_of(fitted, n_done=6, n_iterations=8))), fitted.history_.isel(iteration=-1)
    assert page.rows["Iterations"] == "6 of 8"
    assert page.rows["Relative error"][0] == f"{last.train_relative_error:.4f}"
    assert page.texts["title"][0] == "6 of 8 iterations"
    whole, done = (float(bar["width"]) for bar in page.all("rect"))
    assert done / whole == pytest.approx(6 / 8)


def test_a_run_that_has_not_iterated_does_not_show_the_fit_before_it(fitted):
    assert Page(run_html(run_of(fitted, n_iterations=8))).rows == {"Iterations": "0 of 8"}


def test_a_failed_run_says_why():
    page = Page(run_html(run_of(small_fits.model(), "failed", message="TypeError: <not> this")))
    assert " TypeError: <not> this" in page.texts["div"]
    (chip,) = page.all("span")
    assert "dbksvd-failed" in chip["class"]


def test_notebooks_show_these_reprs(tmp_path):
    Y = np.random.default_rng(0).standard_normal((200, 8))
    model = DBKSVD(12, 2, max_iter=2)
    assert model._repr_html_() == model._repr_mimebundle_()["text/html"] == model_html(model)
    D = model.fit(Y).dictionary_
    codes = D.encode(Y)
    assert D._repr_html_() == dictionary_html(D)
    assert codes._repr_html_() == codes_html(codes)
    with config_context(display="text"):
        assert "text/html" not in model._repr_mimebundle_()
