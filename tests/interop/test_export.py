"""``dbksvd export``."""

import json
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner
from dictionaries import assert_same, dictionary

from dbksvd_dask import DBKSVD, open_codes, open_dictionary
from dbksvd_dask.cli import main
from dbksvd_dask.cli.export import export
from dbksvd_dask.interop import from_hub, from_saelens, from_safetensors, to_hub, to_saelens, to_safetensors

NAMES = ["--model-name", "all-MiniLM-L6-v2", "--hook-name", "blocks.3.hook_resid_pre"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(export, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


@pytest.mark.parametrize(
    ("to", "options", "opened_by"),
    [
        ("saelens", NAMES, from_saelens),
        ("hub", [*NAMES, "--license", "mit", "--dataset", "wikitext"], from_hub),
        ("safetensors", [], from_safetensors),
        ("zarr", [], open_dictionary),
    ],
)
def test_a_store_in_every_format_and_back(run, to, options, opened_by):
    D = dictionary()
    D.to_zarr("fit.zarr")
    output = f"D.{to}"
    facts = json.loads(run("fit.zarr", "--to", to, "-o", output, *options, "--json"))
    assert facts == {"atoms": 96, "features": 384, "k": 6, "format": to, "output": output}
    assert_same(opened_by(output), D)
    run(output, "--to", "zarr", "-o", "again.zarr")
    assert_same(open_dictionary("again.zarr"), D)


@pytest.mark.parametrize(("to", "options"), [("saelens", NAMES), ("hub", NAMES), ("safetensors", [])])
def test_the_other_commands_take_what_was_exported(run, to, options):
    D = dictionary()
    D.to_zarr("fit.zarr")
    run("fit.zarr", "--to", to, "-o", f"D.{to}", *options)
    Y = np.random.default_rng(0).standard_normal((5, D.n_features), dtype="float32")
    np.save("Y.npy", Y)
    encoded = CliRunner().invoke(main, ["encode", f"D.{to}", "Y.npy", "-o", "codes.zarr"])
    assert encoded.exit_code == 0, encoded.output
    np.testing.assert_array_equal(open_codes("codes.zarr").compute().indices, D.encode(Y).indices)
    if to != "safetensors":  # whose arrays may be embeddings as well
        told = CliRunner().invoke(main, ["info", f"D.{to}", "--json"])
        facts = json.loads(told.output)
        assert (facts["kind"], facts["atoms"], facts["features"]) == ("dictionary", D.n_atoms, D.n_features)


def test_a_file_of_the_authors_with_a_k(run):
    np.save("D.npy", dictionary().atoms.T)
    run("D.npy", "--to", "zarr", "-o", "D.zarr", "-k", 3)
    np.testing.assert_array_equal(open_dictionary("D.zarr").atoms, dictionary().atoms)
    assert open_dictionary("D.zarr").n_nonzero_coefs == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["D.safetensors", "--to", "saelens", "-o", "x"], "--to saelens needs --model-name and --hook-name"),
        (["D.safetensors", "--to", "safetensors", "-o", "D.safetensors"], "exists: choose another path"),
        (["nowhere", "--to", "zarr", "-o", "x"], "there is no dictionary store at"),
        (["D.safetensors", "--to", "zarr", "-o", "x", "-k", "1000"], "n_nonzero_coefs=1000 must be between"),
    ],
)
def test_mistakes_are_told_in_one_line(run, arguments, message):
    to_safetensors(dictionary(), "D.safetensors")
    output = run(*arguments, code=1)
    assert message in output
    assert "Traceback" not in output


def test_overwriting_has_to_be_asked_for(run):
    to_saelens(dictionary(), "sae", model_name="a", hook_name="b")
    to_safetensors(dictionary(nonnegative=True), "D.safetensors")
    assert "--overwrite" in run("D.safetensors", "--to", "saelens", "-o", "sae", *NAMES, code=1)
    run("D.safetensors", "--to", "saelens", "-o", "sae", *NAMES, "--overwrite")
    assert from_saelens("sae").nonnegative


@pytest.mark.parametrize(
    "write",
    [
        partial(to_saelens, model_name="a", hook_name="b"),
        partial(to_hub, model_name="a", hook_name="b"),
        to_safetensors,
    ],
)
@pytest.mark.parametrize("other", [np.eye(3), DBKSVD(3, 1), "fit.zarr"], ids=["atoms", "model", "path"])
def test_what_is_written_has_to_be_a_dictionary(write, other, tmp_path):
    with pytest.raises(TypeError, match=r"dictionary is a \w+: pass a Dictionary, such as model.dictionary_"):
        write(other, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
