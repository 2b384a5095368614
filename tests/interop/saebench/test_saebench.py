"""SAEBench itself, run on wrapped dictionaries and a small language model: ``make test-interop``.

No network is needed. SAEBench opens only models whose name it knows, so one name is made to lead to a local folder;
nothing else of it is changed. `core` reads its text from a local folder, as `datasets.load_dataset` does, and the
prompts of `sae_probes` come with that package.
"""

import json
import os
from contextlib import contextmanager

import pytest

for package in "torch", "sae_bench", "sae_probes", "transformer_lens":
    pytest.importorskip(package, reason="SAEBench has an environment of its own: make test-interop")

os.environ["JAXTYPING_DISABLE"] = "1"  # SAEBench annotates tensors with names that it does not keep to
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import xarray as xr  # noqa: E402
from sae_bench.evals.core import main as core  # noqa: E402
from sae_bench.evals.sparse_probing_sae_probes import main as probing  # noqa: E402
from sae_lens.training.activations_store import ActivationsStore  # noqa: E402
from sae_probes.generate_sae_activations import generate_sae_activations  # noqa: E402
from scipy.spatial.distance import cdist  # noqa: E402
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from transformer_lens import HookedTransformer, loading_from_pretrained  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast  # noqa: E402

import dbksvd_dask as dbk  # noqa: E402
from dbksvd_dask.interop import saebench_wrapper  # noqa: E402

DATA = os.path.join(os.path.dirname(__file__), "../../../data/minilm-wikitext2.zarr")
MODEL, LAYER = "small-gpt2", 1
HOOK = f"blocks.{LAYER}.hook_resid_post"
CONTEXT, K, M = 64, 8, 256
BATCHES, PROMPTS = 4, 16
DATASETS = ["125_world_country_Italy", "130_temp_cat_Frequency"]
"""Of short prompts, which fit the model's window."""


# --- a small language model, a text, a dictionary ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def texts():
    """The windows of the sample data, as text."""
    data = xr.open_zarr(DATA)
    words = dict(zip(data.token.values.tolist(), data.vocabulary.values, strict=True))
    windows = data.context_tokens.values.tolist()
    return [" ".join(words[token] for token in window if token in words).replace(" ##", "") for window in windows]


@pytest.fixture(scope="session")
def folder(tmp_path_factory, texts):
    """A GPT-2 of two layers that has read the text some times."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")

    torch.manual_seed(0)
    # n_ctx: TransformerLens reads it, and transformers no longer sets it
    sizes = {"vocab_size": 1000, "n_positions": 128, "n_ctx": 128, "n_embd": 64, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    tokens = torch.tensor(fast("<|endoftext|>".join(texts))["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        starts = torch.randint(len(tokens) - CONTEXT, (16,))
        batch = torch.stack([tokens[start : start + CONTEXT] for start in starts])
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()

    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    fast.save_pretrained(place)
    return place


@pytest.fixture(scope="session", autouse=True)
def model_name(folder):
    """A name that TransformerLens opens the folder by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading_from_pretrained, "get_official_model_name", lambda name: str(folder))
        yield MODEL


