"""Repositories for the Hugging Face Hub."""

import json
import os

import numpy as np
import pytest
import yaml
from dictionaries import assert_same, dictionary, real_rows

from dbksvd_dask import DBKSVD, Dictionary
from dbksvd_dask.interop import from_hub, from_saelens, to_hub

NAMES = {"model_name": "sentence-transformers/all-MiniLM-L6-v2", "hook_name": "blocks.3.hook_resid_pre"}


def card_of(folder):
    """Front matter and text."""
    _, front_matter, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front_matter), text


def test_a_repository_gives_the_dictionary_back(tmp_path):
    D = dictionary(labels={1: "rivers"}, provenance={"seed": 4})
    to_hub(D, tmp_path / "repository", **NAMES)
    assert_same(from_hub(tmp_path / "repository"), D)
    assert_same(from_saelens(tmp_path / "repository" / "saelens"), D)
    config = json.loads((tmp_path / "repository" / "config.json").read_text())
    assert (config["n_atoms"], config["n_features"], config["n_nonzero_coefs"]) == (96, 384, 6)
    assert config | NAMES == config


def test_the_front_matter_is_what_the_hub_reads(tmp_path):
    names = NAMES | {"hook_name": '"D": $5 #1'}
    to_hub(dictionary(), tmp_path / "hub", **names, license="mit", datasets=["Salesforce/wikitext"])
    front_matter, text = card_of(tmp_path / "hub")
    assert front_matter["license"] == "mit"
    assert front_matter["base_model"] == NAMES["model_name"]
    assert front_matter["datasets"] == ["Salesforce/wikitext"]
    assert {"saelens", "dictionary-learning"} <= set(front_matter["tags"])
    assert f'\n# 96 atoms of {NAMES["model_name"]}, "D": $5 #1\n' in text


def test_a_local_model_is_no_base_model(tmp_path):
    to_hub(dictionary(), tmp_path / "hub", model_name="./my model", hook_name="h")
    assert "base_model" not in card_of(tmp_path / "hub")[0]


def test_huggingface_hub_accepts_the_card(tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="it comes with the extra harvest")
    to_hub(dictionary(), tmp_path / "hub", **NAMES, license="mit")
    card = hub.ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.library_name, card.data.license, card.data.base_model) == (
        "dbksvd_dask",
        "mit",
        NAMES["model_name"],
    )


def test_the_card_has_the_figures_of_the_fit(tmp_path):
    Y = real_rows(dtype="float32")
    fit = DBKSVD(8, 2, batch_size=50, max_iter=3, random_state=0)
    D = fit.fit(Y, validation=Y[:20]).dictionary_
    to_hub(D, tmp_path / "hub", **NAMES)
    _, text = card_of(tmp_path / "hub")
    last = D.history.isel(iteration=-1)
    assert f"| variance explained, held out | {float(last.validation_variance_explained):.4f} |" in text
    assert f"| relative error, last batch of the fit | {float(last.train_relative_error):.4f} |" in text
    assert f"| samples seen | {int(last.n_samples_seen):,} |" in text
    assert "| parameters: batch_size | 50 |" in text
    assert f"| versions: numpy | {np.__version__} |" in text


def test_a_dictionary_of_no_fit_has_a_card(tmp_path):
    to_hub(Dictionary(np.eye(3), 1, nonnegative=True), tmp_path / "hub", **NAMES)
    assert "each times a positive coefficient" in card_of(tmp_path / "hub")[1]


def test_only_a_repository_is_overwritten(tmp_path):
    to_hub(dictionary(), tmp_path / "hub", **NAMES)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        to_hub(dictionary(), tmp_path / "hub", **NAMES)
    to_hub(dictionary(nonnegative=True), tmp_path / "hub", **NAMES, overwrite=True)
    assert from_hub(tmp_path / "hub").nonnegative
    (tmp_path / "hub" / ".git").mkdir()
    with pytest.raises(FileExistsError, match="is not a repository of to_hub, so it is not overwritten"):
        to_hub(dictionary(), tmp_path / "hub", **NAMES, overwrite=True)


def test_bad_input_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="datasets='wikitext' must be a list of names"):
        to_hub(dictionary(), tmp_path / "hub", **NAMES, datasets="wikitext")
    with pytest.raises(ValueError, match="has no n_nonzero_coefs of its own"):
        to_hub(Dictionary(np.eye(3)), tmp_path / "hub", **NAMES)
    with pytest.raises(FileNotFoundError, match=r"it has no dictionary\.safetensors"):
        from_hub(tmp_path)
    assert os.listdir(tmp_path) == []
