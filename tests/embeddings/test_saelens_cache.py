"""open_embeddings of what SAELens' own runner caches, with a tiny model."""

import warnings

import numpy as np
import pytest

from dbksvd_dask import open_embeddings
from dbksvd_dask.embeddings import chunking
from dbksvd_dask.embeddings.chunking import on_dask

N_FEATURES, LENGTH, N_WINDOWS = 16, 8, 32

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the packages themselves, while they are imported
    datasets = pytest.importorskip("datasets", reason="needs dbksvd-dask[interop]")
    torch = pytest.importorskip("torch", reason="needs dbksvd-dask[harvest]")
    transformers = pytest.importorskip("transformers", reason="needs dbksvd-dask[harvest]")
    tokenizers = pytest.importorskip("tokenizers", reason="needs dbksvd-dask[harvest]")
    runner = pytest.importorskip("sae_lens.cache_activations_runner", reason="needs dbksvd-dask[interop]")
    from sae_lens.config import CacheActivationsRunnerConfig

HOOK = "transformer.h.0"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The folder, and the dataset that the runner returned."""
    folder = tmp_path_factory.mktemp("saelens")
    words = {"<s>": 0, **{f"w{i}": i + 1 for i in range(50)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "<s>", "unk_token": "<s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "model")
    shape = {"n_positions": 32, "n_embd": N_FEATURES, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(vocab_size=len(words), bos_token_id=0, eos_token_id=0, **shape)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    texts = datasets.Dataset.from_dict({"text": [" ".join(f"w{j % 50}" for j in range(i, i + 60)) for i in range(40)]})
    settings = CacheActivationsRunnerConfig(
        dataset_path="none",
        model_name=str(folder / "model"),
        model_class_name="AutoModelForCausalLM",
        model_batch_size=4,
        hook_name=HOOK,
        d_in=N_FEATURES,
        training_tokens=N_WINDOWS * LENGTH,
        context_size=LENGTH,
        new_cached_activations_path=str(folder / "cache"),
        shuffle=False,
        streaming=False,
        buffer_size_gb=8 * LENGTH * N_FEATURES * 4 / 1e9,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = runner.CacheActivationsRunner(settings, override_dataset=texts).run()
    return folder / "cache", dataset.with_format("numpy")


def test_a_cache_of_saelens_opens_as_its_tokens(cache, monkeypatch):
    folder, dataset = cache
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 10 * N_FEATURES * 4)
    assert len(list(folder.glob("data-*.arrow"))) > 1
    Y = open_embeddings(folder)
    assert Y.name == HOOK
    assert Y.shape == (N_WINDOWS * LENGTH, N_FEATURES)
    assert on_dask(Y).npartitions > 4
    np.testing.assert_array_equal(Y, np.array(dataset[HOOK]).reshape(-1, N_FEATURES))
    np.testing.assert_array_equal(Y.token_id, np.array(dataset["token_ids"]).ravel())
    np.testing.assert_array_equal(Y.position, np.tile(np.arange(LENGTH), N_WINDOWS))
