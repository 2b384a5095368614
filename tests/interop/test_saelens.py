"""What is written for SAELens, loaded and run by SAELens itself."""

import json
import warnings

import numpy as np
import oracle
import pytest
from dictionaries import K, assert_same, dictionary, real_rows

from dbksvd_dask.interop import exact_pursuit, from_saelens, to_hub, to_saelens

torch = pytest.importorskip("torch", reason="SAELens needs PyTorch")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "The 'utils' module has been deprecated", DeprecationWarning)
    sae_lens = pytest.importorskip("sae_lens", reason="the extra interop is not installed")

NAMES = {"model_name": "all-MiniLM-L6-v2", "hook_name": "blocks.3.hook_resid_pre"}
DICTIONARIES = {
    "signed": {},
    "signed without a mean": {"mean": False},
    "nonnegative": {"nonnegative": True},
    "nonnegative without a mean": {"nonnegative": True, "mean": False},
    "Matryoshka": {"group_sizes": [16, 16, 64]},
}
# A float32 row may go another way where two atoms are as good up to rounding: none of these rows does.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


@pytest.fixture(params=DICTIONARIES.values(), ids=DICTIONARIES.keys())
def parameters(request):
    return request.param


def loaded(D, folder, k=None, **options):
    to_saelens(D, folder, **NAMES, n_nonzero_coefs=k)
    return sae_lens.SAE.load_from_disk(folder, **options)


def reconstruction(sae, rows):
    with torch.no_grad():
        return sae.decode(sae.encode(torch.from_numpy(rows))).numpy()


def assert_close(found, expected, rows):
    """Each row to so much of its norm."""
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(rows, axis=1)
    assert errors.max() < TOLERANCES[str(rows.dtype)]


def after_k_steps(D, rows, k):
    """The literal pursuit, ended after k steps: reconstruction, and whether k + 1 steps pick an atom again."""
    mean = 0 if D.mean is None else D.mean
    codes, longer = (
        oracle.matching_pursuit(rows - mean, D.atoms, steps, max_steps=steps, nonnegative=D.nonnegative)
        for steps in (k, k + 1)
    )
    reconstructed = np.einsum("nk,nkd->nd", codes.values * (codes.indices >= 0), D.atoms[codes.indices]) + mean
    return reconstructed, (longer.indices < 0).any(axis=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [None, 10])
def test_saelens_reconstructs_as_k_steps_of_the_pursuit_do(parameters, dtype, k, tmp_path):
    D, rows = dictionary(dtype, **parameters), real_rows(dtype=dtype)
    sae = loaded(D, tmp_path / "sae", k)
    expected, again = after_k_steps(D, rows, k or K)
    assert_close(reconstruction(sae, rows), expected, rows)
    # so that it is the dictionary's own where the pursuit of that ends after k steps, too
    own = D.decode(D.encode(rows, k))
    assert_close(reconstruction(sae, rows)[~again], own[~again], rows[~again])
    assert (~again).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [None, 10])
def test_the_exact_pursuit_reconstructs_all_samples_as_the_dictionary_does(parameters, dtype, k, tmp_path):
    D, rows = dictionary(dtype, **parameters), real_rows(dtype=dtype)
    sae = loaded(D, tmp_path / "sae", k, converter=exact_pursuit)
    assert_close(reconstruction(sae, rows), D.decode(D.encode(rows, k)), rows)


def test_there_are_samples_in_which_the_two_pursuits_differ():
    D, rows = dictionary(), real_rows()
    assert after_k_steps(D, rows, 20)[1].any()


def test_latents_of_the_exact_pursuit_are_the_positive_and_the_negative_codes(tmp_path):
    D, rows = dictionary(), real_rows()
    latents = loaded(D, tmp_path / "sae", converter=exact_pursuit).encode(torch.from_numpy(rows)).detach().numpy()
    codes = D.encode(rows).to_csr().toarray()
    np.testing.assert_allclose(latents, np.hstack([codes.clip(0), (-codes).clip(0)]), atol=1e-12)


