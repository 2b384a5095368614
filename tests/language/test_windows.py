"""Texts become windows: every token once, in its place, between the special tokens the model is used to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="language models need torch")
pytest.importorskip("transformers", reason="language models need transformers")

import tiny_models
from tiny_models import TEXTS, WINDOW
from tokenizers import AddedToken, Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from dbksvd_dask.language import windows as windows_module
from dbksvd_dask.language.models import LanguageModel
from dbksvd_dask.language.windows import MOST_CONTEXT, batches, cut

KINDS = {kind.__name__: LanguageModel(*kind()) for kind in (tiny_models.bert, tiny_models.gpt2, tiny_models.llama)}
BEFORE = {"bert": ["[CLS]"], "gpt2": [], "llama": ["<s>"]}
AFTER = {"bert": ["[SEP]"], "gpt2": [], "llama": []}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_windows_are_the_document_piece_by_piece_between_special_tokens(kind):
    model = KINDS[kind]
    windows = list(cut(model, 9).windows(TEXTS))
    assert [window.context for window in windows] == list(range(len(windows)))
    n_before, n_after = len(BEFORE[kind]), len(AFTER[kind])
    for document, text in enumerate(TEXTS):
        of_document = [window for window in windows if window.document == document]
        for window in of_document:
            tokens = model.tokenizer.convert_ids_to_tokens(window.input_ids.tolist())
            assert tokens[:n_before] == BEFORE[kind]
            assert tokens[len(tokens) - n_after :] == AFTER[kind]
            assert not window.is_text[:n_before].any()
            assert not window.is_text[len(tokens) - n_after :].any()
        inner = [window.input_ids[n_before : len(window.input_ids) - n_after] for window in of_document]
        assert np.concatenate(inner).tolist() == model.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert {len(window.input_ids) for window in of_document[:-1]} <= {9}


def test_special_tokens_are_no_text_wherever_they_are():
    window, *_ = cut(KINDS["bert"], 20).windows(["water [UNK] water [MASK] ☃"])
    tokens = KINDS["bert"].tokenizer.convert_ids_to_tokens(window.input_ids.tolist())
    assert tokens == ["[CLS]", "water", "[UNK]", "water", "[MASK]", "[UNK]", "[SEP]"]
    assert window.is_text.tolist() == [False, True, False, True, False, False, False]


def test_tokens_that_are_only_marked_as_special_are_no_text():
    model = LanguageModel(*tiny_models.llama())
    model.tokenizer.add_tokens([AddedToken("<|im_start|>", special=True)])
    (window,) = cut(model, 20).windows([" water<|im_start|> water"])
    tokens = model.tokenizer.convert_ids_to_tokens(window.input_ids)
    assert dict(zip(tokens, window.is_text, strict=True)) == {"<s>": False, "Ġwater": True, "<|im_start|>": False}


def test_a_tokenizer_whose_special_tokens_cannot_be_told_from_the_text_is_refused():
    """It knows no "a", and what it does not know is its BOS."""
    words = Tokenizer(models.WordLevel({"<s>": 0, "water": 1}, unk_token="<s>"))
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<s>")
    with pytest.raises(
        ValueError, match=r"cannot be told which special tokens .* of 'a' it makes \[0\], and .*\[0, 0\]"
    ):
        cut(LanguageModel(KINDS["gpt2"].model, tokenizer), 12)


def test_long_texts_are_tokenized_few_at_a_time(monkeypatch):
    monkeypatch.setattr(windows_module, "_CHARACTERS_AT_ONCE", 100)
    model, given = LanguageModel(*tiny_models.bert()), []
    expected = [window.input_ids.tolist() for window in cut(KINDS["bert"], 12).windows(TEXTS * 20)]
    tokenizer, cutting = model.tokenizer, cut(model, 12)
    model.tokenizer = lambda texts, **options: given.append(len("".join(texts))) or tokenizer(texts, **options)
    assert [window.input_ids.tolist() for window in cutting.windows(TEXTS * 20)] == expected
    assert max(given) < 100 + max(map(len, TEXTS))
    assert sum(given) == len("".join(TEXTS * 20))


def test_the_first_token_is_text_on_request():
    for kind in ("bert", "llama"):
        cutting = cut(KINDS[kind], 12, keep_bos=True)
        windows = list(cutting.windows(TEXTS))
        assert all(window.is_text[0] for window in windows)
        assert not any(window.is_text[-1] for window in windows) or kind == "llama"
        assert cutting.columns.start == 0  # it is in the contexts, too
    with pytest.raises(ValueError, match="keep_bos=True, but the tokenizer of GPT2LMHeadModel puts no token before"):
        cut(KINDS["gpt2"], 12, keep_bos=True)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(0, 40), max_size=60), batch_size=st.integers(1, 5), most=st.integers(1, 400))
def test_batches_hold_each_window_once_and_pad_little(lengths, batch_size, most):
    texts = [" ".join(["water"] * length) for length in lengths]
    windows = list(cut(KINDS["bert"], 12).windows(texts, max_tokens=most))
    assert sum(window.is_text.sum() for window in windows) == min(most, sum(lengths))
    found = {}
    for batch in batches(windows, batch_size):
        assert batch.input_ids.shape == batch.attention_mask.shape == batch.is_text.shape
        assert len(batch.context) <= batch_size
        assert not batch.is_text[batch.attention_mask == 0].any()
        for row, context in enumerate(batch.context.tolist()):
            there = batch.attention_mask[row] == 1
            assert (np.diff(batch.attention_mask[row]) <= 0).all()  # on the right
            found[context] = (batch.document[row], batch.input_ids[row, there], batch.is_text[row, there])
    assert sorted(found) == [window.context for window in windows]
    for window in windows:
        document, input_ids, is_text = found[window.context]
        assert document == window.document
        np.testing.assert_array_equal(input_ids, window.input_ids)
        np.testing.assert_array_equal(is_text, window.is_text)
    if windows and len(windows) <= batch_size * 16:  # then they are sorted by length
        padded = sum(batch.attention_mask.size for batch in batches(windows, batch_size))
        assert padded <= sum(len(window.input_ids) for window in windows) + 12 * batch_size


def test_the_context_is_as_long_as_the_model_reads_but_not_endless():
    model = LanguageModel(*tiny_models.bert())
    assert cut(model).context_length == WINDOW
    model.window = 2**20
    assert cut(model).context_length == MOST_CONTEXT
    assert cut(model, 2048).context_length == 2048


@pytest.mark.parametrize(
    ("context_length", "error", "message"),
    [
        (WINDOW + 1, ValueError, "context_length=65 exceeds the window of BertModel, 64 tokens"),
        (2, ValueError, "context_length=2 leaves no room for text: 2 special tokens"),
        ("12", TypeError, "context_length='12' is not an integer"),
        (True, TypeError, "context_length=True is not an integer"),
    ],
)
def test_context_lengths_that_cannot_be(context_length, error, message):
    with pytest.raises(error, match=message):
        cut(KINDS["bert"], context_length)


def test_a_text_that_is_none_is_named():
    with pytest.raises(TypeError, match=r"text 2 is None, a NoneType: pass texts as str"):
        list(cut(KINDS["bert"], 12).windows(["one", "two", None]))
