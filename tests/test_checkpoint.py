"""Checkpoints: what a fit leaves when it ends early, and that a resumed fit is the whole fit, to the last bit."""

import json
import os
from pathlib import Path

import dask.array as da
import fsspec
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from small_fits import BATCH, N_ATOMS, N_FEATURES, K, Noting, assert_same_fit, example, in_chunks, model

import dbksvd_dask as dbk
from dbksvd_dask import DBKSVD, ProgressBar, StopOnPlateau
from dbksvd_dask.cli import main
from dbksvd_dask.fit_state import versions

HELD_OUT = example(seed=0)[:30] + 0.01
FITS = {
    "all at once": {},
    "inner batches": {"inner_batch_size": 4},
    "groups": {"matryoshka": [4, 8], "flat_share": np.float32(0.35), "max_iter": 10},
    "shuffled and centred": {"shuffle": "chunks", "center": True},
    "one batch, not averaged": {"batch_size": 200},
    "atoms known and fixed": {"fixed_atoms": np.eye(8)[:2], "known_atoms": np.eye(8)[2:4], "dtype": np.float64},
    "own first atoms": {"init": np.linalg.qr(np.ones((8, 8)) + np.eye(8))[0], "n_components": 8},
    "nonnegative, without a seed": {"nonnegative": True, "random_state": None},
    "OMP, a generator as seed": {"encoder": "omp", "random_state": np.random.RandomState(3)},
}


class StopAfter:
    def __init__(self, n_iter):
        self.n_iter = n_iter

    def __call__(self, model, iteration):
        return model.n_iter_ == self.n_iter


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.zarr"


def stopped(path, n_iter, **parameters):
    return model(checkpoint=path, callbacks=[StopAfter(n_iter)], **parameters).fit(example(), validation=HELD_OUT)


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_iter", [1, 4])
@pytest.mark.parametrize("parameters", FITS.values(), ids=FITS)
def test_a_resumed_fit_is_the_whole_fit_to_the_last_bit(parameters, n_iter, path):
    parameters = {"n_components": N_ATOMS, "batch_size": BATCH, "max_iter": 6, "random_state": 0} | parameters
    watched = DBKSVD(n_nonzero_coefs=K, checkpoint=path, callbacks=[StopAfter(n_iter)], **parameters)
    watched.fit(example(), validation=HELD_OUT)
    whole = DBKSVD(n_nonzero_coefs=K, **(parameters | {"random_state": _seeded(watched)}))
    whole._validate_params()
    resumed = DBKSVD.resume(path, example(), validation=HELD_OUT)
    assert resumed.stopped_by_ == "max_iter"
    assert_same_fit(resumed, whole.fit(example(), validation=HELD_OUT))


class _Seed(np.random.RandomState):
    """Draws the seed that a fit has drawn before."""

    def __init__(self, seed):
        super().__init__()
        self.seed_of_fit = seed

    def randint(self, *arguments, **options):
        return self.seed_of_fit


def _seeded(model):
    return _Seed(model.dictionary_.provenance["seed"])


def test_it_may_be_interrupted_and_resumed_again_and_again(path):
    stopped(path, 1)
    for n_iter in (2, 4):
        part = DBKSVD.resume(path, example(), validation=HELD_OUT, callbacks=[StopAfter(n_iter)])
        assert part.n_iter_ == n_iter
    resumed = DBKSVD.resume(path, example(), validation=HELD_OUT)
    assert_same_fit(resumed, model().fit(example(), validation=HELD_OUT))


def test_a_fit_that_came_to_its_end_is_returned_as_it_is(path):
    whole = model(checkpoint=path).fit(example())
    again = DBKSVD.resume(path, example())
    assert_same_fit(again, whole)
    np.testing.assert_array_equal(again.transform(example()).toarray(), whole.transform(example()).toarray())


def test_a_resumed_model_has_the_parameters_of_the_fit(path):
    parameters = {"matryoshka": np.array([4, 8]), "max_coherence": 0.9, "known_atoms": np.eye(8)[:3], "center": True}
    part = stopped(path, 2, **parameters)
    resumed = DBKSVD.resume(path, example(), validation=HELD_OUT)
    for name, value in part.get_params().items():
        if name != "callbacks":
            np.testing.assert_array_equal(resumed.get_params()[name], value, err_msg=name)
    resumed.set_params(checkpoint=None).fit(example())


