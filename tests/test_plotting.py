"""Figures hold what they were given: lines, medians, bounds, labels; what cannot be drawn is named."""

import subprocess
import sys

import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dbksvd_dask import Dictionary, SparseCodes
from dbksvd_dask.plotting import (
    COLORS,
    plot_coherence,
    plot_convergence,
    plot_known_structure,
    plot_sparsity,
    plot_usage,
)

VARIABLES = "relative_error", "variance_explained_per_feature"
MANY = range(1, 9)


def atoms(n_atoms=20, n_features=5, seed=0):
    return oracle.random_atoms(np.random.default_rng(seed), n_atoms, n_features)


def history(n_iterations=6, seed=0, held_out=True):
    rng = np.random.default_rng(seed)
    figures = {f"{part}_{name}": rng.random(n_iterations) for part in ("train", "validation") for name in VARIABLES}
    if not held_out:
        figures |= {f"validation_{name}": np.full(n_iterations, np.nan) for name in VARIABLES}
    figures |= {"n_samples_seen": 100 * np.arange(1, n_iterations + 1), "seconds": rng.random(n_iterations)}
    variables = {name: ("iteration", values) for name, values in figures.items()}
    return xr.Dataset(variables, coords={"iteration": np.arange(n_iterations)})


def results(ms=(64, 128), ks=(5, 10, 20), held_out=True):
    """Histories over m and k."""
    rows = [[history(seed=m + k, held_out=held_out) for k in ks] for m in ms]
    whole = xr.concat([xr.concat(row, "n_nonzero_coefs") for row in rows], "n_components")
    return whole.assign_coords(n_components=list(ms), n_nonzero_coefs=list(ks))


def indices(n_samples=100, n_atoms=12, seed=0):
    return oracle.random_codes(np.random.default_rng(seed), n_samples, n_atoms, 4)[0]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def drawn(line):
    return np.column_stack(line.get_data())


def vertical_lines(axes):
    return [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1] and len(drawn(line)) == 2]


# --- coherence -------------------------------------------------------------------------------------------------------


def test_coherence_is_drawn_as_the_fraction_of_atoms_up_to_each_value():
    D = atoms()
    figure = plot_coherence({"mine": D}, welch=False)
    curve, median = figure.axes[0].lines
    expected = np.sort(oracle.coherence(D))
    steps = np.column_stack([expected, np.arange(1, 21) / 20])
    assert curve.get_drawstyle() == "steps-post"
    np.testing.assert_allclose(drawn(curve), [[expected[0], 0], *steps])
    assert drawn(median).tolist() == [[pytest.approx(np.median(expected)), 0.5]]
    assert legend(figure) == [f"mine, median {np.median(expected):.2f}"]


def test_the_welch_bound_is_drawn_once_for_each_size_with_more_atoms_than_features():
    dictionaries = {
        "a": atoms(20),
        "b": atoms(20, seed=1),
        "large": atoms(30),
        "orthogonal": np.eye(5),
        "few": atoms(3),
    }
    figure = plot_coherence(dictionaries)
    expected = [np.sqrt((m - 5) / (5 * (m - 1))) for m in (20, 30)]
    assert vertical_lines(figure.axes[0]) == pytest.approx(expected)
    assert legend(figure)[5:] == ["Welch bound, m=20, d=5", "Welch bound, m=30, d=5"]
    without = plot_coherence(dictionaries, welch=False)
    assert not vertical_lines(without.axes[0])
    assert len(legend(without)) == 5


def test_no_dictionary_is_all_left_of_its_welch_bound():
    figure = plot_coherence({"mine": atoms()})
    assert figure.axes[0].lines[0].get_xdata().max() >= vertical_lines(figure.axes[0])[0]


def test_dictionaries_and_arrays_are_drawn_alike():
    figures = [plot_coherence({"mine": D}) for D in (atoms(), Dictionary(atoms()))]
    for line, other in zip(*(figure.axes[0].lines for figure in figures), strict=True):
        np.testing.assert_array_equal(drawn(line), drawn(other))


