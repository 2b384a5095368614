"""A harvest is the hidden states that transformers gives for the tokens of the texts, each once, in random order."""

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="language models need torch")
pytest.importorskip("transformers", reason="language models need transformers")

import tiny_models  # noqa: E402
from tiny_models import N_FEATURES, TEXTS  # noqa: E402

from dbksvd_dask import open_embeddings  # noqa: E402
from dbksvd_dask.cli.harvest import harvest as harvest_command  # noqa: E402
from dbksvd_dask.contexts import open_contexts  # noqa: E402
from dbksvd_dask.language import forward_passes  # noqa: E402
from dbksvd_dask.language.harvesting import harvest  # noqa: E402
from dbksvd_dask.language.models import LanguageModel  # noqa: E402
from dbksvd_dask.language.texts import read_texts  # noqa: E402
from dbksvd_dask.language.unfinished import Unfinished  # noqa: E402

BERT = LanguageModel(*tiny_models.bert())
SMALL = {"layer": 2, "context_length": 12, "batch_size": 3, "shuffle_buffer": 40}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "harvested.zarr"


def rows_in_order(Y):
    """The samples by document, context and position."""
    return Y.isel(sample=np.lexsort((Y.position.values, Y.context.values, Y.document.values)))


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "layer", "keep_bos"),
    [
        (tiny_models.bert, 1, False),
        (tiny_models.bert, 3, True),
        (tiny_models.gpt2, 0, False),
        (tiny_models.gpt2, 2, False),
        (tiny_models.llama, 2, True),
        (tiny_models.llama, 3, False),
    ],
)
def test_rows_are_the_hidden_states_of_the_tokens(kind, layer, keep_bos, out):
    model, tokenizer = kind()
    before = {"bert": ["[CLS]"], "gpt2": [], "llama": ["<s>"]}[kind.__name__]
    after = {"bert": ["[SEP]"], "gpt2": [], "llama": []}[kind.__name__]
    before, after = map(tokenizer.convert_tokens_to_ids, (before, after))
    length = 12
    settings = {"context_length": length, "batch_size": 2, "keep_bos": keep_bos, "dtype": "float32"}
    Y = harvest(model, TEXTS, layer=layer, out=out, tokenizer=tokenizer, **settings)
    places, expected, tokens = [], [], []
    context = 0
    for document, text in enumerate(TEXTS):  # one window after the other, not padded
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        step = length - len(before) - len(after)
        for start in range(0, len(ids), step):
            window = [*before, *ids[start : start + step], *after]
            with torch.no_grad():
                states = model(torch.tensor([window]), output_hidden_states=True).hidden_states[layer][0]
            kept = range(0 if keep_bos else len(before), len(window) - len(after))
            expected.append(states[list(kept)])
            tokens += [window[i] for i in kept]
            places += [(document, context, i - kept.start) for i in kept]
            context += 1
    ordered = rows_in_order(Y)
    found = zip(ordered.document.values, ordered.context.values, ordered.position.values, strict=True)
    assert [tuple(map(int, place)) for place in found] == places
    assert ordered.token_id.values.tolist() == tokens
    np.testing.assert_allclose(ordered.values, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert not np.array_equal(Y.values, ordered.values)


def test_a_store_is_what_the_explorer_and_the_fit_open(out):
    Y = harvest(BERT, TEXTS, out=out, **SMALL)
    assert Y.dims == ("sample", "feature")
    assert (Y.dtype, Y.shape[1], Y.encoding["source"]) == (np.float16, N_FEATURES, str(out))
    with xr.open_zarr(out) as store:  # which warns of nothing
        assert store.context_tokens.dtype == store.document.dtype == store.token_id.dtype == np.int32
        tokens = store.context_tokens.values[Y.context.values, Y.position.values]
        np.testing.assert_array_equal(tokens, Y.token_id.values)
        assert {*np.unique(store.context_tokens.values)} - {-1} == {*store.token.values}
        assert store.attrs["model"] == "BertModel, hidden_states[2]"
        assert (store.attrs["layer"], store.attrs["context_length"], store.attrs["random_state"]) == (2, 12, 0)
    sample = int(np.flatnonzero((Y.document == 3).values & (Y.position == 1).values)[0])
    coords = {name: Y[name].values[[sample]] for name in ("context", "position", "token_id")}
    window = open_contexts(out).windows(coords, reach=3)[0]
    assert window.tokens == BERT.tokenizer.tokenize(TEXTS[3])[:5]
    assert window.tokens[window.at] == BERT.tokenizer.tokenize(TEXTS[3])[1]
    assert os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_are_rounded_once(dtype, tmp_path):
    exact = harvest(BERT, TEXTS, out=tmp_path / "exact.zarr", dtype="float32", **SMALL).values
    Y = harvest(BERT, TEXTS, out=tmp_path / "rounded.zarr", dtype=dtype, **SMALL)
    expected = torch.from_numpy(exact).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(Y.values.astype(np.float32), expected)
    assert Y.dtype == (np.float16 if dtype == "float16" else np.float32)


def test_what_the_texts_may_be(tmp_path):
    """Files, JSON lines, folders of datasets, and their data sets, give what the texts themselves give."""
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    (tmp_path / "some.txt").write_text("\n\n".join(TEXTS[:2]) + "\n \n", encoding="utf-8-sig")
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in TEXTS[2:]), encoding="utf-8")
    dataset = datasets.Dataset.from_dict({"body": TEXTS, "label": [0] * len(TEXTS)})
    dataset.save_to_disk(tmp_path / "saved")
    expected = harvest(BERT, TEXTS, out=tmp_path / "expected.zarr", **SMALL)
    forms = {
        "files": [tmp_path / "some.txt", tmp_path / "more.jsonl"],
        "generator": (text for text in TEXTS),
        "folder": tmp_path / "saved",
        "dataset": dataset,
        "stream": dataset.to_iterable_dataset(),
        "column": dataset["body"],
        "column of a stream": dataset.to_iterable_dataset()["body"],
    }
    for name, texts in forms.items():
        Y = harvest(BERT, texts, out=tmp_path / f"{name}.zarr", column="body", **SMALL)
        if name == "files":  # a line ends each document but the last
            assert [TEXTS[i] for i in sorted(set(Y.document.values))] == TEXTS
        xr.testing.assert_identical(Y.drop_attrs().compute(), expected.drop_attrs().compute())


