"""What a GPU needs: each thing that is missing is named with what to do, before any work; arrays that are misplaced."""

import sys
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest
from click.testing import CliRunner

from dbksvd_dask import DBKSVD, Dictionary, SparseCodes, ksvd_baseline, open_embeddings
from dbksvd_dask import device as device_module
from dbksvd_dask.atoms import check_atoms
from dbksvd_dask.batches import read_in_order
from dbksvd_dask.cli import main
from dbksvd_dask.device import check_gpu, warn_of_slow_float64
from dbksvd_dask.graph import delayed_of, task
from dbksvd_dask.inputs import check_support, open_held_out, open_rows
from dbksvd_dask.kernels.backend import on_device
from dbksvd_dask.metrics import relative_error, variance_explained

INSUFFICIENT_DRIVER, NO_DEVICE = 35, 100
CUDA12, CUDA13 = (f'pip install "dbksvd-dask[{extra}]"' for extra in ("cuda12", "cuda13"))


def example():
    return np.random.default_rng(0).standard_normal((300, 6)).astype("float32")


@pytest.fixture
def driver(monkeypatch):
    """Let the driver be one for some version of CUDA, or let there be none."""
    return lambda version: monkeypatch.setattr(device_module, "_driver_version", lambda: version)


@pytest.fixture
def without_gpu(cupy, monkeypatch):
    def fail(status):
        raise cupy.cuda.runtime.CUDARuntimeError(status)

    def without(status, built_for=13_000):
        monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: fail(status))
        monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: built_for)

    return without


# --- what is missing -------------------------------------------------------------------------------------------------


def test_nothing_is_said_where_nothing_is_missing(cupy):
    check_gpu()


@pytest.mark.parametrize(
    ("version", "extras"), [(0, [CUDA12, CUDA13]), (12_040, [CUDA12]), (13_000, [CUDA13]), (14_010, [CUDA13])]
)
def test_without_cupy_the_driver_tells_what_to_install(monkeypatch, driver, version, extras):
    monkeypatch.setitem(sys.modules, "cupy", None)
    driver(version)
    with pytest.raises(ImportError, match="CuPy, which device='cuda' needs, is not installed: ") as caught:
        check_gpu()
    assert [extra for extra in (CUDA12, CUDA13) if extra in str(caught.value)] == extras


