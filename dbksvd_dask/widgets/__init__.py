"""Widgets for notebooks: a fit as it goes, and the atoms of a dictionary; they need the extra "notebook"."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbksvd_dask.widgets.explorer import AtomExplorer
    from dbksvd_dask.widgets.monitor import ConvergenceMonitor

__all__ = ["AtomExplorer", "ConvergenceMonitor"]


def __getattr__(name: str) -> Any:
    # On first use, since importing ipywidgets takes a third of a second and makes notebook front ends load them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        if name == "AtomExplorer":
            from dbksvd_dask.widgets.explorer import AtomExplorer as widget
        else:
            from dbksvd_dask.widgets.monitor import ConvergenceMonitor as widget  # type: ignore[assignment]
    except ModuleNotFoundError as error:
        if error.name not in {"anywidget", "ipywidgets", "traitlets"}:
            raise
        message = f'{name} needs {error.name}, which is missing: pip install "dbksvd-dask[notebook]"'
        raise ImportError(message, name=error.name) from error
    return widget
