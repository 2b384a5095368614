"""Splicing a reconstruction into a model gives what transformers gives when its hidden states are replaced by hand."""

import copy
import json

import numpy as np
import pytest
from click.testing import CliRunner

from dbksvd_dask import Dictionary
from dbksvd_dask.cli.evaluate import evaluate as command
from dbksvd_dask.metrics import relative_error, variance_explained

torch = pytest.importorskip("torch", reason='language models need torch: pip install "dbksvd-dask[harvest]"')
transformers = pytest.importorskip("transformers", reason='needs transformers: pip install "dbksvd-dask[harvest]"')
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

from dbksvd_dask.language.splicing import evaluate_splicing  # noqa: E402

D, LAYER, LAYERS = 16, 1, 3
TEXTS = ["the cat sat on a mat", "a dog ran away from the cat and sat on it and looked at another mat", "it ran"]
WORDS = sorted({word for text in TEXTS for word in text.split()})


@pytest.fixture(scope="module")
def tokenizer():
    """Words are tokens, after a BOS."""
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<s>", *WORDS])}, unk_token="<s>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<s>", unk_token="<s>")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=12, n_embd=D, n_layer=LAYERS, n_head=2, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).double().eval()


@pytest.fixture(scope="module")
def dictionary():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((24, D))
    return Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), 4, mean=rng.standard_normal(D))


@pytest.fixture
def evaluate(model, tokenizer):
    def evaluated(dictionaries, texts=TEXTS, **options):
        return evaluate_splicing(model, texts, dictionaries, **{"layer": LAYER, "tokenizer": tokenizer} | options)

    return evaluated


def literally(model, tokenizer, reconstruct, layer=LAYER, window=12):
    """Losses and divergences token by token, one window at a time, by a forward pass through the blocks by hand."""
    losses, clean_losses, divergences = [], [], []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), window - 1):
            tokens = torch.tensor([[0, *ids[start : start + window - 1]]])
            with torch.no_grad():
                clean = model(tokens, output_hidden_states=True)
                states = clean.hidden_states[layer].clone()
                states[0, 1:] = torch.from_numpy(reconstruct(states[0, 1:].numpy()))
                for block in model.transformer.h[layer:]:
                    given = block(states)
                    states = given[0] if isinstance(given, tuple) else given
                logits = model.lm_head(model.transformer.ln_f(states))
            p, q = (np.exp(x[0].numpy()) / np.exp(x[0].numpy()).sum(1, keepdims=True) for x in (clean.logits, logits))
            for i in range(1, tokens.shape[1] - 1):  # not what BOS predicts
                target = int(tokens[0, i + 1])
                clean_losses.append(-np.log(p[i, target]))
                losses.append(-np.log(q[i, target]))
                divergences.append((p[i] * np.log(p[i] / q[i])).sum())
    return np.mean(clean_losses), np.mean(losses), np.mean(divergences)


def rows_of(model, tokenizer, layer=LAYER):
    """Hidden states of all tokens but BOS."""
    found = []

    def keep(rows):
        found.append(rows.copy())
        return rows

    literally(model, tokenizer, keep, layer)
    return np.concatenate(found)


def reconstructed(dictionary, k):
    return lambda rows: dictionary.decode(dictionary.encode(rows, k))


def test_a_dictionary_is_scored_as_when_hidden_states_are_replaced_by_hand(model, tokenizer, dictionary, evaluate):
    result = evaluate({"ours": dictionary}, n_nonzero_coefs=(2, 4))
    rows = rows_of(model, tokenizer)
    _, zero, kl_zero = literally(model, tokenizer, np.zeros_like)
    _, mean, kl_mean = literally(model, tokenizer, lambda states: 0 * states + rows.mean(axis=0))
    for k, found in zip((2, 4), (result.isel(reconstruction=i) for i in range(2)), strict=True):
        clean, spliced, divergence = literally(model, tokenizer, reconstructed(dictionary, k))
        codes = dictionary.encode(rows, k)
        expected = {
            "loss_clean": clean,
            "loss": spliced,
            "loss_zero": zero,
            "loss_mean": mean,
            "kl": divergence,
            "kl_zero": kl_zero,
            "kl_mean": kl_mean,
            "loss_recovered": (zero - spliced) / (zero - clean),
            "loss_recovered_mean": (mean - spliced) / (mean - clean),
            "l0": (codes.values != 0).sum(axis=1).mean(),
            "alive_atoms": len(set(codes.indices[codes.indices >= 0].tolist())),
            "n_atoms": 24,
            "variance_explained": variance_explained(rows, dictionary.decode(codes)),
            "relative_error": relative_error(rows, dictionary.decode(codes)),
        }
        assert set(expected) == set(result.data_vars)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)
        assert (found.dictionary, found.n_nonzero_coefs) == ("ours", k)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_every_layer_is_replaced_where_transformers_counts_it(model, tokenizer, dictionary, evaluate, layer):
    _, spliced, divergence = literally(model, tokenizer, reconstructed(dictionary, 4), layer)
    result = evaluate(dictionary, layer=layer)
    np.testing.assert_allclose([result.loss[0], result.kl[0]], [spliced, divergence], rtol=1e-9)