@pytest.mark.parametrize("target", ["memory://bucket/{}/fit.zarr", "{}/a fit #1 %20 ü:3.zarr", "{}/x/../y/fit.zarr"])
def test_checkpoints_go_to_any_target_of_fsspec_and_any_name(target, tmp_path):
    target = target.format(tmp_path)
    stopped(target, 3)
    assert_same_fit(DBKSVD.resume(target, example(), validation=HELD_OUT), model().fit(example(), validation=HELD_OUT))
    if "://" in target:
        assert not Path(target.partition(":")[0] + ":").exists()


@pytest.mark.parametrize("source", ["npy", "dask", "zarr"])
def test_embeddings_may_have_moved_meanwhile(source, path, tmp_path):
    Y = example()

    def stored(folder):
        folder.mkdir()
        if source == "npy":
            np.save(folder / "Y.npy", Y)
            return folder / "Y.npy"
        if source == "zarr":
            rows = xr.DataArray(Y, dims=("sample", "feature"), name="embeddings").chunk(sample=64)
            rows.to_zarr(folder / "Y.zarr", consolidated=False)
            return folder / "Y.zarr"
        return da.from_array(Y, chunks=(64, -1))

    whole = model(center=True).fit(stored(tmp_path / "one"))
    model(center=True, checkpoint=path, callbacks=[StopAfter(2)]).fit(stored(tmp_path / "two"))
    assert_same_fit(DBKSVD.resume(path, stored(tmp_path / "three")), whole)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_opens_as_a_dictionary_at_any_time_and_the_last_two_are_kept(path):
    seen = []

    def look(model, iteration):
        opened = dbk.open_dictionary(path)
        np.testing.assert_array_equal(opened.atoms, model.components_)
        assert opened.history.sizes["iteration"] == model.n_iter_ == opened.provenance["n_iter"]
        seen.append(sorted(name for name in os.listdir(path) if name.startswith("iteration")))

    fitted = model(checkpoint=path, callbacks=[look]).fit(example())
    assert seen == [
        ["iteration-000001"],
        *([f"iteration-{n:06d}", f"iteration-{n + 1:06d}"] for n in range(1, 6)),
    ]
    single = dbk.open_dictionary(path / "iteration-000006")
    np.testing.assert_array_equal(single.atoms, fitted.components_)
    assert single.encode(example()).shape == (200, N_ATOMS)
    assert sorted(os.listdir(path)) == ["iteration-000005", "iteration-000006", "zarr.json"]


def test_the_last_iteration_is_kept_however_the_fit_ends(path, tmp_path):
    def kept(checkpoint):
        return dbk.open_dictionary(checkpoint).provenance["n_iter"]

    stopped(path, 5, checkpoint_every=3)
    assert kept(path) == 5
    assert sorted(os.listdir(path))[:2] == ["iteration-000003", "iteration-000005"]

    for name, failure in {"failed": RuntimeError("broken"), "interrupted": KeyboardInterrupt()}.items():
        watched = model(checkpoint=tmp_path / name, checkpoint_every=100, callbacks=[Noting([], failure)])
        if name == "failed":
            with pytest.raises(RuntimeError, match="broken"):
                watched.fit(example())
        else:
            watched.fit(example())
        assert kept(tmp_path / name) == 2
        assert_same_fit(DBKSVD.resume(tmp_path / name, example()), model().fit(example()))


def test_data_that_fail_cost_no_iteration(path):
    Y = example()
    broken = [False]

    def fail(chunk):
        if broken[0] and chunk == 3:
            raise OSError("the store is gone")

    def lose_the_store(model, iteration):
        broken[0] = True

    watched = model(checkpoint=path, callbacks=[lose_the_store])
    with pytest.raises(OSError, match="the store is gone"):
        watched.fit(in_chunks(Y, fail))
    assert watched.n_iter_ == dbk.open_dictionary(path).provenance["n_iter"] > 0
    broken[0] = False
    assert_same_fit(DBKSVD.resume(path, in_chunks(Y, fail)), model().fit(in_chunks(Y, fail)))


class Full(OSError):
    def __init__(self):
        super().__init__(28, "No space left on device")


@pytest.mark.parametrize("n_objects", [0, 1, 3, 10])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(n_objects, monkeypatch, tmp_path):
    target = f"memory://{tmp_path}/fit.zarr"
    memory = type(fsspec.filesystem("memory"))
    written = []

    def pipe_file(self, path, value, mode="overwrite", **options):
        if "000003" in path:
            if len(written) == n_objects:
                raise Full
            written.append(path)
        return original(self, path, value, mode, **options)

    original = memory.pipe_file
    watched = model(checkpoint=target)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "pipe_file", pipe_file)
        with pytest.raises(OSError, match=r"checkpoint of 3 iterations could not be written to memory.*No space left"):
            watched.fit(example())
    assert (watched.n_iter_, watched.stopped_by_) == (3, "error")
    assert dbk.open_dictionary(target).provenance["n_iter"] == 2
    assert_same_fit(DBKSVD.resume(target, example()), model().fit(example()))


