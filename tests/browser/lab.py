"""A JupyterLab server with everything of its own, and a notebook in it as the researcher's browser shows it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import nbformat

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds after which something hangs; nothing is asserted of it."""


class Lab:
    """A JupyterLab server on a free port of 127.0.0.1, on copies of the notebooks beside the sample data.

    `kernels` are the kernels' names, each with the folder of the ipykernel that it runs, or None for the one installed.
    """

    def __init__(self, folder, kernels):
        self.log = folder / "lab.log"
        self._root = folder / "root"
        self._folder = folder
        shutil.copytree(REPOSITORY / "notebooks", self._root / "notebooks")
        shutil.copytree(REPOSITORY / "data", self._root / "data")
        self._write_settings()
        for name, ipykernel in kernels.items():
            self._write_kernelspec(name, ipykernel)
        self._token = os.urandom(16).hex()
        with self.log.open("wb") as log:
            self._server = subprocess.Popen(self._command(), env=self._environment(), stdout=log, stderr=log)
        self.address = wait_for(self._listens_at, f"JupyterLab, see {self.log}")

    def close(self):
        """End the server, and with it its kernels."""
        self._server.terminate()
        self._server.wait(PATIENCE)

    def write(self, cells, kernel):
        """Write a notebook of these cells for a kernel: its address."""
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
        file = f"{os.urandom(8).hex()}.ipynb"
        nbformat.write(notebook, self._root / "notebooks" / file)
        return f"{self.address}lab/tree/notebooks/{file}?token={self._token}&reset"

    def _command(self):
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": 0,
            "ServerApp.root_dir": self._root,
            "ServerApp.open_browser": False,
            "LabApp.expose_app_in_browser": True,
            "LabApp.extension_manager": "readonly",
            "LabApp.workspaces_dir": self._folder / "workspaces",
            "LabApp.user_settings_dir": self._folder / "settings",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "jupyterlab", *(["--allow-root"] if os.geteuid() == 0 else []), *arguments]

    def _environment(self):
        folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
        own = {name: str(self._folder / name.lower()) for name in folders}
        return os.environ | own | {"JUPYTER_PATH": str(self._folder / "specs"), "JUPYTER_TOKEN": self._token}

    def _write_settings(self):
        settings = self._folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        news = {"fetchNews": "false", "checkForUpdates": False}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(news))

    def _write_kernelspec(self, name, ipykernel):
        spec = self._folder / "specs" / "kernels" / name
        spec.mkdir(parents=True)
        # A script's own folder is where Python looks first.
        launcher = ["-m", "ipykernel_launcher"] if ipykernel is None else [str(ipykernel / "ipykernel_launcher.py")]
        command = [sys.executable, *launcher, "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": name, "language": "python"}))

    def _listens_at(self):
        assert self._server.poll() is None, f"JupyterLab ended, see {self.log}"
        for file in (self._folder / "jupyter_runtime_dir").glob("jpserver-*.json"):
            if text := file.read_text():
                return json.loads(text)["url"]
        return None


class Notebook:
    """A notebook open in a page of the browser; its cells go by some text that only they have."""

    def __init__(self, page, address):
        self.page = page
        page.goto(address)
        self._wait_for_kernel()

    def run_all(self):
        """Run → Run All Cells, as from the menu."""
        self.command("notebook:run-all-cells")

    def run(self, text):
        """Run a cell, to its end."""
        index = self._index(text)
        self._evaluate(f"[notebook.content.activeCellIndex = {index}, cells[{index}].executionCount = null]")
        self.command("notebook:run-cell")
        self.wait_until_run(text)

    def command(self, name, **arguments):
        """Start a command of JupyterLab."""
        self.page.evaluate("([name, args]) => void jupyterapp.commands.execute(name, args)", [name, arguments])

    def use_theme(self, name):
        """Settings → Theme."""
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)
        self._wait_for_end_of_splash()

    def reload(self):
        """The page anew, as the researcher who closes it and comes back; the kernel goes on."""
        self.page.reload()
        self._wait_for_kernel()

    def cell(self, text):
        """Where the page shows that cell."""
        return self.page.locator(f'.jp-Notebook .jp-Cell[data-windowed-list-index="{self._index(text)}"]')

    def wait_until_run(self, text):
        """Wait for the end of that cell; neither it nor another may raise or print to stderr."""
        cell = f"cells[{self._index(text)}]"
        self._wait_until(f"{cell}.executionState === 'idle' && {cell}.executionCount !== null || {ERRORS}.length")
        errors = self._evaluate(ERRORS)
        assert not errors, errors

    def wait_until_printed(self, text, printed):
        """Wait until that cell has printed this."""
        self._wait_until(f"JSON.stringify(cells[{self._index(text)}].outputs.toJSON()).includes({json.dumps(printed)})")

    def printed(self, text):
        """What that cell has printed or shown, as text."""
        outputs = self._evaluate(f"cells[{self._index(text)}].outputs.toJSON()")
        return "".join("".join(output.get("text") or output["data"]["text/plain"]) for output in outputs)

    def _index(self, text):
        sources = self._evaluate("cells.map(cell => cell.type === 'code' ? cell.sharedModel.getSource() : '')")
        (index,) = (index for index, source in enumerate(sources) if text in source)
        return index

    def _wait_for_kernel(self):
        self._wait_until("notebook?.sessionContext?.session?.kernel?.status === 'idle'")
        self._wait_for_end_of_splash()

    def _wait_for_end_of_splash(self):
        """Of what JupyterLab shows while it changes the theme: two of them at the same time are an error in it."""
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def _evaluate(self, expression):
        return self.page.evaluate(f"() => {{ {NOTEBOOK} return {expression} }}")

    def _wait_until(self, condition):
        self.page.wait_for_function(f"() => {{ {NOTEBOOK} return {condition} }}")


NOTEBOOK = """
    const notebook = window.jupyterapp?.shell.currentWidget;
    const cells = [...(notebook?.content?.model?.cells ?? [])];
    const outputs = cells.flatMap(cell => cell.outputs?.toJSON() ?? []);
"""
ERRORS = "outputs.filter(output => output.output_type === 'error' || output.name === 'stderr')"


def wait_for(condition, what):
    """Wait until a condition gives something true: what it gives."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    raise TimeoutError(f"{what}: not within {PATIENCE:.0f} s")


def leaves(url):
    """Whether a request would leave the machine."""
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "about") and parts.hostname != "127.0.0.1"
