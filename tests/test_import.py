"""What importing brings in, and what is compiled in the first process but not in the second."""

import os
import subprocess
import sys

import pytest

import dbksvd_dask

FIT = """
import time
import numpy as np
from numba.core import event
from dbksvd_dask import DBKSVD

Y = np.random.default_rng(0).standard_normal((200, 8)).astype("float32")
run = DBKSVD(12, 3, max_iter=3).fit_async(Y)
messages = {run.message}
with event.install_listener("numba:compile", event.RecordingListener()) as listener:
    while not run.done():
        messages.add(run.message)
        time.sleep(0.002)
    run.wait()
print(len(listener.buffer), any("compiling" in message for message in messages))
"""


def in_a_new_process(script, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def modules_after(script):
    return set(in_a_new_process(f"import sys\n{script}\nprint(*(name.partition('.')[0] for name in sys.modules))"))


def test_the_package_alone_imports_nothing_that_takes_time():
    assert not modules_after("import dbksvd_dask") & {"numpy", "scipy", "sklearn", "numba", "dask", "xarray", "zarr"}


def test_a_fit_imports_no_widgets_and_nothing_optional():
    imported = modules_after(FIT)
    assert {"sklearn", "numba", "dask"} <= imported
    assert not imported & {"ipywidgets", "anywidget", "IPython", "matplotlib", "torch", "cupy", "bokeh"}


@pytest.mark.parametrize("name", dbksvd_dask.__all__)
def test_every_public_name_is_there_whatever_was_imported_before(name):
    everything = "import dbksvd_dask.comparison, dbksvd_dask.sweeps, dbksvd_dask.baseline, dbksvd_dask.plotting"
    loaded = getattr(dbksvd_dask, name)
    assert loaded.__doc__
    if name in ("compare", "sweep"):  # as modules and functions are easily taken for each other
        assert in_a_new_process(f"{everything}\nprint(callable(dbksvd_dask.{name}))") == ["True"]


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        dbksvd_dask.no_such_name  # noqa: B018


def test_kernels_are_compiled_in_the_first_process_which_says_so_and_not_in_the_second(tmp_path):
    n_compiled, said = in_a_new_process(FIT, NUMBA_CACHE_DIR=str(tmp_path))[-2:]
    assert int(n_compiled) > 0
    assert said == "True"
    assert in_a_new_process(FIT, NUMBA_CACHE_DIR=str(tmp_path))[-2:] == ["0", "False"]
