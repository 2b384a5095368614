"""A researcher opens JupyterLab, watches a fit, pauses and stops it with the mouse, and looks at the atoms."""

import re
from itertools import pairwise

import pytest

READABLE = 4.5
"""Least contrast of text, by WCAG 2.1."""

FIT = "run = model.fit_async("
SCORE = "model.stopped_by_"
AGAIN = "display(run.monitor)"
REPRS = "display(run, model, model.dictionary_, model.dictionary_.encode(held_out))"
CLUSTER = """from dask.distributed import Client

client = Client(n_workers=2, threads_per_worker=1, dashboard_address=":0")
client"""


class Monitor:
    """The convergence monitor under a cell, and what it has shown since the page was opened."""

    def __init__(self, notebook, cell):
        self.page = notebook.page
        self.box = notebook.cell(cell).locator(".dbksvd-monitor")

    @property
    def points(self):
        return int(self.box.get_attribute("data-points"))

    @property
    def shown(self):
        """(milliseconds, state, points) at each change."""
        return self.page.evaluate("shown")

    def wait_for(self, state):
        self.box.and_(self.page.locator(f"[data-state={state}]")).wait_for()

    def wait_for_points(self, n):
        self.page.wait_for_function("([box, n]) => box.dataset.points >= n", arg=[self.box.element_handle(), n])

    def press(self, button):
        """Click on it: when, on the clock of `shown`."""
        now = self.page.evaluate("performance.now()")
        self.box.get_by_role("button", name=button, exact=True).click()
        return now


def keep_what_is_shown(page):
    page.add_init_script("""
        const shown = window.shown = [];
        new MutationObserver(([{ target }]) => {
            shown.push([performance.now(), target.dataset.state, Number(target.dataset.points)]);
        }).observe(document, { subtree: true, attributeFilter: ["data-points", "data-state"] });
    """)


def milliseconds_of_iterations(shown):
    """Between one point and the next."""
    times = [time for (_, _, before), (time, _, after) in pairwise(shown) if after > before]
    return [after - before for before, after in pairwise(times)]


def watch_pause_resume_and_stop(monitor):
    monitor.wait_for("running")
    for _ in range(4):
        monitor.wait_for_points(monitor.points + 1)

    monitor.press("Pause")
    monitor.wait_for("paused")
    n_points = monitor.points
    iterations = milliseconds_of_iterations(monitor.shown)
    monitor.page.wait_for_timeout(3 * iterations[-1])  # in which three more points would have come
    assert monitor.points == n_points

    monitor.press("Resume")
    monitor.wait_for("running")
    monitor.wait_for_points(n_points + 3)

    pressed = monitor.press("Stop")
    monitor.wait_for("finished")
    ended = next(time for time, state, _ in monitor.shown if state == "finished")
    assert ended - pressed < max(iterations) + 1000
    assert "stopped by hand" in monitor.box.inner_text()
    assert not monitor.box.get_by_role("button", name=re.compile("Pause|Resume|Stop")).count()


def photograph(notebook, box, path):
    """In the dark theme and in the light one, in both of which all text has to be readable."""
    notebook.page.mouse.move(0, 0)
    for theme in ("Dark", "Light"):
        notebook.use_theme(f"JupyterLab {theme}")
        box.evaluate("box => box.scrollIntoView({ block: 'center' })")
        box.screenshot(path=f"{path}-{theme.lower()}.png", animations="disabled")
        contrasts = box.evaluate(CONTRASTS)
        assert contrasts
        assert {text: contrast for text, contrast in contrasts.items() if contrast < READABLE} == {}, theme


CONTRASTS = """box => {
    const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const luminance = color => {  // painted over what was painted before
        pixel.fillStyle = color;
        pixel.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].map(value => value / 255)
            .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const around = element => element ? [...around(element.parentElement), element] : [];
    const contrasts = {};
    const texts = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest(":disabled")) continue;
        const [behind] = around(element).map(one => luminance(getComputedStyle(one).backgroundColor)).slice(-1);
        const style = getComputedStyle(element);
        const before = luminance(element instanceof SVGElement ? style.fill : style.color);
        const contrast = (Math.max(before, behind) + 0.05) / (Math.min(before, behind) + 0.05);
        const text = texts.currentNode.data.trim();
        contrasts[text] = Math.min(contrast, contrasts[text] ?? contrast);
    }
    return contrasts;
}"""


