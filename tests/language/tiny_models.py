"""Tiny language models with random weights, and tiny tokenizers, for tests."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

TEXTS = [
    "The water of the river runs down to the sea.",
    "A river is a body of water that runs over land, from high land down to low land, and in the end to the sea.",
    "Where the land is dry, a river may run dry, too.",
    "The sea is wide.",
]
"""Documents, from which the tokenizers have their words."""

N_FEATURES = 16
N_LAYERS = 3
WINDOW = 64


def bert():
    """Model and tokenizer like BERT: [CLS] … [SEP], padded on the right."""
    tokenizer = _word_pieces()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=N_FEATURES,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=WINDOW,
    )
    return _random(BertModel, config), tokenizer


def gpt2():
    """Model and tokenizer like GPT-2: no token around a text and none to pad with."""
    tokenizer = _bytes_pairs(["<|endoftext|>"])
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    fast = FastTokenizer(tokenizer_object=tokenizer, model_max_length=WINDOW, **special)
    config = GPT2Config(
        vocab_size=len(fast),
        n_embd=N_FEATURES,
        n_layer=N_LAYERS,
        n_head=2,
        n_positions=WINDOW,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    return _random(GPT2LMHeadModel, config), fast


def llama():
    """Model and tokenizer like Llama: <s> before a text, padded on the left."""
    tokenizer = _bytes_pairs(["<s>", "</s>"])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos)]),
        ]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "padding_side": "left"}
    fast = FastTokenizer(tokenizer_object=tokenizer, model_max_length=WINDOW, **special)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=N_FEATURES,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=WINDOW,
        bos_token_id=bos,
        eos_token_id=fast.eos_token_id,
    )
    return _random(LlamaForCausalLM, config), fast


def save(folder, model, tokenizer):
    """Save a model as a folder that ``AutoModel`` and ``AutoTokenizer`` open."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _random(kind, config):
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = kind(config).eval()
    torch.random.set_rng_state(generator)
    # As random weights are, all layers would do next to nothing.
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.mul_(10)
    return model


def _word_pieces():
    """Half of the words are tokens, the others are spelled."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted(set("".join(TEXTS)) - {" "})
    tokens = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *_some_words()])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    names = {f"{token.strip('[]').lower()}_token": token for token in special}
    return FastTokenizer(tokenizer_object=tokenizer, model_max_length=WINDOW, **names)


def _bytes_pairs(special):
    """Half of the words are merged of their bytes, from the left."""
    merges = {}
    for word in _some_words():
        for end in range(1, len(word) + 1):
            left, right = f"Ġ{word}"[:end], f"Ġ{word}"[end]
            merges[left, right] = left + right
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *merges.values()]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _some_words():
    words = set(" ".join(TEXTS).lower().replace(".", "").replace(",", "").split())
    return [*sorted(words)[::2], "water"]
