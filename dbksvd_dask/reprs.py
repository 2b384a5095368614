"""HTML of models, dictionaries, codes and runs for notebooks: tables and small drawings, no script and no request."""

from collections.abc import Mapping, Sequence
from html import escape
from inspect import signature
from math import isnan
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.utils import format_bytes, format_time

if TYPE_CHECKING:
    from dbksvd_dask.codes import SparseCodes
    from dbksvd_dask.dictionary import Dictionary
    from dbksvd_dask.estimator import DBKSVD
    from dbksvd_dask.memory import MemoryPlan
    from dbksvd_dask.run import Run

Rows = Sequence[tuple[str, ...]]
"""Of a table: the name of each row, and its values."""

MOST_LABELS = 100
MOST_CUTS = 40
MOST_POINTS = 200
LONGEST_SIDE = 110
CHART_WIDTH, CHART_HEIGHT = 200, 56

# Colours that tell apart the colour-blind and stand out from white and from black; the dashes do it without colour.
CURVES = {
    "train_relative_error": ("training", "var(--jp-brand-color1, #1976d2)", "none"),
    "validation_relative_error": ("validation", "#d55e00", "5 3"),
    "relative_error": ("training", "var(--jp-brand-color1, #1976d2)", "none"),  # of `ksvd_baseline`
}

# The colours follow from that of the text around, which every host sets for its theme: a page with widgets in it may
# hold JupyterLab's variables of the light theme although it is dark. What must win against the host's own tables,
# whose selectors are more specific, is important. Everything is readable also where a host takes the style out.
STYLE = """<style>
.dbksvd-repr { font: 13px/1.5 var(--jp-ui-font-family, system-ui, sans-serif); display: inline-block; max-width: 100%;
  box-sizing: border-box; margin: 2px 0; padding: 10px 14px; border-radius: 4px;
  border: 1px solid color-mix(in srgb, currentColor 18%, transparent); }
.dbksvd-repr .dbksvd-head { margin: 0 0 8px; display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 10px; }
.dbksvd-repr .dbksvd-head b { font-size: 14px; font-weight: 600; }
.dbksvd-repr .dbksvd-state { font-size: 11px; line-height: 17px; padding: 0 7px; border-radius: 9px;
  background: color-mix(in srgb, currentColor 10%, transparent); }
.dbksvd-repr .dbksvd-failed { color: var(--jp-error-color1, #d64545); }
.dbksvd-repr .dbksvd-body:empty { display: none; }
.dbksvd-repr .dbksvd-body { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 12px 36px; }
.dbksvd-repr table { width: auto !important; margin: 0 !important; border: 0 !important; table-layout: auto !important;
  border-collapse: collapse; font: inherit !important; color: inherit !important; background: none !important;
  display: table !important; box-shadow: none !important; font-variant-numeric: tabular-nums !important; }
.dbksvd-repr :is(thead, tbody, tr) { border: 0 !important; background: none !important; }
.dbksvd-repr :is(th, td) { padding: 1px 0 1px 18px !important; border: 0 !important; background: none !important;
  text-align: left !important; vertical-align: top !important; font-weight: 400 !important; line-height: 1.5 !important;
  color: inherit !important; overflow-wrap: anywhere; min-width: 0 !important; max-width: 44em !important; }
.dbksvd-repr :is(th, td):first-child { padding-left: 0 !important; }
.dbksvd-repr :is(th, .dbksvd-name) { opacity: .66; white-space: nowrap !important; }
.dbksvd-repr svg { display: block; overflow: visible; }
.dbksvd-repr details { margin: 8px 0 0; }
.dbksvd-repr summary { cursor: pointer; opacity: .75; }
.dbksvd-repr details table { margin: 4px 0 0 14px !important; }
.dbksvd-repr table ~ :is(.dbksvd-legend, svg) { margin-top: 10px; }
.dbksvd-repr .dbksvd-legend { font-size: 12px; margin: 0 0 4px; display: flex; flex-wrap: wrap; gap: 0 14px; }
.dbksvd-repr .dbksvd-legend span { display: inline-flex; align-items: center; gap: 5px; }
</style>"""


