"""The command line: fit, encode and info on stores and files, errors in one line, and nothing computed in vain."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from distributed import LocalCluster

from dbksvd_dask import DBKSVD, Dictionary, open_codes, open_dictionary, open_embeddings
from dbksvd_dask.cli import main

N_SAMPLES, N_FEATURES, N_ATOMS, K = 300, 6, 8, 2
SIZES = ["--n-components", N_ATOMS, "--n-nonzero-coefs", K, "--batch-size", 100, "--max-iter", 3]

NUMBER = np.arange(N_SAMPLES)
TRAIN = NUMBER % 3 > 0


def example():
    return np.random.default_rng(0).standard_normal((N_SAMPLES, N_FEATURES)).astype("float32")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Embeddings with coordinates in chunks, the same as .npy, and a dictionary and codes of them."""
    folder = tmp_path_factory.mktemp("stores")
    coordinates = {
        "split": np.where(TRAIN, "train", "validation"),
        "document": NUMBER // 10,
        "weight": NUMBER // 10 / 4,
        "special": NUMBER % 4 == 0,
    }
    Y = xr.DataArray(example(), dims=("sample", "feature"), name="embeddings")
    Y = Y.assign_coords({name: ("sample", values) for name, values in coordinates.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr 3 has no specification of fixed-length text yet
        Y.chunk(sample=80).to_dataset().to_zarr(folder / "embeddings.zarr")
        Y.to_dataset().rename(embeddings="second").assign(first=2 * Y).to_zarr(folder / "several.zarr")
    np.save(folder / "embeddings.npy", example())
    np.save(folder / "broken.npy", np.where(NUMBER[:, np.newaxis] == 250, np.nan, example()))
    dictionary = expected_model().fit(example(), validation=example()).dictionary_
    dictionary.to_zarr(folder / "dictionary.zarr")
    dictionary.encode(open_embeddings(folder / "embeddings.zarr")).to_zarr(folder / "codes.zarr")
    return folder


def expected_model(**parameters):
    return DBKSVD(N_ATOMS, K, **({"batch_size": 100, "max_iter": 3, "random_state": 0} | parameters))


@pytest.fixture
def run(stores, tmp_path, monkeypatch):
    """Run a command in an empty folder beside the stores."""
    for store in stores.iterdir():
        (tmp_path / store.name).symlink_to(store)
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


def succeeded(result):
    assert result.exit_code == 0, result.output
    return result.stdout


def facts_of(text):
    """The figures of a text result by name."""
    return {line.split("  ")[0]: line.split("  ")[-1].strip() for line in text.splitlines()}


def last_line_of_error(result):
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert result.stderr.count("Error") == 1
    return line


# --- fit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["embeddings.zarr", "embeddings.npy"])
def test_fit_writes_the_dictionary_that_the_estimator_learns(run, source):
    succeeded(run("fit", source, "-o", "new.zarr", *SIZES))
    np.testing.assert_array_equal(open_dictionary("new.zarr").atoms, expected_model().fit(example()).components_)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        (["--center"], {"center": True}),
        (["--encoder", "omp"], {"encoder": "omp"}),
        (["--nonnegative", "--rtol", 0.25], {"nonnegative": True, "rtol": 0.25}),
        (["--init", "random", "--random-state", 7], {"init": "random", "random_state": 7}),
        (["--inner-batch-size", 3, "--shuffle", "chunks"], {"inner_batch_size": 3, "shuffle": "chunks"}),
        (["--dtype", "float64"], {"dtype": "float64"}),
        (["--matryoshka"], {"matryoshka": True}),
        (["--max-coherence", 0.9], {"max_coherence": 0.9}),
    ],
    ids=lambda value: "".join(map(str, value)) if isinstance(value, list) else "",
)
def test_options_of_fit_are_parameters_of_the_estimator(run, options, parameters):
    succeeded(run("fit", "embeddings.npy", "-o", "new.zarr", *SIZES, *options))
    written = open_dictionary("new.zarr")
    np.testing.assert_array_equal(written.atoms, expected_model(**parameters).fit(example()).components_)
    assert written.provenance["parameters"] | parameters == written.provenance["parameters"]