# --- convergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", ["iteration", "n_samples_seen", "seconds"])
def test_convergence_draws_training_dashed_and_held_out_solid(x):
    histories = {"one": history(6), "another": history(9, seed=1)}
    figure = plot_convergence(histories, x=x)
    assert len(figure.axes) == 2
    for axes, variable in zip(figure.axes, VARIABLES, strict=True):
        expected = [
            (dashes, np.cumsum(record[x]) if x == "seconds" else record[x], record[f"{part}_{variable}"])
            for record in histories.values()
            for part, dashes in (("train", "--"), ("validation", "-"))
        ]
        for line, (dashes, right, values) in zip(axes.lines, expected, strict=True):
            assert line.get_linestyle() == dashes
            np.testing.assert_array_equal(drawn(line), np.column_stack([right, values]))
        colors = [line.get_color() for line in axes.lines]
        assert colors[::2] == colors[1::2] == list(COLORS[:2])
        assert axes.get_xlabel() == {"n_samples_seen": "samples seen"}.get(x, x)
    assert [axes.get_ylabel().split(",")[0] for axes in figure.axes] == ["relative error", "variance explained"]
    assert legend(figure) == ["one", "another", "training", "held out"]


def test_a_fit_without_held_out_embeddings_has_its_training_line_only():
    alone = plot_convergence({"mine": history(held_out=False)})
    assert [[line.get_linestyle() for line in axes.lines] for axes in alone.axes] == [["--"], ["--"]]
    assert legend(alone) == ["mine", "training"]
    beside = plot_convergence({"mine": history(held_out=False), "other": history()})
    assert [len(axes.lines) for axes in beside.axes] == [3, 3]
    assert legend(beside) == ["mine", "other", "training", "held out"]


# --- sparsity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("held_out", "part"), [(True, "validation"), (False, "train")])
def test_sparsity_draws_the_last_iteration_by_k_a_line_for_each_m(held_out, part):
    given = results(held_out=held_out)
    figure = plot_sparsity(given.isel(n_nonzero_coefs=[2, 0, 1]))
    for axes, variable in zip(figure.axes, VARIABLES, strict=True):
        assert [line.get_label() for line in axes.lines] == ["m=64", "m=128"]
        for line, m in zip(axes.lines, (64, 128), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [5, 10, 20])
            last = given[f"{part}_{variable}"].sel(n_components=m).isel(iteration=-1)
            np.testing.assert_array_equal(line.get_ydata(), last)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "10", "20"]
    assert legend(figure) == ["m=64", "m=128"]
    assert figure.legends[0].get_title().get_text() == ("held out" if held_out else "training")


def test_the_last_iteration_is_the_last_that_a_fit_has():
    given = results()
    shorter = given.where((given.n_nonzero_coefs != 10) | (given.iteration <= 3))
    figure = plot_sparsity(shorter)
    errors = given.validation_relative_error.sel(n_components=128)
    expected = [errors.sel(n_nonzero_coefs=k, iteration=last).item() for k, last in ((5, 5), (10, 3), (20, 5))]
    assert figure.axes[0].lines[1].get_ydata().tolist() == expected


def test_each_variant_has_a_line_of_its_own_for_each_m():
    variants = xr.concat([results(), 2 * results()], xr.Variable("matryoshka", [False, True]))
    figure = plot_sparsity(variants)
    lines = figure.axes[0].lines
    expected = [f"m={m}, matryoshka={variant}" for m in (64, 128) for variant in (False, True)]
    assert legend(figure) == [line.get_label() for line in lines] == expected
    np.testing.assert_allclose(lines[3].get_ydata(), 2 * lines[2].get_ydata())
    assert [line.get_color() for line in lines] == [COLORS[0], COLORS[0], COLORS[1], COLORS[1]]
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]


# --- usage -----------------------------------------------------------------------------------------------------------


def test_usage_is_the_fraction_of_samples_from_the_most_used_atom_on():
    given = {"mine": indices(), "other": indices(50, seed=1)}
    figure = plot_usage(given)
    (axes,) = figure.axes
    for line, codes in zip(axes.lines, given.values(), strict=True):
        fractions = sorted((np.mean(np.any(codes == j, axis=1)) for j in range(12)), reverse=True)
        assert line.get_xdata().tolist() == list(range(1, 13))
        np.testing.assert_allclose(line.get_ydata(), fractions)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert legend(figure) == ["mine", "other"]