def test_rtol_ends_the_exact_pursuit(tmp_path):
    D, rows = dictionary(rtol=0.6), real_rows()
    with pytest.warns(UserWarning, match=r"rtol=0\.6: the codes will differ"):
        sae = loaded(D, tmp_path / "sae", 20, converter=exact_pursuit)
    codes = D.encode(rows, 20)
    assert 1 < (codes.indices >= 0).sum(axis=1).mean() < 19
    assert_close(reconstruction(sae, rows), D.decode(codes), rows)


def test_gradients_pass_through_the_exact_pursuit(tmp_path):
    D = dictionary()
    sae = loaded(D, tmp_path / "sae", converter=exact_pursuit)
    rows = torch.from_numpy(real_rows(3)).requires_grad_()
    # the support stays as it is for a small enough step
    assert torch.autograd.gradcheck(lambda y: sae.encode(y).sum(dim=1), rows, eps=1e-7, atol=1e-5, fast_mode=True)


def test_windows_and_zero_rows(tmp_path):
    D, rows = dictionary(mean=False), real_rows(12)
    rows[3] = 0
    for number, options in enumerate([{}, {"converter": exact_pursuit}]):
        sae = loaded(D, tmp_path / str(number), 3, **options)
        flat = reconstruction(sae, rows)
        np.testing.assert_allclose(reconstruction(sae, rows.reshape(3, 4, -1)).reshape(flat.shape), flat, atol=1e-12)
        np.testing.assert_array_equal(flat[3], 0)


def test_no_rows_have_no_latents_in_the_exact_pursuit(tmp_path):
    sae = loaded(dictionary(), tmp_path / "sae", 3, converter=exact_pursuit)
    nothing = torch.zeros(2, 0, 384, dtype=torch.float64)
    assert sae.encode(nothing).shape == (2, 0, 192)
    assert sae(nothing).shape == nothing.shape


def test_names_and_settings_survive(tmp_path, recwarn):
    sae = loaded(dictionary(labels={3: "rivers"}, provenance={"seed": 4}), tmp_path / "sae")
    assert not recwarn  # not for an old version
    assert (sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name) == tuple(NAMES.values())
    assert (sae.cfg.max_iterations, sae.cfg.d_in, sae.cfg.d_sae) == (K, 384, 192)
    assert sae.cfg.metadata.dbksvd_dask["labels"] == {"3": "rivers"}


@pytest.mark.parametrize("options", [{}, {"converter": exact_pursuit}], ids=["as it is", "exact"])
def test_an_sae_becomes_the_dictionary_again(parameters, options, tmp_path):
    D = dictionary(**parameters, labels={3: "rivers"}, provenance={"seed": 4})
    sae = loaded(D, tmp_path / "sae", **options)
    assert_same(from_saelens(sae), D)
    sae.save_model(tmp_path / "again")
    assert_same(from_saelens(tmp_path / "again"), D)
    sae_lens.SAE.load_from_disk(tmp_path / "again")


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_it_is_spliced_into_a_model_at_its_hook(tmp_path):
    from transformer_lens import HookedTransformerConfig

    torch.manual_seed(0)
    sizes = {"n_layers": 2, "d_model": 384, "n_ctx": 8, "d_head": 16, "n_heads": 2, "d_mlp": 16, "d_vocab": 20}
    model = sae_lens.HookedSAETransformer(HookedTransformerConfig(**sizes, act_fn="gelu", device="cpu"))
    D, hook = dictionary("float32", mean=False), "blocks.1.hook_resid_pre"
    to_saelens(D, tmp_path / "sae", model_name="tiny", hook_name=hook)
    sae = sae_lens.SAE.load_from_disk(tmp_path / "sae", converter=exact_pursuit)
    tokens = torch.arange(16).reshape(2, 8)

    def replace(activations, hook):
        rows = activations.numpy().reshape(-1, 384)
        return torch.from_numpy(D.decode(D.encode(rows))).reshape(activations.shape)

    with torch.no_grad():
        clean, spliced = model(tokens), model.run_with_saes(tokens, saes=[sae])
        expected = model.run_with_hooks(tokens, fwd_hooks=[(hook, replace)])
    torch.testing.assert_close(spliced, expected, atol=1e-4, rtol=1e-4)
    assert (spliced - clean).abs().max() > 1e-2