def test_at_the_last_layer_the_head_reads_the_reconstruction(model, tokenizer, dictionary, evaluate):
    tokens = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = model.transformer(tokens)[0][0, 1:]  # after the final norm
        found = torch.from_numpy(reconstructed(dictionary, 4)(states.numpy()))
        loss = torch.nn.functional.cross_entropy(model.lm_head(found)[:-1], tokens[0, 2:])
    np.testing.assert_allclose(evaluate(dictionary, TEXTS[:1], layer=LAYERS).loss[0], float(loss), rtol=1e-9)


def test_the_identity_recovers_all_and_zeros_recover_nothing(evaluate):
    result = evaluate({"identity": lambda rows: rows, "zeros": np.zeros_like}).set_index(reconstruction="dictionary")
    identity, zeros = result.sel(reconstruction="identity"), result.sel(reconstruction="zeros")
    assert identity.loss == result.loss_clean
    assert (identity.loss_recovered, identity.loss_recovered_mean, identity.kl) == (1, 1, 0)
    assert (identity.variance_explained, identity.relative_error) == (1, 0)
    assert zeros.loss == result.loss_zero != result.loss_clean
    assert zeros.loss_recovered == 0
    assert zeros.kl == result.kl_zero > 0
    assert zeros.relative_error == 1


def test_the_mean_of_the_hidden_states_recovers_nothing_relative_to_the_mean(model, tokenizer, evaluate):
    mean = rows_of(model, tokenizer).mean(axis=0)
    result = evaluate(lambda rows: np.broadcast_to(mean, rows.shape))
    np.testing.assert_allclose(result.loss_recovered_mean, 0, atol=1e-9)
    np.testing.assert_allclose(result.variance_explained, 0, atol=1e-12)


def test_only_tokens_of_text_are_replaced(model, tokenizer, evaluate):
    seen = []
    result = evaluate(lambda rows: seen.append(rows.copy()) or rows)
    rows = rows_of(model, tokenizer)
    seen = np.concatenate(seen)
    assert result.n_tokens == len(seen) == len(rows) == sum(len(text.split()) for text in TEXTS)
    np.testing.assert_allclose(np.sort(seen.sum(axis=1)), np.sort(rows.sum(axis=1)), rtol=1e-9)
    assert result.n_predictions == len(rows) - 4  # the last token of each of four windows predicts none


def test_special_tokens_within_a_text_are_neither_replaced_nor_predicted(evaluate):
    plain = evaluate(np.zeros_like, ["the cat sat"])
    special = evaluate(np.zeros_like, ["the cat <s> sat", "the cat unknown sat"])
    assert (plain.n_tokens, plain.n_predictions) == (3, 2)
    assert (special.n_tokens, special.n_predictions) == (6, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_and_their_padding_change_nothing(dictionary, evaluate, batch_size):
    expected, found = evaluate(dictionary, batch_size=3), evaluate(dictionary, batch_size=batch_size)
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, err_msg=name)


def test_reconstructions_in_several_goes_are_the_same(dictionary, evaluate, monkeypatch):
    expected = evaluate(dictionary, batch_size=1)
    calls = []
    monkeypatch.setattr("dbksvd_dask.language.splicing._BYTES_OF_RECONSTRUCTIONS", 1)
    found = evaluate({"ours": dictionary, "f": lambda rows: calls.append(len(rows)) or rows}, batch_size=1)
    assert sorted(calls) == [2, 5, 6, 11]
    for name in ("loss", "kl", "l0", "alive_atoms", "variance_explained"):
        np.testing.assert_allclose(found[name][0], expected[name][0], rtol=1e-9, err_msg=name)


