"""Trains a small causal language model on one text file: for what needs a real one, and minutes on two cores.

    python benchmarks/small_model.py wikitext2-valid.txt small-model

GPT-2's architecture (d = 256, four layers, contexts of 128 tokens) with a byte-level BPE tokenizer of 4,096 tokens of
its own, both learned from the training documents; `AutoModelForCausalLM` and `AutoTokenizer` open the folder. Documents
begin at headings, `` = Title = ``; every eighth is held out. The weights are those of the epoch with the smallest
held-out loss, for a text of a megabyte is soon known by heart. Every context begins with ``<|endoftext|>``.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import click
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

BOS = "<|endoftext|>"
HEADING = re.compile(r"^ = [^=].*[^=] = ?$", re.MULTILINE)
HELD_OUT = 8
"""One document in so many."""
BATCH = 16
"""Windows of a training step."""


def documents(text: str) -> list[str]:
    """The documents of a text whose documents begin at headings, `` = Title = ``."""
    starts = [heading.start() for heading in HEADING.finditer(text)]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def split(found: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training documents, and those held out."""
    held_out = list(found[HELD_OUT - 1 :: HELD_OUT])
    return [document for document in found if document not in held_out], held_out


def train_tokenizer(texts: Sequence[str], size: int, window: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that begins every text with BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    begin = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS, model_max_length=window
    )


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of each document, without BOS."""
    return [np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]


def batches(
    texts: Sequence[np.ndarray], begin: int, window: int, rng: np.random.Generator | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Windows of input ids and labels; with `rng` in random order, each document cut at random offsets."""
    cut = []
    for ids in texts:
        first = 0 if rng is None else int(rng.integers(window - 1))
        cut += [part for part in np.split(ids, range(first, len(ids), window - 1)) if len(part)]
    if rng is not None:
        cut = [cut[i] for i in rng.permutation(len(cut))]
    for start in range(0, len(cut), BATCH):
        inputs = np.full((len(cut[start : start + BATCH]), window), begin)
        labels = np.full_like(inputs, -100)
        for row, part in enumerate(cut[start : start + BATCH]):
            inputs[row, 1 : len(part) + 1] = labels[row, 1 : len(part) + 1] = part
        yield torch.from_numpy(inputs), torch.from_numpy(labels)


@torch.inference_mode()
def mean_loss(model: GPT2LMHeadModel, texts: Sequence[np.ndarray], begin: int, window: int) -> float:
    """Cross-entropy of the next token, in nats, over all tokens."""
    model.eval()
    losses = [
        (float(model(inputs, labels=labels).loss), int((labels != -100).sum()))
        for inputs, labels in batches(texts, begin, window)
    ]
    return sum(loss * count for loss, count in losses) / sum(count for _, count in losses)


def train(
    model: GPT2LMHeadModel,
    texts: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    *,
    begin: int,
    epochs: int,
    learning_rate: float,
) -> list[dict[str, float]]:
    """AdamW with a cosine schedule; leaves the weights of the best epoch, and returns how each of them went."""
    train_texts, held_out = texts
    window = model.config.n_positions
    rng = np.random.default_rng(0)
    steps = epochs * math.ceil(sum(len(ids) for ids in train_texts) / (window - 1) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, 0.55 + 0.45 * math.cos(math.pi * min(1.0, step / steps)))
    )
    history: list[dict[str, float]] = []
    best, weights, start = math.inf, model.state_dict(), perf_counter()
    for epoch in range(epochs):
        model.train()
        losses = []
        for inputs, labels in batches(train_texts, begin, window, rng):
            with torch.autocast("cpu", torch.bfloat16):  # half the time where the CPU multiplies bfloat16
                loss = model(inputs, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        held = mean_loss(model, held_out, begin, window)
        history.append({"train": float(np.mean(losses)), "held_out": held, "seconds": perf_counter() - start})
        click.echo(
            f"epoch {epoch + 1}: {history[-1]['train']:.3f} train, {held:.3f} held out, {history[-1]['seconds']:.0f} s"
        )
        if held < best:
            best, weights = held, {name: value.clone() for name, value in model.state_dict().items()}
        elif held > best + 0.1:
            break
    model.load_state_dict(weights)
    return history


@click.command(help=__doc__)
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--epochs", default=8, show_default=True)
@click.option("--d", default=256, show_default=True, help="Features.")
@click.option("--layers", default=4, show_default=True)
@click.option("--tokens", default=4096, show_default=True, help="Size of the vocabulary.")
@click.option("--window", default=128, show_default=True, help="Tokens of a context.")
@click.option("--learning-rate", default=1.5e-3, show_default=True)
@click.option("--dropout", default=0.1, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(
    text: Path,
    out: Path,
    epochs: int,
    d: int,
    layers: int,
    tokens: int,
    window: int,
    learning_rate: float,
    dropout: float,
    threads: int,
) -> None:
    """Train, and write the folder."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    parts = split(documents(text.read_text(encoding="utf-8")))
    if not parts[1]:
        raise click.UsageError(f"{text} has fewer than {HELD_OUT} documents: they begin at lines like ' = Title = '")
    tokenizer = train_tokenizer(parts[0], tokens, window)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=window,
        n_ctx=window,  # as TransformerLens calls it
        n_embd=d,
        n_layer=layers,
        n_head=max(1, d // 64),
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    ids = token_ids(tokenizer, parts[0]), token_ids(tokenizer, parts[1])
    click.echo(f"{sum(map(len, ids[0]))} training tokens, {sum(map(len, ids[1]))} held out")
    history = train(model, ids, begin=tokenizer.bos_token_id, epochs=epochs, learning_rate=learning_rate)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