def model_html(model: "DBKSVD") -> str:
    """HTML of a model: its parameters and, once it is fitted, how the fit went.

    Parameters
    ----------
    model : DBKSVD

    Examples
    --------
    >>> from dbksvd_dask import DBKSVD
    >>> "not fitted" in model_html(DBKSVD(1024, 20))
    True
    """
    summary, changed, others = _parameters(model)
    details = _details(f"{len(others)} parameters at their defaults", others)
    # Neither is there before the first fit: scikit-learn's NotFittedError is an AttributeError.
    atoms, history = getattr(model, "components_", None), getattr(model, "history_", None)
    if atoms is None or history is None:
        return _card("DBKSVD", "not fitted", [_table(changed)], details, summary)
    facts = [("Atoms", _product(atoms.shape)), ("Dtype", str(atoms.dtype)), ("Iterations", _count(model.n_iter_))]
    if history.sizes["iteration"]:
        facts += [
            ("Samples seen", _count(int(history.n_samples_seen[-1]))),
            ("Unused atoms", _count(int(history.n_unused_atoms[-1]))),
            ("Wall time", format_time(float(history.seconds.sum()))),
        ]
    ended_by = getattr(model, "stopped_by_", None)
    if ended_by is not None:
        facts.append(("Ended by", ended_by))
    return _card("DBKSVD", "fitted", [_table(changed), _table(facts), _figures(history)], details, summary)


def dictionary_html(dictionary: "Dictionary") -> str:
    """HTML of a dictionary: its size and a drawing of it, how it encodes, and where it comes from.

    Parameters
    ----------
    dictionary : Dictionary

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import Dictionary
    >>> "3 atoms × 3 features" in dictionary_html(Dictionary(np.eye(3)))
    True
    """
    m, sizes = dictionary.n_atoms, dictionary.group_sizes
    k = dictionary.n_nonzero_coefs
    facts = [
        ("Atoms", _count(m)),
        ("Features", _count(dictionary.n_features)),
        ("Dtype", str(dictionary.dtype)),
        ("Size", format_bytes(dictionary.atoms.nbytes)),
        ("k", "chosen when encoding" if k is None else f"at most {_count(k)} nonzero a sample"),
        ("Encoder", _encoder(dictionary)),
        ("Mean", "none" if dictionary.mean is None else "taken before encoding"),
    ]
    if sizes:
        facts.append(("Matryoshka groups", f"{_count(len(sizes))}: {_text(sizes)}"))
    labels = list(dictionary.labels.items())
    if labels:
        facts.append(("Labelled atoms", _count(len(labels))))
    title = f"{_count(m)} atoms × {_count(dictionary.n_features)} features"
    title += f" in {len(sizes)} groups" if sizes else ""
    block = _block(dictionary.atoms.shape, np.cumsum(sizes)[:-1] / m, title)
    shown = [(str(atom), label) for atom, label in labels[:MOST_LABELS]]
    if len(labels) > MOST_LABELS:
        shown.append(("…", f"{_count(len(labels) - MOST_LABELS)} more"))
    details = _details("Labels", shown) + _details("Provenance", _flat(dictionary.provenance))
    return _card("Dictionary", "", [_table(facts), block, _chart(dictionary.history)], details)


def codes_html(codes: "SparseCodes") -> str:
    """HTML of sparse codes: their size and a drawing of them with their chunks. Nothing is computed.

    Parameters
    ----------
    codes : SparseCodes

    Examples
    --------
    >>> import dask.array as da
    >>> from dbksvd_dask import SparseCodes
    >>> lazy = SparseCodes(da.zeros((5, 2), dtype="i4", chunks=1), da.ones((5, 2), chunks=1), n_atoms=3)
    >>> "5 chunks" in codes_html(lazy)
    True
    """
    n, m = codes.shape
    chunks = codes.indices.chunks[0] if isinstance(codes.indices, da.Array) else ()
    lazy, rows_of_chunks = bool(chunks), np.array(chunks or [n])
    n_chunks = f"{_count(len(rows_of_chunks))} chunk{'s' if len(rows_of_chunks) > 1 else ''}"
    facts = [
        ("Samples", _count(n)),
        ("Atoms", _count(m)),
        ("k", f"at most {_count(codes.n_nonzero_coefs)} nonzero a sample"),
        ("Dtype", f"{codes.dtype}, atoms {codes.indices.dtype}"),
        ("Size once computed" if lazy else "Size in memory", format_bytes(codes.indices.nbytes + codes.values.nbytes)),
        ("Chunks", f"{n_chunks} of {_range(rows_of_chunks)} samples") if lazy else ("Chunks", "none"),
    ]
    if codes.coords:
        facts.append(("Coordinates", ", ".join(map(str, codes.coords))))
    ends = np.cumsum(rows_of_chunks)
    title = f"{_count(n)} samples × {_count(m)} atoms" + (f" in {n_chunks}" if lazy else "")
    block = _block((n, m), ends[:-1] / max(n, 1), title)
    return _card("SparseCodes", "lazy" if lazy else "in memory", [_table(facts), block])


