"""How long a researcher waits: Run All of 01_quickstart in JupyterLab to the first point, Stop to the end of the fit.

``python benchmarks/notebook.py`` measures each several times in headless Chromium, with compiled kernels on disk, or
``--cold``, without them; and the share of an iteration that the monitor takes.
"""

import argparse
import os
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser.conftest import CHROMIUM, FLAGS
from browser.lab import Lab, Notebook

WATCH = """
    window.seen = {};
    new MutationObserver(changes => {
        for (const { target } of changes) {
            const { points, state } = target.dataset;
            if (points > 0) seen.point ??= performance.now();
            seen[state] ??= performance.now();
        }
    }).observe(document, { subtree: true, attributeFilter: ["data-points", "data-state"] });
"""
TIMED = """
from time import perf_counter
from dbksvd_dask.widgets import ConvergenceMonitor
spent, add = [], ConvergenceMonitor.add
def timed(self, iteration):
    start = perf_counter()
    add(self, iteration)
    spent.append(perf_counter() - start)
ConvergenceMonitor.add = timed
"""
SHARE = "print(sum(spent) / float(model.history_.seconds.sum()))"


def journey(browser: object, folder: Path, timed: bool) -> tuple[float, float, float]:
    """Seconds to the first point and from Stop to the end, and the share of the monitor, NaN unless `timed`."""
    folder.mkdir()
    lab = Lab(folder, {"python3": None})
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(WATCH)
    notebook = Notebook(page, lab.write(cells(timed), "python3"))
    begun = page.evaluate("performance.now()")
    notebook.run_all()
    page.wait_for_function("window.seen.point")
    page.wait_for_timeout(2000)
    pressed = page.evaluate("performance.now()")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_function("window.seen.finished")
    seen = page.evaluate("seen")
    share = float("nan")
    if timed:
        notebook.wait_until_run(SHARE)
        share = float(notebook.printed(SHARE))
    page.close()
    lab.close()
    return (seen["point"] - begun) / 1000, (seen["finished"] - pressed) / 1000, share


def cells(timed: bool) -> list:
    import nbformat

    notebook = nbformat.read(Path(__file__).parents[1] / "notebooks" / "01_quickstart.ipynb", as_version=4)
    extra = [nbformat.v4.new_code_cell(text) for text in (TIMED, SHARE)]
    return [extra[0], *notebook.cells, extra[1]] if timed else notebook.cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cold", action="store_true", help="an empty cache of compiled kernels each time")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, timed in (("as it is", False), ("monitor timed", True)):
            found = []
            for repeat in range(options.repeats):
                if options.cold:
                    os.environ["NUMBA_CACHE_DIR"] = f"{folder}/numba-{name}-{repeat}"
                found.append(journey(browser, Path(folder, f"{name}-{repeat}"), timed))
            point, stop, share = zip(*found, strict=True)
            print(f"{name}: first point after {median(point):.2f} s ({min(point):.2f} to {max(point):.2f})", end="; ")
            print(f"Stop takes {median(stop):.2f} s ({min(stop):.2f} to {max(stop):.2f})", end="; ")
            print(f"monitor {100 * median(share):.2f} % of an iteration")
        browser.close()


if __name__ == "__main__":
    main()