def test_atoms_that_no_sample_uses_are_left_out():
    codes = SparseCodes(np.array([[5, 2], [5, -1]]), np.ones((2, 2)), n_atoms=9)
    (line,) = plot_usage({"mine": codes}).axes[0].lines
    assert drawn(line).tolist() == [[1, 1], [2, 0.5]]


def test_codes_in_memory_lazy_codes_and_indices_are_drawn_alike():
    used = indices()
    values = np.ones(used.shape)
    lazy = SparseCodes(da.from_array(used, (30, 2)), da.from_array(values, (30, 2)), 12)
    lines = plot_usage({"indices": used, "codes": SparseCodes(used, values, 12), "lazy": lazy}).axes[0].lines
    for line in lines[1:]:
        np.testing.assert_array_equal(drawn(line), drawn(lines[0]))


def test_groups_give_the_colours():
    used, groups = indices(), np.repeat([0, 1, 2], [3, 3, 6])
    figure = plot_usage({"mine": used}, groups=groups)
    (points,) = figure.axes[0].collections
    counts = [np.count_nonzero(used == j) for j in range(12)]
    order = np.argsort(-np.array(counts), kind="stable")
    np.testing.assert_allclose(points.get_offsets(), [[i + 1, counts[j] / 100] for i, j in enumerate(order)])
    assert [to_hex(color).upper() for color in points.get_facecolors()] == [COLORS[groups[j]] for j in order]
    assert legend(figure) == ["mine", "group 0", "group 1", "group 2"]
    lines = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
    assert [lines[f"group {group}"] for group in range(3)] == list(COLORS[:3])


def test_groups_say_how_many_atoms_there_are_where_indices_do_not():
    figure = plot_usage({"mine": np.array([[0, 1]])}, groups=[0, 0, 1, 1])
    assert len(figure.axes[0].collections[0].get_offsets()) == 2


# --- known structure -------------------------------------------------------------------------------------------------


def test_known_structure_draws_a_line_for_each_fraction_and_the_smallest_error():
    errors = {0: [0.9, 0.5, 0.3], 0.5: np.array([0.6, 0.2]), 1.0: xr.DataArray([0.4, 0.25, 0.21])}
    figure = plot_known_structure(errors)
    *curves, smallest = figure.axes[0].lines
    for line, values in zip(curves, errors.values(), strict=True):
        np.testing.assert_array_equal(drawn(line), np.column_stack([np.arange(len(values)), values]))
    assert set(smallest.get_ydata()) == {0.2}
    assert smallest.get_linewidth() < curves[0].get_linewidth()
    assert legend(figure) == ["γ = 0", "γ = 0.5", "γ = 1", "smallest, 0.2"]


def test_colours_follow_the_fraction():
    def color(errors, line):
        return plot_known_structure(errors).axes[0].lines[line].get_color()

    assert color({0.0: [1.0], 0.5: [1.0]}, 1) == color({0.5: [1.0]}, 0) != color({1.0: [1.0]}, 0)


# --- all of them -----------------------------------------------------------------------------------------------------

EXAMPLES = {
    plot_coherence: lambda seed: atoms(seed=seed),
    plot_convergence: lambda seed: history(seed=seed),
    plot_usage: lambda seed: indices(seed=seed),
    plot_known_structure: lambda seed: np.random.default_rng(seed).random(5),
}


@pytest.mark.parametrize("plot", EXAMPLES, ids=lambda plot: plot.__name__)
@pytest.mark.parametrize("n_entries", [1, 2, 8, 17])
def test_any_number_of_entries_is_drawn_and_named(plot, n_entries):
    names = [i / 16 if plot is plot_known_structure else f"fit {i}" for i in range(n_entries)]
    figure = plot({name: EXAMPLES[plot](i) for i, name in enumerate(names)})
    figure.draw_without_rendering()
    assert sum(text.startswith(("fit", "γ")) for text in legend(figure)) == n_entries