def test_defaults_of_fit_are_those_of_the_estimator():
    given = main.commands["fit"].make_context("fit", ["rows.npy", "-o", "new.zarr", "-m", "8", "-k", "2"]).params
    for name, default in DBKSVD(n_components=8, n_nonzero_coefs=2, random_state=0).get_params().items():
        assert name not in given or given[name] == default, name


def test_fit_tells_what_it_has_learned(run):
    result = run("fit", "embeddings.npy", "-o", "new.zarr", *SIZES)
    facts = facts_of(succeeded(result))
    history = open_dictionary("new.zarr").history
    assert float(facts["training relative error"]) == pytest.approx(float(history.train_relative_error[-1]), rel=1e-3)
    assert facts["iterations"] == "3"
    assert facts["samples seen"] == "300"
    assert facts["dictionary"] == "new.zarr"
    assert facts["stopped by"] == "max_iter"
    assert "held-out relative error" not in facts
    assert "3/3" in result.stderr  # the progress bar


def test_fit_prints_json_and_nothing_else_if_asked_for(run):
    result = run("fit", "embeddings.npy", "-o", "new.zarr", *SIZES, "--validation", "embeddings.npy", "--json")
    facts = json.loads(succeeded(result))
    last = open_dictionary("new.zarr").history.isel(iteration=-1)
    assert facts["held_out_relative_error"] == float(last.validation_relative_error)
    assert facts["held_out_variance_explained"] == float(last.validation_variance_explained)
    assert facts["iterations"] == 3
    assert facts["dictionary"] == "new.zarr"


def test_fit_chooses_samples_by_their_coordinates(run):
    chosen = ["--where", "split=train", "--validation-where", "split=validation"]
    facts = json.loads(succeeded(run("fit", "embeddings.zarr", "-o", "new.zarr", *SIZES, *chosen, "--json")))
    expected = expected_model().fit(example()[TRAIN], validation=example()[~TRAIN])
    np.testing.assert_array_equal(open_dictionary("new.zarr").atoms, expected.components_)
    error = float(expected.history_.validation_relative_error[-1])
    assert facts["held_out_relative_error"] == pytest.approx(error, rel=1e-6)


def test_fit_takes_validation_embeddings_from_elsewhere(run):
    chosen = ["--validation", "embeddings.zarr", "--validation-where", "split=validation"]
    facts = json.loads(succeeded(run("fit", "embeddings.npy", "-o", "new.zarr", *SIZES, *chosen, "--json")))
    expected = expected_model().fit(example(), validation=example()[~TRAIN])
    error = float(expected.history_.validation_relative_error[-1])
    assert facts["held_out_relative_error"] == pytest.approx(error, rel=1e-6)


def test_fit_takes_the_array_that_is_named(run):
    succeeded(run("fit", "several.zarr", "--name", "second", "-o", "new.zarr", *SIZES))
    np.testing.assert_array_equal(open_dictionary("new.zarr").atoms, expected_model().fit(example()).components_)


def test_fit_stops_by_time_or_on_a_plateau(run):
    succeeded(run("fit", "embeddings.npy", "-o", "timed.zarr", *SIZES, "--max-seconds", 0))
    assert open_dictionary("timed.zarr").provenance["stopped_by"] == "TimeBudget"
    long = [*SIZES[:-1], 500, "--patience", 2, "--validation", "embeddings.npy"]
    succeeded(run("fit", "embeddings.npy", "-o", "plateau.zarr", *long))
    assert open_dictionary("plateau.zarr").provenance["stopped_by"] == "StopOnPlateau"


def test_fit_replaces_a_dictionary_only_if_told_to(run, stores, tmp_path):
    shutil.copytree(stores / "dictionary.zarr", tmp_path / "mine.zarr")
    before = open_dictionary("mine.zarr")
    assert "mine.zarr exists" in last_line_of_error(run("fit", "embeddings.npy", "-o", "mine.zarr", *SIZES))
    assert open_dictionary("mine.zarr").provenance == before.provenance
    succeeded(run("fit", "embeddings.npy", "-o", "mine.zarr", *SIZES, "--overwrite", "--random-state", 5))
    assert not np.array_equal(open_dictionary("mine.zarr").atoms, before.atoms)