def test_k_is_the_dictionarys_own_unless_others_are_asked_for(dictionary, evaluate):
    assert evaluate(dictionary).n_nonzero_coefs.values.tolist() == [4]
    assert evaluate(dictionary, n_nonzero_coefs=3).n_nonzero_coefs.values.tolist() == [3]
    result = evaluate({"ours": dictionary, "f": np.zeros_like}, n_nonzero_coefs=[1, 2])
    assert result.dictionary.values.tolist() == ["ours", "ours", "f"]
    assert result.n_nonzero_coefs.values.tolist() == [1, 2, 0]
    assert np.isnan(result.l0[2])
    assert np.isnan(result.alive_atoms[2])


def test_the_pursuit_can_be_chosen(model, tokenizer, dictionary, evaluate):
    _, spliced, _ = literally(
        model, tokenizer, lambda rows: dictionary.decode(dictionary.encode(rows, 4, encoder="omp"))
    )
    np.testing.assert_allclose(evaluate(dictionary, encoder="omp").loss, spliced, rtol=1e-9)


class Autoencoder(torch.nn.Module):
    """ReLU between two linear maps, in float32 as SAEs are."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(40, D, generator=generator) / 4)

    def encode(self, rows):
        return torch.relu(rows @ self.weight.T - 1)

    def decode(self, codes):
        return codes @ self.weight


def test_an_autoencoder_reconstructs_by_its_own_encoder_and_decoder(model, tokenizer, evaluate):
    sae = Autoencoder()

    def by_hand(rows):
        weight = sae.weight.detach().numpy()
        return np.maximum(rows.astype(np.float32) @ weight.T - 1, 0) @ weight

    _, spliced, divergence = literally(model, tokenizer, by_hand)
    rows = rows_of(model, tokenizer).astype(np.float32)
    codes = np.maximum(rows @ sae.weight.detach().numpy().T - 1, 0)
    result = evaluate(sae)
    np.testing.assert_allclose([result.loss[0], result.kl[0]], [spliced, divergence], rtol=1e-5)
    np.testing.assert_allclose(result.l0, (codes > 0).sum(axis=1).mean(), rtol=1e-9)
    np.testing.assert_array_equal(result.alive_atoms, (codes > 0).any(axis=0).sum())
    assert result.n_atoms == 40


def test_an_autoencoder_makes_few_dense_codes_at_a_time(evaluate, monkeypatch):
    expected = evaluate(Autoencoder())
    monkeypatch.setattr("dbksvd_dask.language.reconstructions._ROWS_OF_CODES", 5)
    monkeypatch.setattr("dbksvd_dask.language.predictions._PREDICTIONS", 3)
    sae, given = Autoencoder(), []
    encode = sae.encode
    sae.encode = lambda rows: given.append(len(rows)) or encode(rows)
    found = evaluate(sae)
    assert sorted(given) == [4, 5, 5, 5, 5]
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)


def test_the_model_is_left_as_it_was(model, tokenizer, dictionary, evaluate):
    tokens = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(tokens).logits
        evaluate(dictionary)
        assert torch.equal(model(tokens).logits, before)


def test_the_command_prints_what_the_function_gives(model, tokenizer, dictionary, evaluate, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    dictionary.to_zarr(tmp_path / "dictionary.zarr")
    arguments = [str(tmp_path / name) for name in ("model", "texts.txt", "dictionary.zarr")]
    arguments += ["--layer", str(LAYER), "-k", "2", "-k", "4"]
    found = CliRunner().invoke(command, [*arguments, "--json"])
    assert found.exit_code == 0, found.output
    printed, expected = json.loads(found.stdout), evaluate(dictionary, n_nonzero_coefs=(2, 4))
    assert printed["n_predictions"] == expected.n_predictions
    for name in ("loss", "kl", "l0"):  # the command computes in float32
        np.testing.assert_allclose([row[name] for row in printed["reconstructions"]], expected[name], rtol=1e-3)
    table = CliRunner().invoke(command, arguments).stdout
    assert f"loss {float(expected.loss_clean):.3f}" in table
    assert "loss recovered" in table
    assert "layer=7 is not in" in CliRunner().invoke(command, [*arguments, "--layer", "7"]).output


class TestBadInput:
    def test_another_width(self, evaluate):
        with pytest.raises(ValueError, match="small is over 8 features, but the hidden states of the model have 16"):
            evaluate({"small": Dictionary(np.eye(8), 2)})

    def test_a_function_to_another_width(self, evaluate):
        with pytest.raises(ValueError, match=r"half gives an array of shape \(24, 8\) for hidden states of \(24, 16\)"):
            evaluate({"half": lambda rows: rows[:, :8]})

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite(self, evaluate, bad):
        def spoiled(rows):
            rows[3] = bad
            return rows

        with pytest.raises(
            ValueError, match="spoiled gives NaN or infinity for 1 of 24 hidden states, first for row 3"
        ):
            evaluate({"spoiled": spoiled})

    def test_k_too_large(self, dictionary, evaluate):
        with pytest.raises(ValueError, match="ours: n_nonzero_coefs=25 must be between 1 and the number of atoms, 24"):
            evaluate({"ours": dictionary}, n_nonzero_coefs=(4, 25))

    def test_no_k_at_all(self, dictionary, evaluate):
        with pytest.raises(ValueError, match=r"n_nonzero_coefs=\[\] is empty"):
            evaluate(dictionary, n_nonzero_coefs=[])

    def test_a_reconstruction_that_the_model_cannot_hold(self, model, tokenizer):
        half = copy.deepcopy(model).half()
        with pytest.raises(ValueError, match=r"too large for torch.float16, in which GPT2LMHeadModel computes"):
            evaluate_splicing(half, TEXTS, lambda rows: 1e6 + rows, layer=LAYER, tokenizer=tokenizer)

    def test_a_damaged_model(self, model, tokenizer, dictionary):
        damaged = copy.deepcopy(model)
        with torch.no_grad():
            damaged.transformer.h[0].mlp.c_fc.weight[0, 0] = np.nan
        with pytest.raises(ValueError, match=r"GPT2LMHeadModel predicts NaN, computing in torch.float64"):
            evaluate_splicing(damaged, TEXTS, dictionary, layer=LAYER, tokenizer=tokenizer)

    def test_no_k(self, evaluate):
        with pytest.raises(ValueError, match=r"ours: .*no n_nonzero_coefs of its own"):
            evaluate({"ours": Dictionary(np.eye(D))})

    def test_unknown_layer(self, dictionary, evaluate):
        with pytest.raises(ValueError, match="layer=4 is not in GPT2LMHeadModel, which has 3 blocks"):
            evaluate(dictionary, layer=4)

    @pytest.mark.parametrize("texts", [[], [""], ["cat"], ["<s> cat <s>"]])
    def test_nothing_to_predict(self, dictionary, evaluate, texts):
        with pytest.raises(ValueError, match="nothing to predict"):
            evaluate(dictionary, texts)

    def test_no_dictionaries(self, evaluate):
        with pytest.raises(ValueError, match="dictionaries is empty"):
            evaluate({})

    def test_no_dictionary(self, evaluate):
        with pytest.raises(TypeError, match="dictionaries has a str: pass a Dictionary"):
            evaluate({"ours": "dictionary.zarr"})

    @pytest.mark.parametrize("name", ["batch_size", "max_tokens"])
    def test_sizes(self, dictionary, evaluate, name):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            evaluate(dictionary, **{name: 0})
        with pytest.raises(TypeError, match=f"{name}=1.5 is not an integer"):
            evaluate(dictionary, **{name: 1.5})

    def test_a_model_without_head(self, model, tokenizer, dictionary):
        with pytest.raises(ValueError, match="GPT2Model does not predict tokens"):
            evaluate_splicing(model.transformer, TEXTS, dictionary, layer=1, tokenizer=tokenizer)

    def test_a_model_that_sees_what_it_should_predict(self, tokenizer, dictionary):
        config = transformers.BertConfig(
            vocab_size=32, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            initializer_range=0.5,
        )  # fmt: skip
        bert = transformers.BertForMaskedLM(config)
        with pytest.raises(ValueError, match="BertForMaskedLM is not a causal model"):
            evaluate_splicing(bert, TEXTS, dictionary, layer=1, tokenizer=tokenizer)