def run_html(run: "Run") -> str:
    """HTML of a run: its state, how far it is, and the last figures of its model.

    Parameters
    ----------
    run : Run

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import DBKSVD
    >>> run = DBKSVD(12, 3, max_iter=5).fit_async(np.random.default_rng(0).standard_normal((500, 8)))
    >>> model = run.wait()
    >>> "5 of 5" in run_html(run)
    True
    """
    n_done, n_iterations, state = run.n_done, run.n_iterations, run.state
    facts = [("Iterations", f"{_count(n_done)} of {_count(n_iterations)}" if n_iterations else "none yet")]
    columns = [_table(facts) + _bar(n_done, n_iterations)]
    history = getattr(run.model, "history_", None)
    if n_done and history is not None:  # before that it is the history of an earlier fit
        columns.append(_figures(history))
    return _card("Run", state, columns, summary=run.message)


def plan_html(plan: "MemoryPlan") -> str:
    """HTML of a plan: what is held in memory, and what to change where that is too much.

    Parameters
    ----------
    plan : MemoryPlan

    Examples
    --------
    >>> from dbksvd_dask.memory import MemoryPlan
    >>> "fits" in plan_html(MemoryPlan({"process": 2**28}, per_task=0, driver=0, limit=2**30, advice=""))
    True
    """
    advice = _table([(line,) for line in plan.advice.splitlines()])
    state = "fits" if plan.fits else "does not fit"
    return _card("Memory plan", state, [_table(plan.rows()), advice])


def _parameters(model: "DBKSVD") -> tuple[str, Rows, Rows]:
    """First m and k, then the others that are not at their defaults, then those that are."""
    given = {name: _text(value) for name, value in model.get_params(deep=False).items()}
    summary = f"m = {given.pop('n_components')}, k = {given.pop('n_nonzero_coefs')}"
    changed: list[tuple[str, ...]] = []
    others: list[tuple[str, ...]] = []
    for name, parameter in signature(type(model)).parameters.items():
        if name in given:
            (others if given[name] == _text(parameter.default) else changed).append((name, given[name]))
    return summary, changed, others


def _encoder(dictionary: "Dictionary") -> str:
    nonnegative = ", nonnegative" if dictionary.nonnegative else ""
    return f"{dictionary.encoder}{nonnegative}" + (f", rtol {dictionary.rtol:g}" if dictionary.rtol else "")


def _figures(history: xr.Dataset) -> str:
    """The figures of the last iteration, and how the error came down; nothing without iterations."""
    if not history.sizes["iteration"]:
        return ""
    last = history.isel(iteration=-1)
    kinds = {"training": "train", "validation": "validation"}
    if history.validation_relative_error.isnull().all():
        del kinds["validation"]
    figures = {
        "Relative error": ("relative_error", 4),
        "Variance explained": ("variance_explained", 4),
        "L0": ("l0", 2),
    }
    rows = [
        (name, *(_decimal(float(last[f"{kind}_{figure}"]), digits) for kind in kinds.values()))
        for name, (figure, digits) in figures.items()
    ]
    return _table(rows, head=("", *kinds)) + _chart(history)


def _chart(history: xr.Dataset) -> str:
    """The error over iterations as small curves between its largest and its smallest; nothing for fewer than two."""
    n = history.sizes.get("iteration", 0)
    if n < 2:
        return ""
    shown = np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS)).round().astype(int))
    names = [name for name in CURVES if name in history and history[name].dims == ("iteration",)]
    errors = {name: np.asarray(history[name].values, float)[shown] for name in names}
    errors = {name: values for name, values in errors.items() if np.isfinite(values).any()}
    if not errors:
        return ""
    finite = np.concatenate([values[np.isfinite(values)] for values in errors.values()])
    low, high = finite.min(), finite.max()
    drawn, legend, said = [], [], []
    for name, values in errors.items():
        label, color, dashes = CURVES[name]
        known = np.isfinite(values)
        x = shown[known] / (n - 1) * CHART_WIDTH
        y = (1 - (values[known] - low) / ((high - low) or 1)) * CHART_HEIGHT
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        line = f'fill="none" stroke="{color}" stroke-width="1.5" stroke-dasharray="{dashes}"'
        drawn.append(f'<polyline points="{points}" {line} stroke-linejoin="round"/>')
        drawn.append(f'<circle cx="{x[-1]:.1f}" cy="{y[-1]:.1f}" r="2.5" fill="{color}"/>')
        sample = f'<svg width="20" height="8" aria-hidden="true"><path d="M0 4H20" {line}/></svg>'
        legend.append(f"<span>{sample}{label}</span>")
        said.append(f"{label} from {values[known][0]:.4f} to {values[known][-1]:.4f}")
    for y, value in {0: high, CHART_HEIGHT: low}.items():
        drawn.append(f'<path d="M0 {y}H{CHART_WIDTH}" stroke="currentColor" stroke-opacity=".15"/>')
        drawn.append(_svg_text(CHART_WIDTH + 8, y + 4, f"{value:.4f}", "start"))
    title = f"Relative error over {_count(n)} iterations"
    curves = _svg(CHART_WIDTH + 56, CHART_HEIGHT + 14, f"{title}: {', '.join(said)}", drawn, top=-7)
    return f'<div class="dbksvd-legend"><span class="dbksvd-name">{title}</span> {" ".join(legend)}</div>{curves}'