def test_the_layer_may_be_an_integer_of_numpy(out, tmp_path):
    Y = harvest(BERT, TEXTS, out=out, **{**SMALL, "layer": np.arange(3)[2]})
    np.testing.assert_array_equal(Y, harvest(BERT, TEXTS, out=tmp_path / "expected.zarr", **SMALL))


def test_so_many_tokens_and_no_more(out):
    Y = harvest(BERT, (TEXTS * 10**6).__iter__(), out=out, max_tokens=100, **SMALL)
    assert len(Y) == 100
    assert Y.context.values.max() < 100


def test_the_seed_tells_the_order_and_nothing_else(tmp_path):
    harvests = [
        harvest(BERT, TEXTS, out=tmp_path / f"{i}.zarr", random_state=seed, **SMALL) for i, seed in enumerate((0, 0, 1))
    ]
    assert files_of(tmp_path / "0.zarr") == files_of(tmp_path / "1.zarr")
    assert not np.array_equal(harvests[0], harvests[2])
    np.testing.assert_array_equal(rows_in_order(harvests[0]), rows_in_order(harvests[2]))


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import tiny_models
    from dbksvd_dask.language import forward_passes, harvesting, unfinished

    forward_passes.CHECKPOINT_SECONDS = 0
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    note = unfinished.Unfinished.note
    model = harvesting.LanguageModel(*tiny_models.bert())
    hidden_states, passes = model.hidden_states, []

    def killed_in_a_pass(*args):
        passes.append(args)
        return kill() if len(passes) == 7 else hidden_states(*args)

    def killed_in_the_shuffle(self, **changes):
        return kill() if changes.get("n_files", 0) > 30 else note(self, **changes)

    for when in ("pass", "shuffle"):
        child = os.fork()
        if child == 0:
            if when == "pass":
                model.hidden_states = killed_in_a_pass
            else:
                unfinished.Unfinished.note = killed_in_the_shuffle
            harvesting.harvest(model, tiny_models.TEXTS * 5, out={out!r}, **{settings!r})
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        print((unfinished.Path({out!r}).parent / ".harvested.zarr.harvest" / "state.json").read_text())
"""


def test_a_killed_harvest_goes_on_and_gives_the_same_bits(tmp_path, out):
    """Killed (-9) during the forward passes, killed again while it is shuffled, and called a third time."""
    whole = tmp_path / "whole.zarr"
    harvest(BERT, TEXTS * 5, out=whole, **SMALL)
    script = textwrap.dedent(KILLED).format(tests=os.path.dirname(__file__), out=str(out), settings=SMALL)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    states = [json.loads(state)["progress"] for state in done.stdout.replace("}\n}\n", "}\n}\n\0").split("\0")[:2]]
    assert 0 < states[0]["n_batches"] < states[1]["n_batches"]
    assert [state["complete"] for state in states] == [False, True]
    assert states[1]["n_files"] > 0
    assert not out.exists()
    passes = []
    model = LanguageModel(*tiny_models.bert())
    model.hidden_states = lambda *args: passes.append(args)
    harvest(model, TEXTS * 5, out=out, **SMALL)
    assert not passes
    assert files_of(out) == files_of(whole)
    assert sorted(os.listdir(tmp_path)) == ["harvested.zarr", "whole.zarr"]


def test_what_zarr_wrote_when_it_was_killed_is_not_in_the_store(out, tmp_path, monkeypatch):
    def ended(self, **changes):
        note(self, **changes)
        if changes.get("n_files", 0) > 10:
            (self.folder / "store" / "embeddings" / "c.1f.partial").write_bytes(b"half a chunk")
            raise KeyboardInterrupt

    note = Unfinished.note
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "note", ended)
        with pytest.raises(KeyboardInterrupt):
            harvest(BERT, TEXTS, out=out, **SMALL)
    harvest(BERT, TEXTS, out=out, **SMALL)
    harvest(BERT, TEXTS, out=tmp_path / "expected.zarr", **SMALL)
    assert files_of(out) == files_of(tmp_path / "expected.zarr")


@pytest.mark.parametrize("replaces", [False, True], ids=["the first store", "in the place of another"])
def test_a_harvest_that_was_killed_after_it_took_its_place_begins_anew(out, monkeypatch, replaces):
    """What lies in its folder then is not the finished store, but the one that it has replaced."""
    if replaces:
        harvest(BERT, TEXTS[:1], out=out, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "discard", lambda self: None)
        expected = harvest(BERT, TEXTS, out=out, overwrite=True, **SMALL).load()
    assert out.with_name(".harvested.zarr.harvest").exists()
    xr.testing.assert_identical(harvest(BERT, TEXTS, out=out, overwrite=True, **SMALL).load(), expected)
    assert os.listdir(out.parent) == [out.name]


def test_what_was_not_noted_before_a_kill_is_not_in_the_store(out, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "discard", lambda self: None)  # as when it is killed
        interrupted(out)  # before the first note
    harvest(BERT, TEXTS[3:], out=out, **SMALL)
    harvest(BERT, TEXTS[3:], out=tmp_path / "expected.zarr", **SMALL)
    assert files_of(out) == files_of(tmp_path / "expected.zarr")


def test_one_that_was_harvested_meanwhile_is_not_overwritten(out, tmp_path, monkeypatch):
    def enter(self):
        monkeypatch.undo()
        harvest(BERT, TEXTS[:1], out=out, **SMALL)
        return self.__enter__()

    monkeypatch.setattr(Unfinished, "__enter__", enter)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        harvest(BERT, TEXTS, out=out, **SMALL)
    xr.testing.assert_identical(
        open_embeddings(out).compute(), harvest(BERT, TEXTS[:1], out=tmp_path / "expected.zarr", **SMALL).compute()
    )


@pytest.fixture
def unfinished(out, monkeypatch):
    """Of TEXTS * 5, with some batches done: ended by Ctrl-C."""
    monkeypatch.setattr(forward_passes, "CHECKPOINT_SECONDS", 0)
    interrupted(out)
    return out.with_name(".harvested.zarr.harvest")


def interrupted(out, **parameters):
    model = LanguageModel(*tiny_models.bert())
    n_passes, hidden_states = 0, model.hidden_states

    def ended(*args):
        nonlocal n_passes
        n_passes += 1
        if n_passes == 5:
            raise KeyboardInterrupt
        return hidden_states(*args)

    model.hidden_states = ended
    with pytest.raises(KeyboardInterrupt):
        harvest(model, TEXTS * 5, out=out, **{**SMALL, **parameters})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("rows/00.rows", b"", r"00.rows is cut off: rows that were put there are gone"),
        ("contexts.tokens", b"", r"contexts.tokens is cut off: delete .*harvest to begin anew"),
        ("state.json", b'{"para', r"state.json, of an unfinished harvest, is damaged .*: delete .*harvest to begin"),
    ],
)
def test_what_is_damaged_is_not_gone_on_with(unfinished, out, file, content, message):
    (unfinished / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        harvest(BERT, TEXTS * 5, out=out, **SMALL)


@pytest.mark.parametrize("texts", [TEXTS[1:] * 5, [*TEXTS[:3], "Other."] * 5, TEXTS[:2], []])
def test_going_on_with_other_texts_is_refused(unfinished, out, texts):
    with pytest.raises(ValueError, match=rf"texts: an unfinished harvest .* has read others.* delete {unfinished}"):
        harvest(BERT, texts, out=out, **SMALL)


def test_going_on_with_other_parameters_is_refused_unless_it_shall_begin_anew(unfinished, out, tmp_path):
    with pytest.raises(ValueError, match=r"other parameters: layer=1 \(it was 2\), random_state=7 \(it was 0\)"):
        harvest(BERT, TEXTS * 5, out=out, **{**SMALL, "layer": 1, "random_state": 7})
    other = tiny_models.bert()[0]
    with torch.no_grad():
        other.encoder.layer[0].output.dense.bias += 1
    with pytest.raises(ValueError, match="other parameters: weights="):
        harvest(other, TEXTS * 5, out=out, tokenizer=BERT.tokenizer, **SMALL)
    harvest(BERT, TEXTS, out=out, overwrite=True, **{**SMALL, "layer": 1})
    harvest(BERT, TEXTS, out=tmp_path / "expected.zarr", **{**SMALL, "layer": 1})
    assert files_of(out) == files_of(tmp_path / "expected.zarr")
    assert not unfinished.exists()


def test_two_at_once_are_refused(out, monkeypatch):
    def second(*_):
        with pytest.raises(BlockingIOError, match="another process is harvesting into"):
            harvest(BERT, TEXTS, out=out, **SMALL)
        raise KeyboardInterrupt

    model = LanguageModel(*tiny_models.bert())
    model.hidden_states = second
    with pytest.raises(KeyboardInterrupt):
        harvest(model, TEXTS, out=out, **SMALL)
    assert os.listdir(out.parent) == []  # nothing was done that could be gone on with


@pytest.mark.parametrize("what", ["add", "note"])
def test_a_full_disk_is_told_of_and_the_harvest_goes_on(out, tmp_path, monkeypatch, what):
    monkeypatch.setattr(forward_passes, "CHECKPOINT_SECONDS", 0)
    kind = {"add": forward_passes.Scattered, "note": forward_passes.Unfinished}[what]
    calls, works = [], getattr(kind, what)

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return works(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(kind, what, full)
        with pytest.raises(OSError, match=r"harvested.zarr cannot be written .*call again with the same arguments"):
            harvest(BERT, TEXTS * 5, out=out, **SMALL)
    assert not out.exists()
    harvest(BERT, TEXTS * 5, out=out, **SMALL)
    harvest(BERT, TEXTS * 5, out=tmp_path / "expected.zarr", **SMALL)
    assert files_of(out) == files_of(tmp_path / "expected.zarr")


@pytest.mark.parametrize(
    ("scale", "dtype", "message"),
    [
        (
            1e6,
            "float16",
            r"hidden_states\[2\] of BertModel .* has a value of .*e\+0.*, too large for float16: pass dtype=",
        ),
        (
            np.nan,
            "float32",
            r"hidden_states\[2\] of BertModel .* document 0 is not finite .*computes in float32",
        ),
    ],
)
def test_values_that_are_not_finite(out, scale, dtype, message):
    model, tokenizer = tiny_models.bert()
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.weight *= scale
    with pytest.raises(ValueError, match=message):
        harvest(model, TEXTS, out=out, tokenizer=tokenizer, dtype=dtype, **SMALL)
    assert os.listdir(out.parent) == []
    if scale == 1e6:
        assert np.abs(harvest(model, TEXTS, out=out, tokenizer=tokenizer, dtype="bfloat16", **SMALL)).max() > 1e5


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "there is no text, or none"), (["", ""], "there is no text, or none"), (["[UNK] [SEP]"], "are special ones")],
)
def test_texts_without_tokens(out, texts, message):
    with pytest.raises(ValueError, match=f"nothing to harvest in texts: .*{message}"):
        harvest(BERT, texts, out=out, **SMALL)
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer": 4}, ValueError, "layer=4 is not in BertModel, which has 3 blocks"),
        ({"layer": "2"}, TypeError, "layer='2' is not an integer"),
        ({"dtype": "float8"}, ValueError, "dtype='float8' is not one of 'float16', 'bfloat16', 'float32'"),
        ({"context_length": 65}, ValueError, "context_length=65 exceeds the window of BertModel, 64 tokens"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be at least 1"),
        ({"shuffle_buffer": 1.5}, TypeError, "shuffle_buffer=1.5 is not an integer"),
        ({"max_tokens": True}, TypeError, "max_tokens=True is not an integer"),
        ({"random_state": -1}, ValueError, "random_state=-1 must be at least 0"),
        ({"random_state": None}, TypeError, "random_state=None is not an integer"),
        (
            {"texts": "no/such/file.txt"},
            FileNotFoundError,
            "there is no file 'no/such/file.txt': to pass",
        ),
        ({"texts": {"text": TEXTS}}, TypeError, "texts is a dict with 'text': pass one of them"),
        ({"texts": ["one", "\ud800"]}, ValueError, "text 1 is not Unicode that UTF-8 has"),
        ({"keep_bos": "no"}, TypeError, "keep_bos='no' is neither True nor False"),
        ({"texts": 3}, TypeError, "texts=3 is a int: pass a path, a data set or an iterable of str"),
        ({"texts": ["one", 2]}, TypeError, "text 1 is 2, a int"),
        ({"texts": [__file__]}, ValueError, "which is a file: pass pathlib.Path("),
        ({"out": "s3://bucket/rows.zarr"}, ValueError, "s3://bucket/rows.zarr is a URL"),
    ],
)
def test_arguments_that_cannot_be(out, changes, error, message):
    arguments = {"model": BERT, "texts": TEXTS, "out": out} | SMALL | changes
    with pytest.raises(error, match=re.escape(message)):
        harvest(**arguments)
    assert os.listdir(out.parent) == []


def test_a_file_that_is_missing_is_told_of_before_the_others_are_read():
    with pytest.raises(FileNotFoundError, match=r"there is no file 'no/such/file.txt'"):
        read_texts([Path(__file__), Path("no/such/file.txt")])  # of which nothing is read


def test_data_sets_without_the_column(out, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    dataset = datasets.Dataset.from_dict({"body": TEXTS, "label": [0] * len(TEXTS)})
    for texts in (dataset, dataset.to_iterable_dataset()):
        with pytest.raises(ValueError, match="has no column 'text': it has 'body', 'label'; name the one"):
            harvest(BERT, texts, out=out, **SMALL)
    with pytest.raises(TypeError, match="'label' in row 0 of the Dataset is a int, not a text"):
        harvest(BERT, dataset, out=out, column="label", **SMALL)
    with pytest.raises(TypeError, match="texts is a DatasetDict with 'train': pass one of them"):
        harvest(BERT, datasets.DatasetDict(train=dataset), out=out, **SMALL)
    (tmp_path / "rows.jsonl").write_text('{"body": "a"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1 of .*rows.jsonl has no column 'text', but 'body'"):
        harvest(BERT, tmp_path / "rows.jsonl", out=out, **SMALL)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}')
    for name in ("latin.txt", "latin.jsonl"):
        with pytest.raises(ValueError, match=rf"{name} is not a text in UTF-8"):
            harvest(BERT, tmp_path / name, out=out, **SMALL)


def test_what_is_there_is_only_overwritten_on_request_and_if_it_is_a_harvest(out, tmp_path):
    first = harvest(BERT, TEXTS[:1], out=out, **SMALL).load()
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        harvest(BERT, TEXTS, out=out, **SMALL)
    xr.testing.assert_identical(open_embeddings(out).compute(), first)
    assert len(harvest(BERT, TEXTS, out=out, overwrite=True, **SMALL)) > len(first)
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine is not a harvest, so it is not overwritten"):
        harvest(BERT, TEXTS, out=tmp_path / "mine", overwrite=True, **SMALL)


def test_on_the_command_line(tmp_path, out):
    folder = tiny_models.save(tmp_path / "model", BERT.model, BERT.tokenizer)
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    options = ["-o", str(out), "--layer", "2", "--context-length", "12", "--batch-size", "3", "--device", "cpu"]
    arguments = [str(folder), str(tmp_path / "texts.txt"), *options, "--shuffle-buffer", "40"]
    result = CliRunner().invoke(harvest_command, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    expected = harvest(BERT, TEXTS, out=tmp_path / "expected.zarr", **SMALL)
    np.testing.assert_array_equal(open_embeddings(out), expected)
    facts = json.loads(result.stdout)
    assert facts == {
        "samples": len(expected), "features": N_FEATURES, "dtype": "float16", "documents": 4, "embeddings": str(out),
    }  # fmt: skip
    again = CliRunner().invoke(harvest_command, arguments)
    assert again.exit_code == 1
    assert "--overwrite" in again.output
