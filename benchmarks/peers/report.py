"""Tables of what `learn` wrote."""

import json
from pathlib import Path
from typing import Any

Result = dict[str, Any]
ENCODERS = ("native", "mp", "omp")
OURS = "dbksvd-mp"
ROUNDING = 1e-6


def read(folder: Path) -> dict[str, Result]:
    """All results of a folder by name; those that are not there yet are left out."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def tables(results: dict[str, Result]) -> str:
    """Quality and cost, what else was scored, and the search of learning rates, in Markdown."""
    compared = {name: result for name, result in results.items() if is_compared(name)}
    searched = {name: result for name, result in results.items() if name.startswith("search-")}
    ours = results.get(OURS)
    by_score = sorted(compared.values(), key=lambda result: -result["curve"][-1]["omp"]["variance_explained"])
    parts = [
        markdown([quality(result, ours) for result in by_score]),
        markdown([details(result) for result in by_score]),
        markdown([sparsity(result) for result in by_score]),
        markdown([rate(result) for result in searched.values()]),
    ]
    return "\n\n".join(part for part in parts if part)


def is_compared(name: str) -> bool:
    """Whether a result is one of the learners at L0 = 20, and no search or refit."""
    return not name.startswith(("search-", "dbksvd-k"))


def quality(result: Result, ours: Result | None) -> dict[str, str]:
    """Variance explained, its cost, and what it costs us to explain as much, encoder by encoder."""
    last = result["curve"][-1]
    explained = [last[encoder]["variance_explained"] for encoder in ENCODERS]
    row = {
        "": result["label"],
        "CPU s": f"{last['cpu_seconds']:.0f}",
        "wall s": f"{last['seconds']:.0f}",
        "samples seen": f"{last['n_samples']:,}",
        "peak, MB": f"{result['peak_megabytes']:.0f}",
        "own codes": f"{decimal(explained[0])} ({result['own']})",
        "MP": decimal(explained[1]),
        "OMP": decimal(explained[2]),
    }
    if ours:
        at = ("omp" if result["own"] == "OMP" else "mp", "mp", "omp")
        times = [seconds_to(ours, encoder, score) for encoder, score in zip(at, explained, strict=True)]
        row["DB-KSVD has that after, CPU s"] = ", ".join("–" if t is None else f"{t:.1f}" for t in times)
    return row


def seconds_to(ours: Result, encoder: str, score: float) -> float | None:
    """CPU seconds of the first dictionary shown that explains as much; None where none does."""
    reached = [p["cpu_seconds"] for p in ours["curve"] if p[encoder]["variance_explained"] >= score - ROUNDING]
    return min(reached, default=None)


def details(result: Result) -> dict[str, str]:
    """What else was scored, of the last dictionary."""
    last = result["curve"][-1]

    def each(name: str, form: Any) -> str:
        return ", ".join(form(last[encoder][name]) for encoder in ENCODERS)

    return {
        "own codes, MP, OMP": result["label"],
        "variance explained per feature": each("variance_explained_per_feature", decimal),
        "relative error": each("relative_error", decimal),
        "L0 of own codes": f"{last['native']['l0']:.1f}",
        "coherence, median and max": f"{decimal(result['coherence']['median'])}, {decimal(result['coherence']['max'])}",
        "unused atoms": each("unused", str),
    }


def sparsity(result: Result) -> dict[str, str]:
    """Variance explained by the last atoms with other numbers of nonzeros, MP and OMP."""
    pairs = {
        f"k = {part['k']}": ", ".join(decimal(part[encoder]["variance_explained"]) for encoder in ("mp", "omp"))
        for part in result["by_sparsity"]
    }
    return {"MP, OMP": result["label"]} | pairs


def rate(result: Result) -> dict[str, str]:
    """A learning rate that was tried."""
    last = result["curve"][-1]
    return {
        "searched": result["label"],
        "learning rate": f"{result['settings']['lr']:g}",
        "samples": f"{last['n_samples']:,}",
        "CPU s": f"{last['cpu_seconds']:.0f}",
        "own codes, MP, OMP": ", ".join(decimal(last[encoder]["variance_explained"]) for encoder in ENCODERS),
        "unused by own codes": str(last["native"]["unused"]),
    }


def decimal(value: float) -> str:
    """Three decimals without the leading zero, as these pages write them."""
    return f"{value:.3f}".replace("0.", ".", 1)


def markdown(rows: list[dict[str, str]]) -> str:
    """A table; nothing for no rows."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