# --- encode ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["embeddings.zarr", "embeddings.npy"])
@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ([], {}),
        (["-k", 4], {"n_nonzero_coefs": 4}),
        (["--encoder", "omp"], {"encoder": "omp"}),
        (["--refit", "lstsq"], {"refit": "lstsq"}),
    ],
    ids=lambda value: "".join(map(str, value)) if isinstance(value, list) else "",
)
def test_encode_writes_the_codes_that_the_dictionary_gives(run, source, options, arguments):
    facts = facts_of(succeeded(run("encode", "dictionary.zarr", source, "-o", "new.zarr", *options)))
    expected = open_dictionary("dictionary.zarr").encode(example(), **arguments)
    written = open_codes("new.zarr").compute()
    np.testing.assert_array_equal(written.indices, expected.indices)
    np.testing.assert_array_equal(written.values, expected.values)
    assert facts == {"samples": "300", "atoms": "8", "slots": str(expected.n_nonzero_coefs), "codes": "new.zarr"}


def test_encode_prints_json_and_nothing_else_if_asked_for(run):
    result = run("encode", "dictionary.zarr", "embeddings.npy", "-o", "new.zarr", "--json")
    assert json.loads(succeeded(result)) == {"samples": 300, "atoms": 8, "slots": 2, "codes": "new.zarr"}


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("split=train", TRAIN),
        ("split=validation", ~TRAIN),
        ("document=3", NUMBER // 10 == 3),
        ("weight=0.25", NUMBER // 10 == 1),
        ("special=True", NUMBER % 4 == 0),
        ("special=False", NUMBER % 4 != 0),
    ],
)
def test_encode_chooses_samples_by_a_coordinate_of_any_kind_and_keeps_their_coordinates(run, where, chosen):
    succeeded(run("encode", "dictionary.zarr", "embeddings.zarr", "-o", "new.zarr", "--where", where))
    written = open_codes("new.zarr")
    assert written.coords["document"].values.tolist() == (NUMBER // 10)[chosen].tolist()
    assert written.coords["split"].values.tolist() == np.where(TRAIN, "train", "validation")[chosen].tolist()
    expected = open_dictionary("dictionary.zarr").encode(example()[chosen])
    np.testing.assert_array_equal(written.compute().indices, expected.indices)


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_tells_of_a_dictionary(run):
    facts = facts_of(succeeded(run("info", "dictionary.zarr")))
    assert facts["kind"] == "dictionary"
    assert (facts["atoms"], facts["features"], facts["dtype"]) == ("8", "6", "float32")
    assert facts["stopped_by"] == "max_iter"
    as_json = json.loads(succeeded(run("info", "dictionary.zarr", "--json")))
    assert as_json["parameters"]["n_components"] == N_ATOMS
    assert as_json["held_out_relative_error"] == pytest.approx(float(facts["held-out relative error"]), rel=1e-3)
    assert as_json["n_iter"] == 3


def test_info_tells_of_a_dictionary_without_history_or_k(run):
    Dictionary(np.eye(3)).to_zarr("plain.zarr")
    assert json.loads(succeeded(run("info", "plain.zarr", "--json"))) == {
        "kind": "dictionary",
        "atoms": 3,
        "features": 3,
        "dtype": "float64",
        "median_coherence": 0.0,
    }


def test_info_tells_of_codes(run):
    assert facts_of(succeeded(run("info", "codes.zarr"))) == {
        "kind": "codes",
        "samples": "300",
        "atoms": "8",
        "slots": "2",
        "dtype": "float32",
    }
    assert json.loads(succeeded(run("info", "codes.zarr", "--json")))["samples"] == 300


def test_info_tells_of_embeddings(run):
    facts = json.loads(succeeded(run("info", "embeddings.zarr", "--json")))
    assert facts.pop("coordinates") == ["document", "special", "split", "weight"]
    assert facts == {"kind": "embeddings", "samples": 300, "features": 6, "dtype": "float32", "chunks": 4}
    assert facts_of(succeeded(run("info", "embeddings.npy")))["kind"] == "embeddings"


# --- mistakes --------------------------------------------------------------------------------------------------------

FIT = ["fit", "embeddings.zarr", "-o", "new.zarr", *SIZES]
ENCODE = ["encode", "dictionary.zarr", "embeddings.zarr", "-o", "new.zarr"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["info", "nowhere"], "nothing at .*nowhere"),
        (["info", "nfs9://host/rows.zarr"], "nfs9://host/rows.zarr cannot be opened: Protocol not known"),
        (["fit", "nowhere.npy", "-o", "new.zarr", *SIZES], "nothing at .*nowhere.npy"),
        (["fit", "several.zarr", "-o", "new.zarr", *SIZES], "several two-dimensional floating arrays; choose one"),
        (
            ["fit", "dictionary.zarr", "--name", "atoms", "-o", "new.zarr", "-m", 9, "-k", 2],
            "n_samples=8 is smaller than",
        ),
        ([*FIT[:4], "-m", 8, "-k", 9], "n_nonzero_coefs=9 exceeds n_components=8"),
        ([*FIT, "--rtol", -1], "'rtol' parameter .* must be"),
        ([*FIT, "--encoder", "omp", "--nonnegative"], "nonnegative=True needs"),
        ([*FIT, "--patience", 0], "patience=0 must be a whole number of at least 1"),
        (["fit", "codes.zarr", "-o", "new.zarr", *SIZES], "is a codes store of dbksvd_dask: it does not hold emb"),
        ([*FIT, "--validation", "dictionary.zarr", "--name", "atoms"], "no array 'atoms'"),
        ([*FIT, "--where", "language=de"], "no coordinate 'language' .* it has document, special, split, weight"),
        ([*FIT, "--where", "split=test"], "no sample of embeddings.zarr has split=test"),
        ([*FIT, "--where", "split=validation-2"], "no sample of embeddings.zarr has split=validation-2"),
        ([*FIT, "--where", "split"], "'?split'?.*COORDINATE=VALUE"),
        ([*FIT, "--where", "document=three"], "document=three"),
        ([*FIT, "--where", "special=maybe"], "special=maybe"),
        ([*FIT, "--validation-where", "split=test"], "no sample of embeddings.zarr has split=test"),
        (
            ["fit", "embeddings.npy", "-o", "new.zarr", *SIZES, "--where", "split=train"],
            "no coordinate 'split' .* none",
        ),
        (["fit", "broken.npy", "-o", "new.zarr", *SIZES], "NaN or infinity: row 250, in chunk 0"),
        (["encode", "nowhere.zarr", "embeddings.zarr", "-o", "new.zarr"], "no dictionary store at .*nowhere.zarr"),
        (["encode", "codes.zarr", "embeddings.zarr", "-o", "new.zarr"], "not a dictionary store"),
        (["encode", "embeddings.zarr", "embeddings.zarr", "-o", "new.zarr"], "not a dictionary store"),
        (["encode", "dictionary.zarr", "nowhere.npy", "-o", "new.zarr"], "nothing at .*nowhere.npy"),
        (["encode", "dictionary.zarr", "broken.npy", "-o", "new.zarr"], "NaN or infinity: row 250, in chunk 0"),
        ([*ENCODE, "-k", 9], "n_nonzero_coefs=9 must be between 1 and the number of atoms, 8"),
        ([*ENCODE, "-k", 0], "n_nonzero_coefs=0 must be between 1 and the number of atoms, 8"),
        ([*ENCODE[:4], "codes.zarr"], "codes.zarr exists: .*--overwrite"),
        ([*ENCODE[:4], "dictionary.zarr", "--overwrite"], "dictionary.zarr"),
        ([*ENCODE[:4], "s3://bucket/codes.zarr"], "s3://bucket/codes.zarr is a URL"),
        ([*FIT, "--scheduler", "nowhere"], "nowhere"),
    ],
    ids=lambda value: "-".join(map(str, value)).replace(".zarr", "") if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_one_line(run, command, message):
    assert_matches(message, last_line_of_error(run(*command)))
    assert not os.path.lexists("new.zarr")


