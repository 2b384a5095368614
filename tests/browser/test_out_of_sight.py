"""What is drawn while nobody sees it: a notebook's output is without a size while JupyterLab lays it out anew."""

import numpy as np
import pytest

from dbksvd_dask.history import COHERENCE_BINS, STAGES, Iteration
from dbksvd_dask.widgets import ConvergenceMonitor

ERRORS = (0.9, 0.5, 0.3)


@pytest.fixture
def hidden_page(browser, tmp_path):
    """The static page of a monitor, whose content has no size yet; it must not log an error."""
    monitor = ConvergenceMonitor()
    monitor.begin(len(ERRORS))
    for i, error in enumerate(ERRORS):
        monitor.add(iteration_with(i, error))
    monitor.set_status("finished")
    file = tmp_path / "fit.html"
    monitor.to_html(file)
    file.write_text(file.read_text().replace("<main>", "<main hidden>"))
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(error.stack))
    page.goto(file.as_uri())
    yield page
    page.close()
    assert errors == []


def iteration_with(i, error):
    figures = dict.fromkeys(Iteration.__dataclass_fields__, 1.0)
    arrays = {"coherence_histogram": np.zeros(COHERENCE_BINS, int), "stage_seconds": np.ones(len(STAGES))}
    return Iteration(**figures | arrays | {"iteration": i, "n_samples_seen": 100 * i, "train_relative_error": error})


def test_the_monitor_draws_once_it_is_seen(hidden_page):
    hidden_page.evaluate("document.querySelector('.dbksvd-log').click()")  # something new to draw
    hidden_page.evaluate("() => new Promise(requestAnimationFrame)")
    assert hidden_page.locator(".dbksvd-grid").count() == 0

    hidden_page.evaluate("document.querySelector('main').hidden = false")
    hidden_page.locator(".dbksvd-grid").first.wait_for(state="attached")
    assert hidden_page.locator(".dbksvd-card b").first.inner_text() == "0.3000"
