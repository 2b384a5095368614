"""Figures of dictionaries, fits and codes; this module needs matplotlib.

They are modelled on Figs. 2, 3, 5, 6 and 7 of the paper.

Each function returns a Figure of its own and leaves pyplot alone. As the last value of a notebook's cell the figure
shows itself; ``figure.savefig("figure.pdf")`` keeps it.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import cycle
from numbers import Real
from typing import Any, Literal

import numpy as np
import xarray as xr
from cycler import cycler
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from dbksvd_dask import metrics
from dbksvd_dask.bounds import welch_bound
from dbksvd_dask.codes import SparseCodes
from dbksvd_dask.comparison import atoms_of
from dbksvd_dask.dictionary import Dictionary

# Okabe and Ito's colours, which the colour-blind tell apart; grey for their yellow, too light for a line.
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C"
DASHES = "-", "--", "-.", ":"
STYLES = cycler(color=COLORS, marker="os^Dv*PX", linestyle=2 * DASHES)
MARKER_DISTANCE = 0.1  # along a line, in diagonals of the axes

X_LABELS = {"iteration": "iteration", "n_samples_seen": "samples seen", "seconds": "seconds"}
Y_LABELS = {"relative_error": "relative error", "variance_explained_per_feature": "variance explained, feature mean"}


def plot_coherence(dictionaries: Mapping[Hashable, Dictionary | np.ndarray], *, welch: bool = True) -> Figure:
    """How many atoms have how large a coherence, the largest ``|cos|`` with any other; medians are marked (Fig. 2).

    Parameters
    ----------
    dictionaries : mapping from names to Dictionary or (m, d) floats
        Unit rows.
    welch : bool
        Draw the Welch bound of each (m, d) with m > d: no dictionary of that size has all of its atoms left of it.

    Raises
    ------
    TypeError, ValueError
        If `dictionaries` is no mapping or empty, or atoms are not floating, two-dimensional, finite and of unit norm.

    Examples
    --------
    >>> import numpy as np
    >>> figure = plot_coherence({"mine": np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])})
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['mine, median 0.80', 'Welch bound, m=3, d=2']
    """
    figure, (axes,) = _figure(1)
    handles, shapes = [], set()
    for name, D, called, style in _entries(dictionaries, "dictionaries"):
        atoms = atoms_of(D, called)
        shapes.add(atoms.shape)
        coherence = metrics.coherence(atoms)
        median = np.median(coherence)
        axes.ecdf(coherence, color=style["color"], linestyle=style["linestyle"])
        axes.plot(median, 0.5, color=style["color"], marker=style["marker"])
        handles.append(Line2D([], [], **style, label=f"{name}, median {median:.2f}"))
    bounded = sorted((m, d) for m, d in shapes if welch and m > d)
    for (m, d), dashes in zip(bounded, cycle(DASHES), strict=False):
        label = f"Welch bound, m={m}, d={d}"
        handles.append(axes.axvline(welch_bound(m, d), color="grey", linestyle=dashes, linewidth=0.8, label=label))
    axes.set(xlabel="largest |cos| with any other atom", ylabel="fraction of atoms up to it", xlim=(0, 1), ylim=(0, 1))
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def plot_convergence(
    histories: Mapping[Hashable, xr.Dataset], *, x: Literal["iteration", "n_samples_seen", "seconds"] = "iteration"
) -> Figure:
    """Relative error and variance explained as fits go on: of training batches dashed, of held-out embeddings solid.

    As in the history, an iteration's training figures belong to the atoms that it began with, its held-out figures to
    the dictionary that is learned when it ends.

    Parameters
    ----------
    histories : mapping from names to xarray.Dataset
        `history_` of each model.
    x : "iteration", "n_samples_seen" or "seconds"
        By what; seconds are added up.

    Raises
    ------
    TypeError, ValueError
        If `histories` is no mapping or empty, what is in it is no history or has no iterations, or `x` is another.

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import DBKSVD
    >>> Y = np.random.default_rng(0).standard_normal((200, 8))
    >>> model = DBKSVD(16, 2, max_iter=5).fit(Y[:150], validation=Y[150:])
    >>> [axes.get_ylabel() for axes in plot_convergence({"k=2": model.history_}).axes]
    ['relative error', 'variance explained, feature mean']
    """
    if x not in X_LABELS:
        raise ValueError(f'x={x!r} must be "iteration", "n_samples_seen" or "seconds"')
    figure, panels = _figure(2)
    handles, dashed = [], {"linestyle": "--", "linewidth": 1, "markersize": 3}
    kinds = {"training": Line2D([], [], color="grey", linestyle="--", linewidth=1, label="training")}
    for name, history, called, style in _entries(histories, "histories"):
        _check_history(history, called, ["iteration", x])
        right = history[x].cumsum() if x == "seconds" else history[x]
        solid = style | {"linestyle": "-", "markevery": MARKER_DISTANCE}
        for axes, variable in zip(panels, Y_LABELS, strict=True):
            axes.plot(right, history[f"train_{variable}"], **solid | dashed)
            held_out = history[f"validation_{variable}"]
            if held_out.notnull().any():
                axes.plot(right, held_out, **solid)
                kinds["held out"] = Line2D([], [], color="grey", label="held out")
        handles.append(Line2D([], [], **style | {"linestyle": "-"}, label=name))
    for axes, label in zip(panels, Y_LABELS.values(), strict=True):
        axes.set(xlabel=X_LABELS[x], ylabel=label)
        if x != "seconds":
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(handles=[*handles, *kinds.values()], loc="outside right upper")
    return figure


def plot_sparsity(results: xr.Dataset) -> Figure:
    """Relative error and variance explained in the end by the number of nonzero coefficients, a line for each m.

    Of held-out embeddings; where none were held out, of the training batches.

    Parameters
    ----------
    results : xarray.Dataset
        Histories over "n_components", "n_nonzero_coefs", "iteration" and maybe other parameters, such as "matryoshka",
        for each of whose values there are lines. NaN after the last iteration of fits that end early.

    Raises
    ------
    TypeError, ValueError
        If `results` is no such Dataset, or has nothing along one of its dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import DBKSVD
    >>> Y = np.random.default_rng(0).standard_normal((200, 8))
    >>> fits = [DBKSVD(16, k, max_iter=3).fit(Y).history_.expand_dims(n_nonzero_coefs=[k]) for k in (1, 2)]
    >>> figure = plot_sparsity(xr.concat(fits, "n_nonzero_coefs").expand_dims(n_components=[16]))
    >>> figure.axes[0].lines[0].get_label(), figure.axes[0].lines[0].get_xdata()
    ('m=16', array([1, 2]))
    """
    _check_history(results, "results", ["n_components", "n_nonzero_coefs", "iteration"])
    results = results.sortby("n_nonzero_coefs")
    k = results["n_nonzero_coefs"].values
    held_out = results.validation_relative_error.notnull().any()
    part, words = ("validation", "held out") if held_out else ("train", "training")
    figure, panels = _figure(2)
    for axes, (variable, label) in zip(panels, Y_LABELS.items(), strict=True):
        _plot_last(axes, results[f"{part}_{variable}"])
        axes.set(xlabel="nonzero coefficients, k", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(k, [str(value) for value in k])
    figure.legend(handles=panels[0].lines, loc="outside right upper", title=words)
    return figure


def plot_usage(codes: Mapping[Hashable, SparseCodes | np.ndarray], *, groups: np.ndarray | None = None) -> Figure:
    """The fraction of samples that use each atom, from the most used atom on; without those that no sample uses.

    Parameters
    ----------
    codes : mapping from names to SparseCodes or (n, k) integers
        Codes, or their indices with −1 in empty slots. Lazy codes are computed chunk by chunk.
    groups : (m,) integers, optional
        Matryoshka group of each atom, which gives its colour.

    Raises
    ------
    TypeError, ValueError
        If `codes` is no mapping or empty, what is in it is no codes or uses no atom, or `groups` has another m.

    Examples
    --------
    >>> import numpy as np
    >>> figure = plot_usage({"mine": np.array([[2, 0], [2, 1], [2, 0], [2, -1]])})
    >>> figure.axes[0].lines[0].get_ydata()
    array([1.  , 0.5 , 0.25])
    """
    groups = None if groups is None else np.asarray(groups)
    figure, (axes,) = _figure(1)
    for name, X, called, style in _entries(codes, "codes"):
        usage = _usage(X, called, groups)
        order = np.argsort(-usage, kind="stable")[: np.count_nonzero(usage)]
        ranks = np.arange(1, len(order) + 1)
        if groups is None:
            axes.plot(ranks, usage[order], color=style["color"], linestyle=style["linestyle"], label=name)
            continue
        axes.plot([], [], color="grey", marker=style["marker"], linestyle="none", label=name)
        colors = np.take(COLORS, groups[order], mode="wrap")
        axes.scatter(ranks, usage[order], s=9, c=colors, marker=style["marker"])
    for group in () if groups is None else np.unique(groups):
        axes.plot([], [], color=COLORS[group % len(COLORS)], linewidth=4, label=f"group {group}")
    axes.set(xlabel="atoms, from the most used", ylabel="fraction of samples", xscale="log", yscale="log")
    figure.legend(loc="outside right upper")
    return figure


def plot_known_structure(errors: Mapping[float, np.ndarray]) -> Figure:
    """Relative error by iteration for each known fraction γ of the support; the smallest as a thin line (Fig. 3).

    Parameters
    ----------
    errors : mapping from γ to (iterations,) floats
        γ from 0 to 1.

    Raises
    ------
    TypeError, ValueError
        If `errors` is no mapping or empty, a γ is not from 0 to 1, or errors are not one-dimensional and finite.

    Examples
    --------
    >>> import numpy as np
    >>> figure = plot_known_structure({0.0: np.array([0.9, 0.5, 0.2]), 1.0: np.array([0.3, 0.1])})
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['γ = 0', 'γ = 1', 'smallest, 0.1']
    """
    figure, (axes,) = _figure(1)
    smallest = np.inf
    for gamma, curve, called, style in _entries(errors, "errors"):
        values = _check_curve(gamma, curve, called)
        # γ is ordered, so are the colours; the upper end of the map is too light for a line.
        style = style | {"color": colormaps["viridis"](0.85 * gamma), "linestyle": "-"}
        axes.plot(values, **style, markevery=MARKER_DISTANCE, label=f"γ = {gamma:g}")
        smallest = min(smallest, values.min())
    axes.axhline(smallest, color="black", linewidth=0.7, label=f"smallest, {smallest:.3g}")
    axes.set(xlabel="iteration", ylabel="relative error")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper")
    return figure


class _ShownFigure(Figure):
    """What a notebook shows without pyplot, whose import is what would teach it to show figures."""

    def _repr_png_(self) -> bytes:
        picture = BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


def _entries(given: Any, argument: str) -> Iterator[tuple[Any, Any, str, dict[str, Any]]]:
    """Each key and value, with what errors call the value and the style of its line."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument} is a {type(given).__name__}: pass a mapping, each with its name")
    if not given:
        raise ValueError(f"{argument} is empty: there is nothing to plot")
    for (key, value), style in zip(given.items(), STYLES(), strict=False):
        yield key, value, f"{argument}[{key!r}]", style