@pytest.mark.parametrize("spoil", ["zarr.json", "atoms/c/0/0", "n_averaged"])
def test_a_damaged_checkpoint_is_passed_over(spoil, path):
    stopped(path, 4)
    damaged = path / "iteration-000004" / spoil
    if damaged.is_dir():
        damaged.rename(path / "elsewhere")
    else:
        damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.warns(UserWarning, match=r"The checkpoint before it is used: iteration-000003"):
        assert dbk.open_dictionary(path).provenance["n_iter"] == 3
    with pytest.warns(UserWarning, match=r"iteration-000003"):
        resumed = DBKSVD.resume(path, example(), validation=HELD_OUT)
    assert_same_fit(resumed, model().fit(example(), validation=HELD_OUT))
    assert dbk.open_dictionary(path).provenance["n_iter"] == 6


def test_where_none_opens_the_error_says_so(path):
    stopped(path, 2)
    for name in ("iteration-000001", "iteration-000002"):
        (path / name / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"no checkpoint at .* can be read"):
        DBKSVD.resume(path, example())


def test_debris_of_killed_writes_is_cleared_away(path):
    stopped(path, 2)
    (path / ".iteration-000003.0a1b2c3d.partial" / "atoms").mkdir(parents=True)
    (path / "notes of mine").mkdir()
    DBKSVD.resume(path, example(), validation=HELD_OUT)
    assert sorted(os.listdir(path)) == ["iteration-000005", "iteration-000006", "notes of mine", "zarr.json"]


# --- what is refused -------------------------------------------------------------------------------------------------


def changed(array, row=-1):
    array = array.copy()
    array[row, 0] += 1e-3
    return array


def resumed_with(Y=None, *, validation=HELD_OUT, **expected):
    return lambda path: DBKSVD.resume(path, example() if Y is None else Y, validation=validation, **expected)


def as_if(facts=None, **other):
    """With other versions than the fit had, or other facts in its checkpoints."""

    def resume(path):
        for name in os.listdir(path):
            if name.startswith("iteration"):
                metadata = path / name / "zarr.json"
                stored = json.loads(metadata.read_text())
                provenance = json.loads(stored["attributes"]["provenance"])
                provenance |= other.get("provenance", {})
                provenance["versions"] |= other.get("versions", {})
                stored["attributes"]["provenance"] = json.dumps(provenance)
                if facts is not None:
                    told = json.loads(stored["attributes"]["checkpoint"])
                    stored["attributes"]["checkpoint"] = json.dumps(told | facts)
                metadata.write_text(json.dumps(stored))
        return DBKSVD.resume(path, example(), validation=HELD_OUT)

    return resume


REFUSED = {
    "one other value": (resumed_with(changed(example(), 77)), ValueError, "Y holds other values"),
    "rows in another order": (resumed_with(example()[::-1]), ValueError, "Y holds other values"),
    "fewer samples": (resumed_with(example()[:-1]), ValueError, "Y has 199 samples, the fit had 200"),
    "fewer features": (resumed_with(example()[:, :7]), ValueError, "Y has 7 features, the fit had 8"),
    "other precision": (resumed_with(example("float64")), ValueError, "Y is float64, the fit had float32"),
    "other chunks": (
        resumed_with(da.from_array(example(), chunks=(50, -1))),
        ValueError,
        "Y is in chunks of 50 rows, the fit had 200",
    ),
    "no validation": (resumed_with(validation=None), ValueError, "the fit had validation embeddings: pass them"),
    "other validation": (resumed_with(validation=changed(HELD_OUT)), ValueError, "validation holds other values"),
    "another parameter": (
        resumed_with(n_nonzero_coefs=5, max_iter=6),
        ValueError,
        "n_nonzero_coefs=5, but the fit had 3",
    ),
    "several": (resumed_with(n_components=9, center=True), ValueError, "n_components=9, .* 12; center=True, .* False"),
    "array for a name": (resumed_with(init=np.eye(8)), ValueError, r"init=an array of shape \(8, 8\), .* 'samples'"),
    "another place": (resumed_with(checkpoint="other.zarr"), ValueError, "but the fit goes on to write to .*fit.zarr"),
    "no parameter": (resumed_with(n_atoms=12), TypeError, "n_atoms: no parameter of DBKSVD"),
    "no embeddings": (resumed_with("nowhere.npy"), FileNotFoundError, "nowhere.npy"),
    "another version": (
        as_if(versions={"dbksvd-dask": "0.0.1"}),
        ValueError,
        f"dbksvd-dask is {versions()['dbksvd-dask']}, but the fit had 0.0.1",
    ),
    "another numba": (as_if(versions={"numba": "0.1"}), ValueError, "numba is .*, but the fit had 0.1: install that"),
    "another CPU": (as_if(provenance={"cpu": "vax 780"}), UserWarning, "begun on vax 780, .* last bits may differ"),
    "parameters of the future": (
        as_if(provenance={"parameters": {"n_components": 12, "n_nonzero_coefs": 3, "random_state": 0, "warp": 9}}),
        TypeError,
        "warp: no parameter of DBKSVD, or of this version",
    ),
}


