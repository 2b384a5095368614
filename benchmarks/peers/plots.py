"""Error against CPU seconds and against L0, as SVG that is legible on light and dark pages."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from report import Result
from runs import SPARSITIES

GREY = "#7a7a7a"
REFITTED = "dbksvd-refitted"
STYLES = {  # colours by Okabe and Ito: one for each package; lines and markers tell its learners apart
    "dbksvd-mp": ("#0082c8", "-", "o"),
    "dbksvd-omp": ("#0082c8", "--", "s"),
    "dbksvd-matryoshka": ("#0082c8", ":", "^"),
    REFITTED: (GREY, "-", "x"),
    "spams-l0": ("#009e73", "--", "s"),
    "spams-l1": ("#009e73", "-", "o"),
    "scikit-learn": ("#e69f00", "-", "o"),
    "saelens-topk": ("#d55e00", "-", "o"),
    "saelens-batchtopk": ("#d55e00", "--", "s"),
    "saelens-matryoshka": ("#d55e00", ":", "^"),
}
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "peers",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
} | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY)
LABEL_GAP = 0.055
"""Least distance of two labels, in heights of the axes."""


def write(results: dict[str, Result], folder: Path) -> None:
    """peers-cost.svg and peers-sparsity.svg."""
    shown = {name: results[name] for name in STYLES if name in results}
    with plt.rc_context(SETTINGS):
        _cost(shown, results, folder / "peers-cost.svg")
        _sparsity(shown, results, folder / "peers-sparsity.svg")


def _cost(shown: dict[str, Result], results: dict[str, Result], path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    titles = {"native": "each with its own codes", "omp": "OMP on the atoms of each"}
    for axes, (encoder, title) in zip(panels, titles.items(), strict=True):
        ends = []
        for name, result in shown.items():
            seconds = [point["cpu_seconds"] for point in result["curve"]]
            errors = [1 - point[encoder]["variance_explained"] for point in result["curve"]]
            _line(axes, name, seconds, errors)
            ends.append((name, result["label"], seconds[-1], errors[-1]))
        for name, point in _short_trainings(results).items():
            colour, _, marker = STYLES[name]
            error = 1 - point[encoder]["variance_explained"]
            axes.plot(point["cpu_seconds"], error, color=colour, marker=marker, fillstyle="none", markersize=7)
        axes.set(xscale="log", yscale="log", xlabel="CPU seconds of training", title=title)
        axes.xaxis.set_major_formatter("{x:g}")
        _ticks(axes)
        _labels(axes, ends)
    panels[0].set_ylabel("variance not explained, held-out rows")
    _save(figure, path)


def _sparsity(shown: dict[str, Result], results: dict[str, Result], path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    refitted = {
        k: results[name]["curve"][-1]
        for k, name in ((k, f"dbksvd-k{k}" if k != 20 else "dbksvd-mp") for k in SPARSITIES)
        if name in results
    }
    for axes, (encoder, title) in zip(panels, {"mp": "matching pursuit", "omp": "OMP"}.items(), strict=True):
        ends = []
        for name, result in shown.items():
            ks = [part["k"] for part in result["by_sparsity"]]
            errors = [1 - part[encoder]["variance_explained"] for part in result["by_sparsity"]]
            _line(axes, name, ks, errors)
            ends.append((name, result["label"], ks[-1], errors[-1]))
        errors = [1 - point[encoder]["variance_explained"] for point in refitted.values()]
        _line(axes, REFITTED, list(refitted), errors)
        ends.append((REFITTED, "DB-KSVD, fit at each L0", max(refitted), errors[-1]))
        axes.set(xscale="log", yscale="log", xlabel="nonzeros a row, L0", title=f"{title} on the atoms of each")
        axes.set_xticks(SPARSITIES, [str(k) for k in SPARSITIES])
        axes.set_xticks([], minor=True)
        _ticks(axes)
        _labels(axes, ends)
    panels[0].set_ylabel("variance not explained, held-out rows")
    _save(figure, path)


def _short_trainings(results: dict[str, Result]) -> dict[str, dict[str, Any]]:
    """The end of the best training of each autoencoder in the search: shorter, with a schedule of its own."""
    ends: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        if name.startswith("search-"):
            end, key = result["curve"][-1], f"saelens-{name.split('-')[1]}"
            if key not in ends or end["native"]["variance_explained"] > ends[key]["native"]["variance_explained"]:
                ends[key] = end
    return ends


def _line(axes: Axes, name: str, x: list[float], y: list[float]) -> None:
    colour, dashes, marker = STYLES[name]
    width = 2.2 if name.startswith("dbksvd") else 1.5
    axes.plot(x, y, color=colour, linestyle=dashes, marker=marker, markersize=4, linewidth=width)


def _ticks(axes: Axes) -> None:
    ticks = [tick for tick in (0.03, 0.05, 0.07, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7) if _within(axes, tick)]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)


def _within(axes: Axes, y: float) -> bool:
    low, high = axes.get_ylim()
    return low <= y <= high


def _labels(axes: Axes, ends: list[tuple[str, str, float, float]]) -> None:
    """A label beside the axes for the end of each line, moved apart where they would overlap."""
    to_axes = axes.transScale + axes.transLimits
    placed = sorted((to_axes.transform((x, y))[1], x, y, name, label) for name, label, x, y in ends)
    heights = []
    for height, *_ in placed:
        heights.append(max(height, heights[-1] + LABEL_GAP) if heights else height)
    too_high = max(0.0, heights[-1] - 1.0)
    for height, (_, x, y, name, label) in zip(heights, placed, strict=True):
        colour = STYLES[name][0]
        axes.annotate(
            label, (x, y), xytext=(1.04, height - too_high), textcoords="axes fraction", color=colour, va="center",
            fontsize=9, arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6},
        )  # fmt: skip


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)