@pytest.fixture(scope="session")
def hooked(model_name):
    return HookedTransformer.from_pretrained_no_processing(model_name, device="cpu")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory, texts):
    """What stands for OpenWebText: a folder of JSON lines, which `datasets.load_dataset` takes as it is."""
    place = tmp_path_factory.mktemp("text")
    (place / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return place


@pytest.fixture(scope="session")
def dictionary(hooked, texts):
    tokens = hooked.to_tokens(texts)[:, :CONTEXT]
    _, cache = hooked.run_with_cache(tokens, names_filter=[HOOK])
    Y = cache[HOOK][:, 1:].reshape(-1, hooked.cfg.d_model).detach().numpy()
    fit = dbk.DBKSVD(M, K, center=True, max_iter=5, random_state=0).fit(Y)
    assert fit.dictionary_.mean is not None
    return fit.dictionary_


@pytest.fixture(scope="session")
def wrappers(dictionary):
    place = {"model_name": MODEL, "hook_name": HOOK, "hook_layer": LAYER}
    kinds = {"signed": False, "split": True}
    return {name: saebench_wrapper(dictionary, split=split, **place) for name, split in kinds.items()}


# --- core -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def core_results(wrappers, text_folder, tmp_path_factory):
    results = core.multiple_evals(
        list(wrappers.items()),
        n_eval_reconstruction_batches=BATCHES,
        n_eval_sparsity_variance_batches=BATCHES,
        eval_batch_size_prompts=PROMPTS,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
        dataset=str(text_folder),
        context_size=CONTEXT,
        output_folder=str(tmp_path_factory.mktemp("core")),
        device="cpu",
    )
    # multiple_evals logs an error of an evaluation, and goes on
    assert [result["sae_set"] for result in results] == ["signed", "split"]
    return {result["sae_set"]: result["metrics"] for result in results}


@pytest.fixture(scope="session")
def batches(hooked, wrappers, text_folder):
    """The tokens that `core` has seen, and which of them count: for cross entropies, and then for all else."""
    store = ActivationsStore.from_sae(
        hooked, wrappers["signed"], context_size=CONTEXT, dataset=str(text_folder), dataset_trust_remote_code=True
    )
    store.shuffle_input_dataset(seed=42)
    first = [store.get_batch_tokens(PROMPTS) for _ in range(BATCHES)]
    store.reset_input_dataset()
    then = [store.get_batch_tokens(PROMPTS) for _ in range(BATCHES)]
    return [[(tokens, tokens != hooked.tokenizer.eos_token_id) for tokens in part] for part in (first, then)]


@pytest.fixture(scope="session")
def ours(folder, batches, dictionary):
    """What `core` reports, by transformers and `Dictionary` alone."""
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    found = {"clean": [], "spliced": [], "ablated": [], "y": [], "r": [], "l0": []}
    for tokens, counts in batches[0]:
        states = _block_output(model, tokens)
        decoded = dictionary.decode(dictionary.encode(_rows(states)))
        spliced = torch.where(counts[..., None], torch.from_numpy(decoded).reshape(states.shape), states)
        for name, replaced in {"clean": states, "spliced": spliced, "ablated": torch.zeros_like(states)}.items():
            found[name].append(_cross_entropy(_logits_from(model, tokens, replaced), tokens, counts))
    for tokens, counts in batches[1]:
        y = _rows(_block_output(model, tokens))[counts.flatten().numpy()]
        codes = dictionary.encode(y)
        found["y"].append(y)
        found["r"].append(y - dictionary.decode(codes))
        found["l0"].append(np.count_nonzero(codes.values, axis=1))
    joined = {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}
    return joined | {"batches": [len(part) for part in found["y"]]}


def _rows(states):
    return states.flatten(0, 1).numpy()


def _block_output(model, tokens):
    kept = []
    with _hook(model, kept.append), torch.no_grad():
        model(tokens)
    return kept[0]


def _logits_from(model, tokens, states):
    with _hook(model, lambda output: states), torch.no_grad():
        return model(tokens).logits


@contextmanager
def _hook(model, function):
    """Call a function on the output of the block, and put in its place what it returns, if anything."""

    def hook(module, inputs, output):
        whole = output if isinstance(output, tuple) else (output,)
        replaced = function(whole[0])
        if replaced is None:
            return None
        return (replaced, *whole[1:]) if isinstance(output, tuple) else replaced

    handle = model.transformer.h[LAYER].register_forward_hook(hook)
    yield
    handle.remove()


def _cross_entropy(logits, tokens, counts):
    """Of each next token, where the token that it is predicted from counts."""
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses[counts[:, :-1].flatten()].numpy()


def _metric(results, name, metric):
    (found,) = [group[metric] for group in results[name].values() if metric in group]
    return found


@pytest.mark.parametrize("name", ["signed", "split"])
def test_core_cross_entropies_are_those_of_the_dictionary(core_results, ours, name):
    clean, spliced, ablated = (ours[kind].mean() for kind in ("clean", "spliced", "ablated"))
    assert clean < spliced < ablated, "the model has learned nothing that the evaluation could show"
    assert _metric(core_results, name, "ce_loss_without_sae") == pytest.approx(clean, rel=1e-4)
    assert _metric(core_results, name, "ce_loss_with_sae") == pytest.approx(spliced, rel=1e-4)
    assert _metric(core_results, name, "ce_loss_with_ablation") == pytest.approx(ablated, rel=1e-4)
    score = (ablated - spliced) / (ablated - clean)
    assert _metric(core_results, name, "ce_loss_score") == pytest.approx(score, abs=2e-4)


@pytest.mark.parametrize("name", ["signed", "split"])
def test_core_errors_and_sparsity_are_those_of_the_dictionary(core_results, ours, name):
    y, r = ours["y"], ours["r"]
    assert _metric(core_results, name, "l0") == pytest.approx(ours["l0"].mean(), abs=1e-3)
    squared = np.sum(r**2, axis=1)
    # ‖r‖² over the tokens of its batch, not over features
    per_batch = np.repeat(ours["batches"], ours["batches"])
    assert _metric(core_results, name, "mse") == pytest.approx(np.mean(squared / per_batch), rel=1e-3)
    # what SAEBench takes from E‖y‖² is the square of a mean of squares, not that of the mean
    total = np.mean(np.sum(y**2, axis=1)) - np.mean(y**2) ** 2
    assert _metric(core_results, name, "explained_variance") == pytest.approx(1 - squared.mean() / total, abs=1e-3)


def test_core_sees_the_same_reconstruction_of_signed_and_split_latents(core_results):
    for metric in "ce_loss_score", "kl_div_score", "mse", "explained_variance", "cossim", "l2_ratio", "l0":
        signed, split = (_metric(core_results, name, metric) for name in ("signed", "split"))
        assert split == pytest.approx(signed, rel=1e-5), metric


def test_core_counts_positive_latents_as_alive(core_results, wrappers, hooked, batches):
    """So those of a signed dictionary are counted by half, which is what split latents are for."""
    for name, wrapper in wrappers.items():
        positive = torch.zeros(wrapper.cfg.d_sae, dtype=torch.bool)
        for tokens, counts in batches[1]:
            _, cache = hooked.run_with_cache(tokens, names_filter=[HOOK])
            positive |= (wrapper.encode(cache[HOOK])[counts] > 0).any(dim=0)
        assert _metric(core_results, name, "frac_alive") == pytest.approx(positive.float().mean().item(), abs=1e-6)


@pytest.mark.parametrize("name", ["signed", "split"])
def test_core_reports_no_nan(core_results, name):
    numbers = [value for group in core_results[name].values() for value in group.values()]
    assert np.isfinite(numbers).all()


def test_core_in_bfloat16(wrappers, dictionary, text_folder, core_results, tmp_path):
    place = {"model_name": MODEL, "hook_name": HOOK, "hook_layer": LAYER}
    results = core.multiple_evals(
        [("bfloat16", saebench_wrapper(dictionary, split=True, **place))],
        n_eval_reconstruction_batches=BATCHES,
        n_eval_sparsity_variance_batches=BATCHES,
        eval_batch_size_prompts=PROMPTS,
        dataset=str(text_folder),
        context_size=CONTEXT,
        output_folder=str(tmp_path),
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True,
        dtype="bfloat16",
        device="cpu",
    )
    assert len(results) == 1
    found = {"bfloat16": results[0]["metrics"]}
    for metric in "ce_loss_score", "explained_variance", "cossim":
        assert _metric(found, "bfloat16", metric) == pytest.approx(_metric(core_results, "split", metric), abs=0.03)


# --- sparse probing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def probing_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("probing")


@pytest.fixture(scope="session")
def probing_results(wrappers, probing_folder):
    config = probing.SparseProbingSaeProbesEvalConfig(
        model_name=MODEL,
        dataset_names=DATASETS,
        ks=[1, 16],
        results_path=str(probing_folder / "probes"),
        model_cache_path=str(probing_folder / "activations"),
    )
    results = probing.run_eval(config, list(wrappers.items()), "cpu", str(probing_folder / "results"))
    assert list(results) == ["signed_custom_sae", "split_custom_sae"]
    return {name: results[f"{name}_custom_sae"] for name in wrappers}


@pytest.mark.parametrize("name", ["signed", "split"])
def test_probes_find_what_the_prompts_are_about(probing_results, name):
    details = probing_results[name]["eval_result_details"]
    assert sorted(detail["dataset_name"] for detail in details) == DATASETS
    for detail in details:
        assert 0.5 < detail["sae_metrics_by_k"][16]["test_accuracy"] <= 1
        assert 0.5 < detail["llm_test_accuracy"] <= 1


@pytest.mark.parametrize("dataset", DATASETS)
def test_probes_are_of_the_codes_of_the_dictionary(probing_results, wrappers, dictionary, probing_folder, dataset):
    cache = probing_folder / "activations"
    place = {"setting": "normal", "dataset": dataset, "hook_name": HOOK, "model_name": MODEL, "device": "cpu"}
    found = {
        name: generate_sae_activations(wrapper, **place, num_train=None, frac=None, model_cache_path=cache)
        for name, wrapper in wrappers.items()
    }
    x, both = found["signed"].X_train.numpy(), found["split"].X_train.numpy()
    np.testing.assert_array_equal(both[:, :M] - both[:, M:], x)
    activations = torch.load(cache / f"model_activations_{MODEL}" / f"{dataset}_{HOOK}.pt", weights_only=True).numpy()
    expected = dictionary.encode(activations).to_csr().toarray()
    of_its_prompt = cdist(x, expected, "chebyshev").min(axis=1)
    assert np.mean(of_its_prompt < 1e-4) > 0.99  # not all: two atoms may be equally good, but for rounding