@pytest.mark.parametrize("plot", EXAMPLES, ids=lambda plot: plot.__name__)
def test_eight_entries_look_different_also_without_colour(plot):
    figure = plot({i / 8: EXAMPLES[plot](i) for i in range(8)})
    handles = figure.legends[0].legend_handles[:8]
    assert len({to_hex(handle.get_color()) for handle in handles}) == 8
    assert len({(handle.get_marker(), handle.get_linestyle()) for handle in handles}) >= 4


def test_a_notebook_shows_the_figure_and_pyplot_knows_nothing_of_it():
    figure = plot_usage({"mine": indices()})
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    code = (
        "import sys, dbksvd_dask; assert 'matplotlib' not in sys.modules; "
        "import dbksvd_dask.plotting; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plot", EXAMPLES, ids=lambda plot: plot.__name__)
def test_what_is_no_mapping_or_empty_is_named(plot):
    with pytest.raises(ValueError, match=r"^(dictionaries|histories|codes|errors) is empty"):
        plot({})
    with pytest.raises(TypeError, match=r"^(dictionaries|histories|codes|errors) is a list: pass a mapping"):
        plot([EXAMPLES[plot](0)])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot_coherence({"a": atoms(), "mine": 2 * atoms()}), ValueError, r"dictionaries\['mine'\] row 0 has"),
        (lambda: plot_coherence({"mine": "atoms"}), TypeError, r"dictionaries\['mine'\] has dtype"),
        (
            lambda: plot_convergence({"mine": [0.5]}),
            TypeError,
            r"histories\['mine'\] is a list: pass an xarray.Dataset",
        ),
        (
            lambda: plot_convergence({"mine": xr.Dataset()}),
            ValueError,
            r"histories\['mine'\] has no iteration: ",
        ),
        (
            lambda: plot_convergence({"mine": history(0)}),
            ValueError,
            r"histories\['mine'\] has no iteration: ",
        ),
        (
            lambda: plot_convergence({"mine": history().drop_vars("seconds")}, x="seconds"),
            ValueError,
            r"histories\['mine'\] has no seconds: ",
        ),
        (
            lambda: plot_convergence({"mine": history().drop_vars("validation_relative_error")}),
            ValueError,
            r"has no validation_relative_error: ",
        ),
        (
            lambda: plot_convergence({"mine": history()}, x="epoch"),
            ValueError,
            'x=\'epoch\' must be "iteration", "n_sa',
        ),
        (lambda: plot_sparsity({"mine": history()}), TypeError, "results is a dict: pass an xarray.Dataset"),
        (lambda: plot_sparsity(history()), ValueError, "results has no n_components: "),
        (lambda: plot_sparsity(results().isel(n_components=[])), ValueError, "results has no n_components: "),
        (
            lambda: plot_usage({"mine": atoms()}),
            TypeError,
            r"codes\['mine'\] is float64 of shape \(20, 5\): pass Sparse",
        ),
        (lambda: plot_usage({"mine": np.arange(3)}), TypeError, r"codes\['mine'\] is int64 of shape \(3,\)"),
        (lambda: plot_usage({"mine": np.full((3, 2), -1)}), ValueError, r"codes\['mine'\] uses no atom"),
        (lambda: plot_usage({"mine": np.empty((0, 2), int)}), ValueError, r"codes\['mine'\] uses no atom"),
        (
            lambda: plot_usage({"mine": indices()}, groups=[0, 1]),
            ValueError,
            r"groups are int64 of shape \(2,\): codes\['mine'\] needs \(12,\) integers",
        ),
        (lambda: plot_usage({"mine": indices()}, groups=np.ones(12)), ValueError, "groups are float64 of shape"),
        (lambda: plot_known_structure({"mine": [0.5]}), ValueError, "errors has the key 'mine': γ"),
        (lambda: plot_known_structure({1.5: [0.5]}), ValueError, r"errors has the key 1.5: γ"),
        (lambda: plot_known_structure({0.5: [0.5, np.nan]}), ValueError, r"errors\[0.5\] must be finite numbers"),
        (lambda: plot_known_structure({0.5: [[0.5]]}), ValueError, r"errors\[0.5\] must be finite numbers"),
        (lambda: plot_known_structure({0.5: []}), ValueError, r"errors\[0.5\] must be finite numbers"),
    ],
)
def test_what_cannot_be_drawn_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