TAMPERED = {
    "iterations": {"provenance": {"n_iter": 99}},
    "no number": {"provenance": {"n_iter": "x"}},
    "samples": {"provenance": {"n_samples_seen": "x"}},
    "no fingerprints": {"facts": {"fingerprints": {}}},
    "fingerprints of nothing": {"facts": {"fingerprints": None}},
}


@pytest.mark.parametrize("tampering", TAMPERED.values(), ids=TAMPERED)
def test_a_checkpoint_that_is_none_is_named(tampering, path):
    stopped(path, 2)
    with pytest.raises(ValueError, match=r"fit.zarr is not a complete checkpoint"):
        as_if(**tampering)(path)


@pytest.mark.parametrize(("resume", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_not_have_the_same_bits_is_refused_and_named(resume, error, message, path):
    stopped(path, 2)
    with pytest.raises(error, match=message):
        resume(path)
    if "provenance" not in str(resume) and error is not UserWarning:
        assert dbk.open_dictionary(path).provenance["n_iter"] == 2


def test_what_does_not_change_the_bits_may_be_another(path):
    stopped(path, 2)
    as_if(versions={"dask": "2020.1"})(path)
    assert dbk.open_dictionary(path).provenance["n_iter"] == 6


def test_validation_that_the_fit_did_not_have_is_refused(path):
    model(checkpoint=path, callbacks=[StopAfter(2)]).fit(example())
    with pytest.raises(ValueError, match="the fit had no validation embeddings"):
        DBKSVD.resume(path, example(), validation=HELD_OUT)


def test_a_fit_does_not_begin_where_there_is_something(path, tmp_path):
    stopped(path, 2)
    with pytest.raises(FileExistsError, match=r"there is a checkpoint of 2 iterations at .*fit.zarr: .*DBKSVD.resume"):
        model(checkpoint=path).fit(example())
    (tmp_path / "folder" / "mine").mkdir(parents=True)
    (tmp_path / "file").touch()
    model().fit(example()).dictionary_.to_zarr(tmp_path / "dictionary")
    for name in ("folder", "file", "dictionary"):
        with pytest.raises(FileExistsError, match=rf"{name} is no checkpoint"):
            model(checkpoint=tmp_path / name).fit(example())
    assert sorted(os.listdir(tmp_path / "folder")) == ["mine"]
    with pytest.raises(NotADirectoryError, match=r"file is not a folder"):
        model(checkpoint=tmp_path / "file" / "fit.zarr").fit(example())
    with pytest.raises(ValueError, match="memory:// names no place"):
        model(checkpoint="memory://").fit(example())


@pytest.mark.parametrize("there", ["an empty folder", "a link to one", "a link to nothing"])
def test_a_fit_may_begin_in_a_place_that_was_made_for_it(there, path, tmp_path):
    if there != "an empty folder":
        path.symlink_to(tmp_path / "elsewhere")
    if there != "a link to nothing":
        (tmp_path / "elsewhere").mkdir() if path.is_symlink() else path.mkdir()
    stopped(path, 2)
    assert path.is_symlink() == (there != "an empty folder")
    assert DBKSVD.resume(path, example(), validation=HELD_OUT).n_iter_ == 6


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a dictionary", "a file"])
def test_without_a_checkpoint_there_is_nothing_to_resume(there, path):
    if there == "an empty folder":
        path.mkdir()
    if there == "a dictionary":
        model().fit(example()).dictionary_.to_zarr(path)
    if there == "a file":
        path.touch()
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at .*fit.zarr"):
        DBKSVD.resume(path, example())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"checkpoint": 3}, "The 'checkpoint' parameter"),
        ({"checkpoint_every": 0}, "The 'checkpoint_every' parameter"),
        ({"checkpoint_every": 1.5}, "The 'checkpoint_every' parameter"),
    ],
)
def test_parameters_of_checkpoints(parameters, message):
    with pytest.raises(ValueError, match=message):
        model(**parameters).fit(example())


