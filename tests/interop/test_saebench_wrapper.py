"""The wrapper for SAEBench, without SAEBench: what it has to do for any of its evaluations."""

import copy
import json
from dataclasses import asdict

import numpy as np
import oracle
import pytest

import dbksvd_dask as dbk
from dbksvd_dask.interop import saebench_wrapper

torch = pytest.importorskip("torch", reason="a wrapper is a module of PyTorch")

M, D, K = 48, 12, 4
PLACE = {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post", "hook_layer": 1}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make(rng, **parameters):
    atoms = oracle.random_atoms(rng, M, D, np.float32)
    return dbk.Dictionary(atoms, **({"n_nonzero_coefs": K} | parameters))


def samples(rng, dictionary, n_samples=300):
    rows = oracle.sparse_samples(rng, n_samples, dictionary.atoms, K)
    return (rows if dictionary.mean is None else rows + dictionary.mean).astype(dictionary.dtype)


def wrap(dictionary, **parameters):
    return saebench_wrapper(dictionary, **(PLACE | parameters))


def on_device(wrapper, monkeypatch):
    """Have it encode on the CPU as it does on a GPU."""
    monkeypatch.setattr(type(wrapper), "_stays_on_cpu", lambda self, rows: False)
    return wrapper


KINDS = {
    "signed": {},
    "nonnegative": {"nonnegative": True},
    "with a mean": {"mean": np.linspace(-3, 3, D)},
    "until rtol": {"rtol": 0.3, "n_nonzero_coefs": 8},
    "orthogonal": {"encoder": "omp"},
    "in float64": {},
}


@pytest.fixture(params=KINDS)
def dictionary(request, rng):
    made = make(rng, **KINDS[request.param])
    if request.param == "in float64":
        return dbk.Dictionary(oracle.random_atoms(rng, M, D), K)
    return made


# --- codes and reconstructions are those of the dictionary ------------------------------------------------------------


def test_codes_are_those_of_the_dictionary(rng, dictionary):
    Y = samples(rng, dictionary)
    codes = wrap(dictionary).encode(torch.from_numpy(Y))
    assert codes.dtype == wrap(dictionary).dtype
    np.testing.assert_allclose(codes.numpy(), dictionary.encode(Y).to_csr().toarray(), atol=1e-5)


def test_reconstructions_are_those_of_the_dictionary(rng, dictionary):
    Y = samples(rng, dictionary)
    expected = dictionary.decode(dictionary.encode(Y))
    np.testing.assert_allclose(wrap(dictionary)(torch.from_numpy(Y)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["signed", "nonnegative", "with a mean", "until rtol"])
def test_codes_on_a_device_are_those_of_the_oracle(rng, kind, monkeypatch):
    dictionary = make(rng, **KINDS[kind])
    Y = samples(rng, dictionary)
    codes = on_device(wrap(dictionary), monkeypatch).encode(torch.from_numpy(Y)).numpy()
    centred = Y - (0 if dictionary.mean is None else dictionary.mean)
    limits = {"rtol": dictionary.rtol, "nonnegative": dictionary.nonnegative}
    rounding = oracle.pursuit_rounding(np.float32, D, 4 * dictionary.n_nonzero_coefs)
    expected = oracle.matching_pursuit(
        centred, dictionary.atoms, dictionary.n_nonzero_coefs, rounding=rounding, **limits
    )
    clear = expected.margins > 2 * rounding
    assert np.count_nonzero(clear) > len(Y) / 2
    X = oracle.dense(expected.indices, expected.values, M)
    np.testing.assert_allclose(codes[clear], X[clear], atol=1e-4)


def test_on_a_device_the_first_of_equal_atoms_is_picked(monkeypatch):
    atoms = np.eye(4, dtype="float32")
    wrapper = on_device(wrap(dbk.Dictionary(atoms, 2)), monkeypatch)
    codes = wrapper.encode(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    np.testing.assert_array_equal(codes, [[1, -1, 0, 0]])


def test_on_a_device_an_atom_may_be_picked_again(monkeypatch):
    """Two atoms at 60 degrees take turns: k = 2 ends before a third atom, not after two steps."""
    atoms = np.array([[1, 0, 0], [0.5, np.sqrt(0.75), 0], [0, 0, 1]], "float32")
    dictionary = dbk.Dictionary(atoms, 2)
    y = np.array([[2.0, 2.0, 0.01]], "float32")
    codes = on_device(wrap(dictionary), monkeypatch).encode(torch.from_numpy(y)).numpy()
    expected = oracle.matching_pursuit(y, atoms, 2)
    np.testing.assert_allclose(codes, oracle.dense(expected.indices, expected.values, 3), atol=1e-6)
    two_steps = oracle.matching_pursuit(y, atoms, 2, max_steps=2)
    assert not np.allclose(codes, oracle.dense(two_steps.indices, two_steps.values, 3), atol=1e-3)


def test_another_k_than_the_dictionarys(rng):
    dictionary = make(rng)
    Y = samples(rng, dictionary)
    codes = wrap(dictionary, n_nonzero_coefs=2).encode(torch.from_numpy(Y))
    assert (codes != 0).sum(dim=1).max() == 2


@pytest.mark.parametrize("kind", ["signed", "with a mean", "orthogonal"])
def test_split_has_positive_latents_of_both_signs_and_the_same_reconstruction(rng, kind):
    dictionary = make(rng, **KINDS[kind])
    Y = torch.from_numpy(samples(rng, dictionary))
    signed, split = wrap(dictionary), wrap(dictionary, split=True)
    x, both = signed.encode(Y), split.encode(Y)
    assert both.shape == (len(Y), 2 * M)
    assert (both >= 0).all()
    assert (x < 0).any()
    assert torch.equal(both[:, :M] - both[:, M:], x)
    assert torch.equal((both != 0).sum(dim=1), (x != 0).sum(dim=1))
    assert torch.equal(split(Y), signed(Y))


@pytest.mark.parametrize("split", [False, True])
def test_decoding_is_the_product_with_the_decoder_weights(rng, split):
    wrapper = wrap(make(rng, mean=rng.standard_normal(D)), split=split)
    codes = torch.from_numpy(rng.standard_normal((7, wrapper.cfg.d_sae)).astype("float32"))
    assert wrapper.W_dec.shape == (wrapper.cfg.d_sae, wrapper.cfg.d_in)
    torch.testing.assert_close(wrapper.decode(codes), codes @ wrapper.W_dec + wrapper.b_dec)


# --- shapes, masks, memory, gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_windows_are_encoded_row_by_row(rng, split):
    dictionary = make(rng)
    wrapper = wrap(dictionary, split=split)
    Y = torch.from_numpy(samples(rng, dictionary, 30))
    codes = wrapper.encode(Y.reshape(5, 6, D))
    assert codes.shape == (5, 6, wrapper.cfg.d_sae)
    torch.testing.assert_close(codes.reshape(30, -1), wrapper.encode(Y))
    assert wrapper.decode(codes).shape == (5, 6, D)


def test_no_rows_have_no_codes(rng):
    assert wrap(make(rng)).encode(torch.zeros(0, D)).shape == (0, M)


@pytest.mark.parametrize("path", ["numba", "torch"])
@pytest.mark.parametrize("mean", [None, np.ones(D)])
def test_masked_tokens_have_zero_codes(rng, mean, path, monkeypatch):
    dictionary = make(rng, mean=mean)
    Y = torch.from_numpy(samples(rng, dictionary, 20))
    Y[3:9] = 0
    wrapper = wrap(dictionary) if path == "numba" else on_device(wrap(dictionary), monkeypatch)
    codes = wrapper.encode(Y)
    assert not codes[3:9].any()
    assert codes[:3].any(dim=1).all()
    assert codes.isfinite().all()
    torch.testing.assert_close(wrapper.decode(codes)[3:9], wrapper.b_dec.expand(6, D))


def test_what_is_returned_may_be_written_into(rng):
    dictionary = make(rng)
    wrapper = wrap(dictionary)
    Y = torch.from_numpy(samples(rng, dictionary, 20))
    before = Y.clone(), wrapper.encode(Y).clone(), wrapper(Y).clone()
    for call in wrapper.encode, wrapper:
        call(Y).zero_()
    assert torch.equal(Y, before[0])
    assert torch.equal(wrapper.encode(Y), before[1])
    assert torch.equal(wrapper(Y), before[2])


def test_gradients_pass_through_decode_only(rng):
    wrapper = wrap(make(rng), split=True)
    codes = torch.ones(2, 2 * M, requires_grad=True)
    weights = torch.from_numpy(rng.standard_normal((2, D)).astype("float32"))
    (wrapper.decode(codes) * weights).sum().backward()
    torch.testing.assert_close(codes.grad, weights @ wrapper.W_dec.T)
    activations = torch.ones(2, D, requires_grad=True)
    assert not wrapper.encode(activations).requires_grad


def test_encodes_in_inference_mode(rng):
    dictionary = make(rng)
    wrapper, Y = wrap(dictionary), torch.from_numpy(samples(rng, dictionary, 20))
    with torch.inference_mode():
        codes = wrapper.encode(Y)
    assert torch.equal(codes, wrapper.encode(Y))


# --- dtype, device, state ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_bfloat16_in_and_out_is_computed_in_the_precision_of_the_atoms(rng, split):
    dictionary = make(rng)
    exact, wrapper = wrap(dictionary, split=split), wrap(dictionary, split=split).to(dtype=torch.bfloat16)
    Y = torch.from_numpy(samples(rng, dictionary)).to(torch.bfloat16)
    codes = wrapper.encode(Y)
    assert codes.dtype == wrapper.decode(codes).dtype == wrapper.W_dec.dtype == wrapper.W_enc.dtype == torch.bfloat16
    assert wrapper.cfg.dtype == "bfloat16"
    assert torch.equal(codes, exact.encode(Y).to(torch.bfloat16))


def test_to_another_dtype_and_back_rounds_nothing(rng):
    dictionary = make(rng)
    wrapper = wrap(dictionary).to("cpu", torch.bfloat16).half().to(device=torch.device("cpu"), dtype=torch.float32)
    np.testing.assert_array_equal(wrapper.W_dec, dictionary.atoms)
    assert (wrapper.dtype, wrapper.cfg.dtype, wrapper.device) == (torch.float32, "float32", torch.device("cpu"))


def test_to_another_device(rng):
    wrapper = wrap(make(rng)).to("meta")
    assert wrapper.device.type == wrapper.W_dec.device.type == wrapper.W_enc.device.type == "meta"


def test_the_state_of_one_makes_another_the_same(rng):
    dictionary = make(rng, mean=rng.standard_normal(D))
    Y = torch.from_numpy(samples(rng, dictionary, 50))
    wrapper, other = wrap(dictionary), wrap(make(rng))
    assert not torch.equal(other(Y), wrapper(Y))
    other.load_state_dict(wrapper.state_dict())
    assert torch.equal(other(Y), wrapper(Y))
    assert torch.equal(copy.deepcopy(wrapper).eval()(Y), wrapper(Y))


def test_nothing_is_trained(rng):
    assert list(wrap(make(rng)).parameters()) == []


def test_the_configuration_is_what_results_keep(rng):
    wrapper = wrap(make(rng), split=True)
    assert json.loads(json.dumps(wrapper.cfg.to_dict())) == asdict(wrapper.cfg)
    assert PLACE.items() <= wrapper.cfg.to_dict().items()
    assert (wrapper.cfg.d_in, wrapper.cfg.d_sae, wrapper.cfg.dtype) == (D, 2 * M, "float32")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"model_name": ""}, ValueError, "model_name is empty"),
        ({"model_name": None}, TypeError, "model_name=None must be a str"),
        ({"hook_name": ""}, ValueError, "hook_name is empty"),
        ({"hook_layer": "1"}, TypeError, "hook_layer='1' must be a whole number"),
        ({"hook_layer": -1}, ValueError, "hook_layer=-1 must be 0 or more"),
        ({"hook_layer": 2}, ValueError, "hook_layer=2, but hook_name='blocks.1.hook_resid_post' is in block 1"),
        ({"n_nonzero_coefs": M + 1}, ValueError, "n_nonzero_coefs=49 must be between 1 and the number of atoms, 48"),
        ({"n_nonzero_coefs": 2.5}, TypeError, "n_nonzero_coefs=2.5 must be a whole number"),
        ({"split": "yes"}, TypeError, "split='yes' must be True or False"),
    ],
)
def test_bad_arguments_are_named(rng, parameters, error, message):
    with pytest.raises(error, match=message):
        wrap(make(rng), **parameters)


def test_dictionaries_that_cannot_be_wrapped(rng):
    with pytest.raises(TypeError, match="dictionary is a ndarray: pass a Dictionary"):
        wrap(np.eye(3))
    with pytest.raises(ValueError, match="no n_nonzero_coefs of its own"):
        wrap(make(rng, n_nonzero_coefs=None))
    with pytest.raises(ValueError, match="split=True, but the dictionary is nonnegative"):
        wrap(make(rng, nonnegative=True), split=True)


def test_activations_that_cannot_be_encoded(rng):
    wrapper = wrap(make(rng))
    with pytest.raises(ValueError, match=r"the activations have shape \(2, 5\), not \(…, 12\)"):
        wrapper.encode(torch.zeros(2, 5))
    rows = torch.ones(3, D)
    rows[1, 4] = torch.nan
    with pytest.raises(ValueError, match="row 1 of the activations is not finite"):
        wrapper.encode(rows)