def _block(shape: tuple[int, int], cuts: np.ndarray, title: str) -> str:
    """A matrix as a block with its sizes at its sides, cut across at these fractions of its height; not to scale."""
    longest = max(*shape, 1)
    height, width = (LONGEST_SIDE * max((size / longest) ** 0.5, 0.25) for size in shape)
    every = -(-len(cuts) // MOST_CUTS) or 1
    drawn = [
        f'<rect width="{width:.1f}" height="{height:.1f}" fill="var(--jp-brand-color1, #1976d2)" fill-opacity=".16" '
        'stroke="currentColor" stroke-opacity=".6"/>'
    ]
    for cut in cuts[::every]:
        drawn.append(f'<path d="M0 {cut * height:.1f}H{width:.1f}" stroke="currentColor" stroke-opacity=".35"/>')
    drawn.append(_svg_text(width + 8, height / 2 + 4, _count(shape[0]), "start"))
    drawn.append(_svg_text(width / 2, height + 16, _count(shape[1]), "middle"))
    return _svg(width + 16 + 8 * len(_count(shape[0])), height + 22, title, drawn, left=-8, top=-1)


def _bar(n_done: int, n_iterations: int) -> str:
    if not n_iterations:
        return ""
    track = f'<rect width="{CHART_WIDTH}" height="4" rx="2" fill="currentColor" fill-opacity=".15"/>'
    width = CHART_WIDTH * n_done / n_iterations
    done = f'<rect width="{width:.1f}" height="4" rx="2" fill="var(--jp-brand-color1, #1976d2)"/>'
    return _svg(CHART_WIDTH, 12, f"{_count(n_done)} of {_count(n_iterations)} iterations", [track, done], top=-6)


def _svg(width: float, height: float, title: str, drawn: Sequence[str], left: int = 0, top: int = 0) -> str:
    return (
        f'<svg role="img" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="{left} {top} {width:.0f} {height:.0f}"><title>{escape(title)}</title>{"".join(drawn)}</svg>'
    )


def _svg_text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="currentColor" '
        f'fill-opacity=".75">{escape(text)}</text>'
    )


def _card(kind: str, state: str, columns: Sequence[str], details: str = "", summary: str = "") -> str:
    tone = " dbksvd-failed" if state == "failed" else ""
    chip = f' <span class="dbksvd-state{tone}">{escape(state)}</span>' if state else ""
    body = "".join(f"<div>{column}</div>" for column in columns if column)
    return (
        f'{STYLE}\n<div class="dbksvd-repr"><div class="dbksvd-head"><b>{kind}</b>{chip} {escape(summary)}</div>'
        f'<div class="dbksvd-body">{body}</div>{details}</div>'
    )


def _table(rows: Rows, head: Sequence[str] = ()) -> str:
    if not rows:
        return ""
    names = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in head)
    lines = (
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for name, *values in rows
    )
    return f"<table>{f'<thead><tr>{names}</tr></thead>' if head else ''}<tbody>{''.join(lines)}</tbody></table>"


def _details(summary: str, rows: Rows) -> str:
    return f"<details><summary>{escape(summary)}</summary>{_table(rows)}</details>" if rows else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Rows:
    """The values of nested mappings under the names that lead to them."""
    rows: list[tuple[str, ...]] = []
    for name, value in values.items():
        rows += (
            _flat(value, f"{prefix}{name} / ") if isinstance(value, Mapping) else [(f"{prefix}{name}", _text(value))]
        )
    return rows


def _text(value: Any) -> str:
    """A value in one short line: of arrays only what they are, of what can be called its name."""
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    if getattr(value, "shape", ()):
        dtype = f" of {value.dtype}" if hasattr(value, "dtype") else ""
        return f"{_product(value.shape)} {type(value).__name__}{dtype}"
    if isinstance(value, list | tuple):
        items = [_text(item) for item in value]
        return f"[{', '.join(items if len(items) <= 8 else [*items[:6], '…', items[-1]])}]"
    text = str(value)
    return text if len(text) <= 200 else f"{text[:199]}…"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _product(shape: Sequence[int]) -> str:
    return " × ".join(map(_count, shape))


def _range(numbers: np.ndarray) -> str:
    """One number if they are all the same, else from the least to the most."""
    return " to ".join(dict.fromkeys(_count(number) for number in (numbers.min(), numbers.max())))


def _decimal(number: float, digits: int) -> str:
    return "–" if isnan(number) else f"{number:.{digits}f}"