def test_a_cupy_that_cannot_be_imported_is_told_in_one_line(monkeypatch, tmp_path, driver):
    broken = "try:\n    raise ImportError('libnvrtc.so.12: not there')\nexcept ImportError as error:\n"
    broken += "    raise ImportError('=====\\nFailed to import CuPy\\n=====') from error\n"
    (tmp_path / "cupy.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    driver(12_040)
    with pytest.raises(ImportError, match=r"^CuPy cannot be imported \(libnvrtc\.so\.12: not there\): pip install .*$"):
        check_gpu()


def test_of_two_cupys_one_has_to_go(cupy, monkeypatch, tmp_path):
    for name in ("cupy_cuda12x", "cupy_cuda13x"):
        metadata = tmp_path / f"{name}-14.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Name: {name.replace('_', '-')}\nVersion: 14.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"cuda12x and cupy-cuda13x.*pip uninstall .*cupy-cuda12x cupy-cuda13x, "):
        check_gpu()


def test_without_numba_cuda(cupy, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba_cuda", None)
    with pytest.raises(ImportError, match="numba-cuda, which device='cuda' needs, is not installed: pip install"):
        check_gpu()


def test_embeddings_that_are_on_a_gpu_already_need_the_rest_too(cupy, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba_cuda", None)
    with pytest.raises(ImportError, match="numba-cuda"):
        open_embeddings(cupy.asarray(example()))


def test_without_the_libraries_of_cuda(cupy, monkeypatch):
    class WithoutLibraries:
        runtime = cupy.cuda.runtime

        @property
        def cublas(self):
            raise ImportError('Failure finding "libcublasLt.so.13"\n  listdir(…)')

    monkeypatch.setattr(cupy, "cuda", WithoutLibraries())
    with pytest.raises(ImportError, match=r'libraries of CUDA \(Failure finding "libcublasLt\.so\.13"\): pip install'):
        check_gpu()


def test_without_a_driver(without_gpu, driver):
    without_gpu(INSUFFICIENT_DRIVER)
    driver(0)
    with pytest.raises(OSError, match=r"no NVIDIA driver here: .*install the driver"):
        check_gpu()


def test_a_cupy_for_a_newer_cuda_than_the_driver(without_gpu, driver):
    without_gpu(INSUFFICIENT_DRIVER, built_for=13_020)
    driver(12_080)
    with pytest.raises(OSError, match=r"CUDA 13, but the driver only knows CUDA 12\.8: ") as caught:
        check_gpu()
    assert f"pip uninstall cupy-cuda13x, then {CUDA12}; or update the driver" in str(caught.value)


def test_without_a_gpu(without_gpu, driver):
    without_gpu(NO_DEVICE)
    driver(13_020)
    with pytest.raises(OSError, match=r"no GPU that can be used \(cudaErrorNoDevice.*CUDA_VISIBLE_DEVICES"):
        check_gpu()


# --- float64 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "ratio", "warned"), [("f8", 64, True), ("f8", 2, False), ("f4", 64, False)])
def test_slow_float64_is_warned_of(cupy, monkeypatch, dtype, ratio, warned, recwarn):
    device = SimpleNamespace(attributes={"SingleToDoublePrecisionPerfRatio": ratio})
    monkeypatch.setattr(cupy.cuda, "Device", lambda: device)
    if warned:
        with pytest.warns(UserWarning, match='64 times more slowly in float64 than in float32: pass dtype="float32"'):
            warn_of_slow_float64(np.dtype(dtype))
    else:
        warn_of_slow_float64(np.dtype(dtype))
    assert not recwarn.list


# --- arrays that are not where they have to be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("take", "name"),
    [
        (lambda array: check_atoms(array, "known_atoms"), "known_atoms"),
        (lambda array: check_support(array, (6, 6)), "support"),
        (lambda array: Dictionary(array), "atoms"),
        (lambda array: Dictionary(np.eye(6), mean=array[0]), "mean"),
        (lambda array: ksvd_baseline(array, 6, 2), "Y"),
        (lambda array: DBKSVD(6, 2, init=array).fit(example()), "init"),
        (lambda array: SparseCodes(array.astype("i4"), np.eye(6), 6), "indices"),
        (lambda array: SparseCodes(np.eye(6, dtype="i4"), array, 6), "values"),
    ],
)
def test_what_has_to_be_on_the_host_is_told_how_to_get_there(cupy, take, name):
    with pytest.raises(TypeError, match=rf"{name} is a CuPy array, but has to be on the host: pass it with \.get\(\)"):
        take(cupy.asarray(np.eye(6)))


def test_chunks_that_have_to_be_on_the_host_are_told_how_to_get_there(cupy):
    chunked = da.ones((6, 6)).map_blocks(cupy.asarray, meta=cupy.empty((0, 0)))
    message = r" has CuPy arrays for chunks.*pass it with \.map_blocks\(cupy\.asnumpy\)"
    with pytest.raises(TypeError, match="atoms" + message):
        Dictionary(chunked)
    with pytest.raises(TypeError, match="values" + message):
        SparseCodes(da.ones((6, 6), dtype="i4"), chunked, 6)


@pytest.mark.parametrize("metric", [relative_error, variance_explained])
def test_metrics_take_two_arrays_in_one_place(cupy, metric):
    Y = example()
    there = cupy.asarray(Y)
    assert metric(there, there / 2) == pytest.approx(metric(Y, Y / 2))
    for given in ((Y, there), (there, Y)):
        with pytest.raises(ValueError, match=r"one on a GPU and the other not: .*cupy\.asarray\(…\) or \.get\(\)"):
            metric(*given)


@pytest.mark.parametrize("there", ["Y", "validation"])
def test_embeddings_and_validation_are_in_one_place(cupy, there):
    model = DBKSVD(8, 2)
    given = {name: open_embeddings(example(), device="cuda" if name == there else None) for name in ("Y", "validation")}
    embeddings = open_rows(model, given["Y"], reset=True)
    other = "validation" if there == "Y" else "Y"
    with pytest.raises(ValueError, match=rf'{there} is on a GPU.*pass open_embeddings\({other}, device="cuda"\)'):
        open_held_out(model, given["validation"], embeddings)
    assert open_held_out(model, given["Y"], embeddings).shape == (300, 6)


@pytest.mark.parametrize(("said", "found"), [("numpy", "cupy"), ("cupy", "numpy")])
def test_a_dask_array_that_is_wrong_about_its_chunks(cupy, said, found):
    module_of = {"numpy": np, "cupy": cupy}
    chunk = module_of[found].asarray(example())
    data = da.from_delayed(dask.delayed(lambda: chunk)(), (300, 6), meta=module_of[said].empty((0, 0), "f4"))
    (call,) = (rows for _, rows in read_in_order(data))
    with pytest.raises(ValueError, match=rf"chunk 0 of Y is a {found} array, but .*{said}: .*meta={found}\.empty"):
        delayed_of(task(len, call))[0].compute()


def test_a_cupy_array_is_checked_before_any_work(cupy):
    model = DBKSVD(8, 2)
    rows = example()
    embeddings = open_rows(model, cupy.asarray(rows), reset=True)
    assert on_device(embeddings.data)
    assert model.n_features_in_ == 6
    with pytest.raises(ValueError, match="Y has 5 features, but DBKSVD is expecting 6"):
        open_rows(model, cupy.asarray(rows[:, :5]), reset=False)
    with pytest.raises(TypeError, match="has dtype int32: embeddings are"):
        open_rows(model, cupy.asarray(rows.astype("i4")), reset=True)
    rows[250, 3] = np.nan
    with pytest.raises(ValueError, match="Y contains NaN or infinity: row 250, in chunk 0"):
        open_rows(model, cupy.asarray(rows), reset=True)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path):
    """Run a command in a folder with embeddings and a dictionary."""
    np.save(tmp_path / "rows.npy", example())
    Dictionary(np.eye(6, dtype="f4"), n_nonzero_coefs=2).to_zarr(tmp_path / "dictionary.zarr")
    rows, dictionary, out = (str(tmp_path / name) for name in ("rows.npy", "dictionary.zarr", "out.zarr"))
    of = {
        "fit": ["fit", rows, "-m", "8", "-k", "2"],
        "resume": ["resume", str(tmp_path / "checkpoint.zarr"), rows],
        "encode": ["encode", dictionary, rows],
    }
    return lambda name, *options: CliRunner().invoke(main, [*of[name], "-o", out, *options])


@pytest.mark.parametrize("name", ["fit", "resume", "encode"])
def test_a_command_says_in_one_line_what_the_gpu_lacks(monkeypatch, command, driver, name):
    monkeypatch.setitem(sys.modules, "cupy", None)
    driver(12_080)
    result = command(name, "--device", "cuda")
    assert result.exit_code == 1
    assert result.output == f"Error: CuPy, which device='cuda' needs, is not installed: {CUDA12}\n"


def test_a_command_refuses_other_devices(command):
    result = command("fit", "--device", "tpu")
    assert result.exit_code == 2
    assert "'tpu' is not 'cuda'" in result.output


class ReachedError(ValueError):
    """Ends a command where its computation would begin."""


@pytest.mark.parametrize(("options", "there"), [(["--device", "cuda"], True), ([], False)])
@pytest.mark.parametrize("name", ["fit", "encode"])
def test_a_command_opens_its_embeddings_on_the_device(cupy, monkeypatch, tmp_path, command, name, options, there):
    seen = []

    def stop(_, Y, *__, validation=None, **___):
        seen.extend(on_device(array.data) for array in (Y, validation) if array is not None)
        raise ReachedError("as far as that")

    monkeypatch.setattr(DBKSVD if name == "fit" else Dictionary, name, stop)
    held_out = ["--validation", str(tmp_path / "rows.npy")] if name == "fit" else []
    result = command(name, *options, *held_out)
    assert "as far as that" in result.output
    assert seen == [there] * (2 if name == "fit" else 1)