def test_checkpoints_are_of_one_fit(path):
    with pytest.raises(ValueError, match=r"checkpoint=.* is for fit"):
        model(checkpoint=path).partial_fit(example())
    with pytest.raises(ValueError, match=r"checkpoint=.* is for one fit: a sweep takes none"):
        dbk.sweep(example(), {"n_nonzero_coefs": [1, 2]}, n_components=N_ATOMS, checkpoint=path)
    with pytest.raises(ValueError, match="grid names 'checkpoint'"):
        dbk.sweep(example(), {"checkpoint": ["a", "b"]}, n_components=N_ATOMS, n_nonzero_coefs=2)


# --- who watches -----------------------------------------------------------------------------------------------------


def test_callbacks_of_a_resumed_fit_are_told_of_the_iterations_before(path):
    class CatchingUp(Noting):
        def catch_up(self, model, iterations):
            self.notes.append(("catch up", [iteration.iteration for iteration in iterations]))

    notes = []
    part = stopped(path, 4)
    resumed = DBKSVD.resume(path, example(), validation=HELD_OUT, callbacks=[CatchingUp(notes)])
    assert notes == [("begin", 6, 4, (N_ATOMS, N_FEATURES)), ("catch up", [0, 1, 2, 3]), 4, 5, ("end", 6)]
    for before, after in zip(part._fit_state.iterations, resumed._fit_state.iterations, strict=False):
        for name, value in vars(before).items():
            np.testing.assert_array_equal(getattr(after, name), value, err_msg=name)


@pytest.mark.parametrize("n_iter", [1, 3, 5, 7])
def test_patience_outlasts_an_interruption(n_iter, path):
    parameters = {"max_iter": 40, "batch_size": 200}
    plateau = StopOnPlateau(patience=3, tolerance=0.02)
    whole = model(callbacks=[plateau], **parameters).fit(example())
    assert 8 <= whole.n_iter_ < 40
    model(checkpoint=path, callbacks=[StopAfter(n_iter)], **parameters).fit(example())
    resumed = DBKSVD.resume(path, example(), callbacks=[plateau])
    assert_same_fit(resumed, whole)
    again = DBKSVD.resume(path, example(), callbacks=[plateau])
    assert (again.n_iter_, again.stopped_by_) == (whole.n_iter_, "StopOnPlateau")


def test_in_the_background_the_monitor_shows_the_whole_fit(path):
    pytest.importorskip("anywidget")
    stopped(path, 4)
    run = DBKSVD.resume_async(path, example(), validation=HELD_OUT, callbacks=[ProgressBar()])
    assert_same_fit(run.wait(timeout=60), model().fit(example(), validation=HELD_OUT))
    assert repr(run) == "<Run: finished, 6 of 6 iterations>"
    assert run.monitor.status["n_done"] == 6


def test_a_bar_begins_where_the_fit_has_ended(path, capsys):
    stopped(path, 4)
    DBKSVD.resume(path, example(), validation=HELD_OUT, callbacks=[ProgressBar()])
    assert "6/6" in capsys.readouterr().err


def test_on_the_command_line(path, tmp_path):
    np.save(tmp_path / "Y.npy", example())

    def run(*arguments):
        result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    parameters = ["-m", N_ATOMS, "-k", K, "--batch-size", BATCH, "--max-iter", 6, "--checkpoint", path]
    run("fit", tmp_path / "Y.npy", "-o", tmp_path / "part.zarr", *parameters, "--max-seconds", 0)
    assert run("info", path)["kind"] == "checkpoint"
    told = run("resume", path, tmp_path / "Y.npy", "-o", tmp_path / "whole.zarr")
    assert (told["iterations"], told["stopped_by"]) == (6, "max_iter")
    expected = DBKSVD(N_ATOMS, K, batch_size=BATCH, max_iter=6, random_state=0).fit(example())
    np.testing.assert_array_equal(dbk.open_dictionary(tmp_path / "whole.zarr").atoms, expected.components_)