def assert_matches(pattern, text):
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (["dictionary.zarr"], "dictionary.zarr exists: .*--overwrite"),
        (["codes.zarr", "--overwrite"], "codes.zarr"),
        (["embeddings.zarr", "--overwrite"], "embeddings.zarr"),
        (["thesis", "--overwrite"], "thesis"),
        (["embeddings.npy", "--overwrite"], "embeddings.npy"),
        (["s3://bucket/dictionary.zarr"], "s3://bucket/dictionary.zarr is a URL"),
        (["embeddings.npy/dictionary.zarr"], "embeddings.npy"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_an_output_that_cannot_be_written_is_refused_before_the_fit(run, output, message, monkeypatch, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.tex").write_text("years of work")
    monkeypatch.setattr(DBKSVD, "fit", lambda *args, **kwargs: pytest.fail("the fit has begun"))
    line = last_line_of_error(run("fit", "embeddings.npy", *SIZES, "-o", *output))
    assert_matches(message, line)
    assert (tmp_path / "thesis" / "chapter-1.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "command", [["fit"], ["encode", "dictionary.zarr"], ["fit", "a", "-o", "b", "--solver", "x"], ["x"]]
)
def test_wrong_usage_is_explained(run, command):
    result = run(*command)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@pytest.mark.parametrize("command", [["--help"], ["fit", "-h"], ["encode", "--help"], ["info", "-h"], ["--version"]])
def test_help_and_version(run, command):
    assert succeeded(run(*command))


# --- as a program ----------------------------------------------------------------------------------------------------


def test_an_interrupt_writes_the_dictionary_of_the_iterations_so_far(stores, tmp_path):
    script = "from dbksvd_dask.cli import main; main()"
    arguments = ["fit", stores / "embeddings.npy", "-o", tmp_path / "new.zarr", *SIZES[:-1], 10**6, "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        shown = ""
        while "error=" not in shown and program.poll() is None:
            shown += program.stderr.read(1)
        program.send_signal(signal.SIGINT)
        output, errors = program.communicate(timeout=60)
    assert program.returncode == 0, shown + errors
    facts = json.loads(output)
    assert 0 < facts["iterations"] < 10**6
    assert open_dictionary(tmp_path / "new.zarr").provenance["stopped_by"] == "interrupt"


# --- on a cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    options = {"processes": False, "protocol": "tcp", "dashboard_address": ":0"}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        yield cluster


def test_fit_and_encode_compute_on_the_cluster_at_an_address(run, cluster):
    address = ["--scheduler", cluster.scheduler_address]
    before = cluster.scheduler.transition_counter
    chosen = ["--where", "split=train", "--validation-where", "split=validation", "--center"]
    succeeded(run("fit", "embeddings.zarr", "-o", "there.zarr", *SIZES, *chosen, *address))
    after_fit = cluster.scheduler.transition_counter
    assert after_fit > before + 50
    succeeded(run("fit", "embeddings.zarr", "-o", "here.zarr", *SIZES, *chosen))
    assert cluster.scheduler.transition_counter == after_fit
    np.testing.assert_array_equal(open_dictionary("there.zarr").atoms, open_dictionary("here.zarr").atoms)

    succeeded(run("encode", "there.zarr", "embeddings.npy", "-o", "codes-there.zarr", *address))
    assert cluster.scheduler.transition_counter > after_fit
    succeeded(run("encode", "here.zarr", "embeddings.npy", "-o", "codes-here.zarr"))
    there, here = (open_codes(f"codes-{place}.zarr").compute() for place in ("there", "here"))
    np.testing.assert_array_equal(there.indices, here.indices)
    np.testing.assert_array_equal(there.values, here.values)


def test_mistakes_on_a_cluster_are_told_in_one_line_too(run, cluster):
    result = run("fit", "broken.npy", "-o", "new.zarr", *SIZES, "--scheduler", cluster.scheduler_address)
    assert "NaN or infinity: row 250" in last_line_of_error(result)
    assert not os.path.lexists("new.zarr")