def _figure(n_panels: int) -> tuple[Figure, Sequence[Axes]]:
    figure = _ShownFigure(figsize=(9, 3.5), layout="constrained")
    panels = figure.subplots(1, n_panels, squeeze=False)[0]
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _plot_last(axes: Axes, values: xr.DataArray) -> None:
    """A line over k for each m, in its dashes for each combination of what else there is."""
    # The count of what is known reaches its maximum first where the last of it stands.
    last = values.isel(iteration=values.notnull().cumsum("iteration").argmax("iteration"))
    variants = [dim for dim in last.dims if dim not in ("n_components", "n_nonzero_coefs")]
    for i, style in zip(range(last.sizes["n_components"]), STYLES(), strict=False):
        for chosen, dashes in zip(np.ndindex(*(last.sizes[dim] for dim in variants)), cycle(DASHES), strict=False):
            line = last.isel({"n_components": i, **dict(zip(variants, chosen, strict=True))})
            names = [f"m={line.n_components.item()}", *(f"{dim}={line[dim].item()}" for dim in variants)]
            axes.plot(line["n_nonzero_coefs"], line, **(style | {"linestyle": dashes}), label=", ".join(names))


def _usage(codes: SparseCodes | np.ndarray, name: str, groups: np.ndarray | None) -> np.ndarray:
    """(m,) fractions of samples; m is that of the groups, or the largest index, where codes do not know it."""
    indices = codes.indices if isinstance(codes, SparseCodes) else np.asarray(codes)
    if indices.ndim != 2 or indices.dtype.kind not in "iu":
        raise TypeError(f"{name} is {indices.dtype} of shape {indices.shape}: pass SparseCodes or (n, k) integers")
    least = 0 if groups is None else len(groups)
    n_atoms = codes.n_atoms if isinstance(codes, SparseCodes) else max(least, int(indices.max(initial=-1)) + 1)
    if groups is not None and (groups.shape != (n_atoms,) or groups.dtype.kind not in "iu"):
        raise ValueError(f"groups are {groups.dtype} of shape {groups.shape}: {name} needs ({n_atoms},) integers")
    usage = np.asarray(metrics.atom_usage(indices, n_atoms))
    if not usage.any():
        raise ValueError(f"{name} uses no atom: there is nothing to plot")
    return usage / len(indices)


def _check_curve(gamma: Any, curve: np.ndarray, name: str) -> np.ndarray:
    if not isinstance(gamma, Real) or not 0 <= float(gamma) <= 1:
        raise ValueError(f"errors has the key {gamma!r}: γ, the fraction of the support that is known, is from 0 to 1")
    values = np.asarray(curve)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite numbers, one an iteration, not {curve!r}")
    return values


def _check_history(history: object, name: str, needed: list[str]) -> None:
    if not isinstance(history, xr.Dataset):
        raise TypeError(f"{name} is a {type(history).__name__}: pass an xarray.Dataset, such as a model's history_")
    needed += [f"{part}_{variable}" for part in ("train", "validation") for variable in Y_LABELS]
    for entry in needed:
        if (entry not in history and entry not in history.sizes) or not history[entry].size:
            raise ValueError(f"{name} has no {entry}: there is nothing to plot")
