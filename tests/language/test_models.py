"""Language models: which hidden states are meant by a layer, and what happens when they are replaced."""

import os
import re

import pytest

torch = pytest.importorskip("torch", reason="language models need torch")
transformers = pytest.importorskip("transformers", reason="language models need transformers")

import tiny_models  # noqa: E402
from tiny_models import N_FEATURES, N_LAYERS, TEXTS, WINDOW  # noqa: E402

from dbksvd_dask.language.models import LanguageModel, open_model  # noqa: E402

KINDS = [tiny_models.bert, tiny_models.gpt2, tiny_models.llama]
LAYERS = range(N_LAYERS + 1)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def opened(request):
    return LanguageModel(*request.param())


def two_inputs():
    """Ids of two batches of one shape, and their mask: the second row is padded on the right."""
    first, second = torch.randint(5, 50, (2, 2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(first)
    mask[1, 5:] = 0
    return first, second, mask


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_are_those_of_transformers(opened, layer):
    ids, _, mask = two_inputs()
    with torch.no_grad():
        expected = opened.model.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert (opened.n_layers, opened.n_features) == (len(expected) - 1, expected[0].shape[-1]) == (N_LAYERS, N_FEATURES)
    for counted in (layer, layer - N_LAYERS - 1):  # also from the last
        found = opened.hidden_states(ids, mask, counted)
        torch.testing.assert_close(found[mask == 1], expected[layer][mask == 1], rtol=0, atol=0)


@pytest.mark.parametrize("layer", range(N_LAYERS))
def test_blocks_behind_the_layer_are_not_computed(opened, layer):
    computed = []
    blocks = next(m for m in opened.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == N_LAYERS)
    hooks = [block.register_forward_hook(lambda *_, i=i: computed.append(i)) for i, block in enumerate(blocks)]
    opened.hidden_states(*two_inputs()[::2], layer)
    for hook in hooks:
        hook.remove()
    assert computed == list(range(layer))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_model_goes_on_with_what_a_layer_is_replaced_by(opened, layer):
    """With the hidden states of another input it gives what it gives for that input."""
    ids, others, mask = two_inputs()
    of_others = opened.hidden_states(others, mask, layer)
    seen = []
    with torch.no_grad():
        before, expected = (opened.model(input_ids=i, attention_mask=mask)[0] for i in (ids, others))
        with opened.replaced(layer, lambda states: seen.append(states) or of_others):
            found = opened.model(input_ids=ids, attention_mask=mask)[0]
        after = opened.model(input_ids=ids, attention_mask=mask)[0]
    torch.testing.assert_close(found[mask == 1], expected[mask == 1])
    torch.testing.assert_close(seen[0][mask == 1], opened.hidden_states(ids, mask, layer)[mask == 1], rtol=0, atol=0)
    assert torch.equal(before, after)
    assert not torch.allclose(before, found)


@pytest.mark.parametrize(("layer", "error"), [(4, ValueError), (-5, ValueError), ("3", TypeError), (True, TypeError)])
def test_layers_that_are_not_there(opened, layer, error):
    with pytest.raises(error, match=re.escape(f"layer={layer!r}") + ".*pass 0 .*3"):
        opened.hidden_states(*two_inputs()[::2], layer)
    with pytest.raises(error, match="layer="), opened.replaced(layer, abs):
        pass


def test_a_block_used_for_all_layers_is_harvested_but_not_replaced():
    config = transformers.AlbertConfig(
        vocab_size=80,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )
    albert = LanguageModel(transformers.AlbertModel(config), tiny_models.bert()[1])
    ids, _, mask = two_inputs()
    with torch.no_grad():
        expected = albert.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for layer in LAYERS:
        torch.testing.assert_close(albert.hidden_states(ids, mask, layer), expected[layer])
    with pytest.raises(ValueError, match="layer=1 of AlbertModel cannot be replaced"), albert.replaced(1, abs):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_opened_from_its_folder(kind, tmp_path):
    model, tokenizer = kind()
    folder = tiny_models.save(tmp_path / "model", model, tokenizer)
    opened = open_model(folder, causal=kind is not tiny_models.bert, device="cpu")
    ids, _, mask = two_inputs()
    assert torch.equal(opened.hidden_states(ids, mask, 2), LanguageModel(model, tokenizer).hidden_states(ids, mask, 2))
    assert hasattr(opened.model, "lm_head") == (kind is not tiny_models.bert)
    assert opened.tokenizer(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
    assert opened.name == os.fspath(folder)
    assert open_model(model, folder).tokenizer.get_vocab() == tokenizer.get_vocab()


def test_the_window_is_what_model_and_tokenizer_allow():
    model, tokenizer = tiny_models.llama()
    assert LanguageModel(model, tokenizer).window == WINDOW
    tokenizer.model_max_length = WINDOW // 2
    assert LanguageModel(model, tokenizer).window == WINDOW // 2
    tokenizer.model_max_length = 10**30  # what transformers says where it is not known
    assert LanguageModel(model, tokenizer).window == WINDOW


def test_a_roberta_has_two_positions_less_than_it_says():
    config = transformers.RobertaConfig(
        vocab_size=80, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.max_position_embeddings = 20
    roberta = LanguageModel(transformers.RobertaModel(config), tiny_models.bert()[1])
    assert roberta.window == 18
    ids = torch.full((1, 19), 7)
    roberta.hidden_states(ids[:, :18], torch.ones_like(ids[:, :18]), 1)
    with pytest.raises((IndexError, RuntimeError)):
        roberta.hidden_states(ids, torch.ones_like(ids), 1)


class WithoutHiddenStates(transformers.PreTrainedModel):
    config_class = transformers.BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = torch.nn.Embedding(80, 4)

    def forward(self, input_ids, attention_mask=None, output_hidden_states=None):
        return transformers.modeling_outputs.BaseModelOutput(self.embeddings(input_ids))


def test_models_that_cannot_be_harvested():
    tokenizer = tiny_models.bert()[1]
    with pytest.raises(ValueError, match="gives no hidden states"):
        LanguageModel(WithoutHiddenStates(transformers.BertConfig()), tokenizer)
    pictures = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ValueError, match="not a language model: it reads 'pixel_values'"):
        LanguageModel(transformers.ViTModel(pictures), tokenizer)
    translation = transformers.T5Config(vocab_size=80, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="T5Model cannot be harvested"):
        LanguageModel(transformers.T5Model(translation), tokenizer)


def test_what_is_no_model(tmp_path):
    model, _ = tiny_models.bert()
    with pytest.raises(ValueError, match=r"no model in .* that AutoModel opens"):
        open_model(tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"there is no tokenizer with .*, or it has no vocabulary"):
        open_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model 'not a/name', neither a folder nor on the Hugging Face Hub"):
        open_model("not a/name")  # nothing is asked for on the network
    with pytest.raises(ValueError, match="the model cannot be moved to device='gpu'"):
        open_model(model, device="gpu")
    with pytest.raises(TypeError, match="model=3 is a int"):
        open_model(3)
    with pytest.raises(TypeError, match="is a int, not a transformers tokenizer"):
        open_model(model, 3)
    with pytest.raises(ValueError, match="pass its tokenizer, too"):
        open_model(model)


def test_what_is_open_stays_as_it_is():
    opened = LanguageModel(*tiny_models.bert())
    assert open_model(opened) is opened
    with pytest.raises(TypeError, match="is open already, with its tokenizer and on its device: pass neither"):
        open_model(opened, device="cpu")