def test_a_fit_is_watched_paused_resumed_and_stopped_and_the_later_cells_use_the_model(
    open_notebook, page, photographs
):
    keep_what_is_shown(page)
    notebook = open_notebook("01_quickstart", after=[REPRS, AGAIN])
    notebook.run_all()
    monitor = Monitor(notebook, FIT)
    watch_pause_resume_and_stop(monitor)

    notebook.wait_until_run(AGAIN)
    assert "ended by: stop" in notebook.printed(SCORE)
    assert 0.3 < float(re.search(r"explained: (\S+)", notebook.printed(SCORE))[1]) < 1

    again = Monitor(notebook, AGAIN)
    again.wait_for("finished")
    assert again.points == monitor.points
    again.box.scroll_into_view_if_needed()
    again.box.locator(".dbksvd-svg .dbksvd-line").first.wait_for()
    photograph(notebook, again.box, photographs / "monitor")
    photograph(notebook, notebook.cell(REPRS).locator(".jp-OutputArea"), photographs / "reprs")

    n_points = again.points
    notebook.reload()
    notebook.run(AGAIN)
    again.wait_for("finished")
    assert again.points == n_points


@pytest.mark.parametrize("kernel", ["python3"])  # where tasks are computed is no matter of the kernel
def test_it_goes_the_same_way_on_two_processes(open_notebook, page):
    keep_what_is_shown(page)
    notebook = open_notebook("01_quickstart", before=[CLUSTER], after=[AGAIN])
    notebook.run_all()
    monitor = Monitor(notebook, FIT)
    watch_pause_resume_and_stop(monitor)
    link = monitor.box.get_by_role("link", name="Dask dashboard").get_attribute("href")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/status", link)
    notebook.wait_until_run(AGAIN)


def test_interrupting_the_kernel_ends_a_blocking_fit_and_the_next_cell_uses_the_model(open_notebook):
    fit = """import dbksvd_dask as dbk

Y = dbk.open_embeddings("../data/minilm-wikitext2.zarr")
say = lambda model, iteration: print("iteration", iteration.iteration)
model = dbk.DBKSVD(256, 10, batch_size=5120, max_iter=10**6, callbacks=[say])
model.fit(Y)"""
    use = "print(model.stopped_by_, model.score(Y))"
    notebook = open_notebook(before=[fit, use])
    notebook.run_all()
    notebook.wait_until_printed("model.fit(Y)", "iteration 2")
    notebook.command("notebook:interrupt-kernel")
    notebook.wait_until_run(use)
    ended_by, score = notebook.printed(use).split()
    assert ended_by == "interrupt"
    assert 0.3 < float(score) < 1


@pytest.mark.parametrize("kernel", ["python3"])  # no cell runs meanwhile: it is the same with any ipykernel
def test_an_atom_is_chosen_and_its_tokens_are_seen(open_notebook, page, photographs):
    asked = "print(explorer.chosen, D.labels)"
    notebook = open_notebook("02_explore_atoms", after=[asked])
    notebook.run_all()
    notebook.wait_until_run(asked)
    explorer = notebook.cell("D.explore(").locator(".dbksvd-explorer")
    explorer.scroll_into_view_if_needed()
    detail = explorer.locator(".dbksvd-detail")

    explorer.get_by_role("button", name="Clear the search").click()  # of the notebook itself
    row = explorer.locator(".dbksvd-row[aria-selected=false]").nth(5)
    atom = row.get_attribute("data-atom")
    row.click()
    detail.and_(page.locator(f'[data-atom="{atom}"]')).wait_for()
    tokens = detail.locator(".dbksvd-example .dbksvd-at").all_inner_texts()
    assert len(tokens) >= 2
    assert all(token.strip() for token in tokens)

    name = detail.get_by_label("Label this atom")
    name.fill("found by a click")
    name.press("Enter")
    notebook.run(asked)
    assert notebook.printed(asked).startswith(f"{atom} ")
    assert f"{atom}: 'found by a click'" in notebook.printed(asked)
    photograph(notebook, explorer, photographs / "explorer")