def test_a_repository_of_the_hub_loads_by_its_name(tmp_path, monkeypatch):
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def download(repo_id, filename, force_download=False):
        if not (tmp_path / repo_id / filename).is_file():
            raise loaders.EntryNotFoundError(filename)
        return str(tmp_path / repo_id / filename)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    D, rows = dictionary(), real_rows()
    to_hub(D, tmp_path / "user" / "repository", **NAMES)
    sae = sae_lens.SAE.from_pretrained("user/repository", "saelens", dtype="float64")
    assert_close(reconstruction(sae, rows), after_k_steps(D, rows, K)[0], rows)


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "abstopk", "jumprelu"])
def test_decoders_of_the_architectures_of_saelens(architecture):
    sae_class, config_class = sae_lens.registry.get_sae_class(architecture)
    sae = sae_class(config_class(d_in=12, d_sae=20, **({"k": 5} if "topk" in architecture else {})))
    with torch.no_grad():
        sae.b_dec += 0.5
    D = from_saelens(sae)
    decoder = sae.W_dec.detach().numpy()
    np.testing.assert_allclose(D.atoms, decoder / np.linalg.norm(decoder, axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(D.mean, np.full(12, 0.5))
    assert D.n_nonzero_coefs == (5 if "topk" in architecture else None)
    assert D.nonnegative == (architecture != "abstopk")


def test_decoders_of_saes_in_training(tmp_path):
    cfg = sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(d_in=12, d_sae=20, k=5.0, matryoshka_widths=[8, 20])
    sae = sae_lens.MatryoshkaBatchTopKTrainingSAE(cfg)
    sae.save_model(tmp_path / "training")
    sae.save_inference_model(tmp_path / "inference")
    for D in (from_saelens(sae), from_saelens(tmp_path / "training")):
        assert (D.n_nonzero_coefs, D.group_sizes) == (5, (8, 12))
    D = from_saelens(tmp_path / "inference")  # a JumpReLU, which has neither
    assert (D.n_nonzero_coefs, D.group_sizes) == (None, ())


def test_half_precision_becomes_single(tmp_path):
    sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=12, d_sae=20, dtype="bfloat16"))
    sae.save_model(tmp_path / "sae")
    for D in (from_saelens(sae), from_saelens(tmp_path / "sae")):
        assert D.dtype == np.float32
        decoder = sae.W_dec.detach().float().numpy()
        np.testing.assert_allclose(D.atoms, decoder / np.linalg.norm(decoder, axis=1, keepdims=True), rtol=1e-6)


def test_what_is_no_dictionary_of_its_input_is_refused():
    sizes = {"d_in": 12, "d_out": 12, "d_sae": 20}
    transcoder = sae_lens.Transcoder(sae_lens.TranscoderConfig(**sizes, apply_b_dec_to_input=False))
    with pytest.raises(ValueError, match="'transcoder', whose decoder is no dictionary of its input"):
        from_saelens(transcoder)
    with pytest.raises(TypeError, match="source is a int: pass a folder of SAELens"):
        from_saelens(3)


def test_the_exact_pursuit_is_for_its_own_folders(tmp_path):
    sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=12, d_sae=20)).save_model(tmp_path / "other")
    with pytest.raises(ValueError, match="was not written by to_saelens: load it without exact_pursuit"):
        sae_lens.SAE.load_from_disk(tmp_path / "other", converter=exact_pursuit)
    for metadata in (None, {"dbksvd_dask": 3}, {"dbksvd_dask": {"encoder": "mp"}}):
        path = tmp_path / "other" / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"metadata": metadata}))
        with pytest.raises(ValueError, match="was not written by to_saelens"):
            exact_pursuit(tmp_path / "other")
    with pytest.warns(UserWarning, match='encoder="omp"'):
        to_saelens(dictionary(encoder="omp"), tmp_path / "omp", **NAMES)
    with pytest.raises(ValueError, match="encodes by 'omp'; this is for matching pursuit"):
        sae_lens.SAE.load_from_disk(tmp_path / "omp", converter=exact_pursuit)
    assert json.loads((tmp_path / "omp" / "cfg.json").read_text())["architecture"] == "matching_pursuit"
