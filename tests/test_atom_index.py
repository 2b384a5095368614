"""The index of codes by atom against a literal oracle, and how it is kept beside the codes and made anew."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import dask
import dask.array as da
import numpy as np
import oracle
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dbksvd_dask import SparseCodes, atom_index, atom_passes, metrics, open_codes
from dbksvd_dask.atom_index import build_index, coordinates_of_examples, fingerprint, index_path
from dbksvd_dask.atom_passes import N_BINS, N_EXAMPLES, REACH

N_ATOMS = 7


def example(n_samples=150, n_atoms=N_ATOMS, k=3, seed=0, dtype="float32", levels=None):
    """Codes in memory, with empty slots, an unused last atom, and places in contexts in random order."""
    rng = np.random.default_rng(seed)
    indices, values = oracle.random_codes(rng, n_samples, n_atoms, k)
    unused = indices == n_atoms - 1
    indices, values = np.where(unused, -1, indices), np.where(unused, 0, values)
    order = np.argsort(indices < 0, axis=1, kind="stable")
    indices, values = (np.take_along_axis(array, order, axis=1) for array in (indices, values))
    if levels:
        values = np.where(indices >= 0, np.round(values * levels) / levels, 0)
    place = rng.permutation(n_samples)
    coords = {"context": place // 30, "position": (place % 30).astype(np.int16), "weight": rng.random(n_samples)}
    return SparseCodes(
        indices.astype(np.int32),
        values.astype(dtype),
        n_atoms,
        {name: xr.DataArray(coord, dims="sample") for name, coord in coords.items()},
    )


def lazily(codes, rows=40):
    indices, values = (da.from_array(array, chunks=(rows, -1)) for array in (codes.indices, codes.values))
    return SparseCodes(indices, values, codes.n_atoms, codes.coords)


def atoms_of(codes, seed=0):
    return oracle.random_atoms(np.random.default_rng(seed), codes.n_atoms, 5)


def stored(codes, folder, **options):
    codes.to_zarr(folder / "codes.zarr", **options)
    return open_codes(folder / "codes.zarr")


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(atom_passes, "ENTRIES_PER_STEP", 100)


# --- the oracle ------------------------------------------------------------------------------------------------------


def entries_of(codes, atom):
    """Samples that use the atom, with their coefficients, one by one."""
    return [
        (sample, float(value))
        for sample, (indices, values) in enumerate(zip(codes.indices, codes.values, strict=True))
        for index, value in zip(indices, values, strict=True)
        if index == atom
    ]


def strongest(entries, sign):
    of_sign = [(sample, value) for sample, value in entries if sign * value > 0]
    return sorted(of_sign, key=lambda entry: (-abs(entry[1]), entry[0]))[:N_EXAMPLES]


def around(codes, entries, sample):
    """The atom's coefficients from REACH positions before a sample to REACH after, 0 where it is not used."""
    context, position = (codes.coords[name].values for name in ("context", "position"))
    found = np.zeros(2 * REACH + 1)
    for other, value in entries:
        offset = int(position[other]) - int(position[sample])
        if context[other] == context[sample] and abs(offset) <= REACH:
            found[offset + REACH] = value
    return found


def histogram(entries):
    values = [value for _, value in entries]
    counts = [0] * N_BINS
    for value in values:
        width = max(values) - min(values)
        counts[min(int((value - min(values)) / width * N_BINS), N_BINS - 1) if width else 0] += 1
    return counts


def together(codes, atom, samples):
    """Share and lift of every atom that is used in one of these samples together with a given one."""
    used = [{int(index) for index in codes.indices[sample] if index >= 0} for sample in samples]
    users = [atoms for atoms in used if atom in atoms]
    found = {}
    for other in set().union(*users) - {atom}:
        share = sum(other in atoms for atoms in users) / len(users)
        found[other] = (share, share / (sum(other in atoms for atoms in used) / len(used)))
    return found


def assert_is_index_of(index, codes, atoms):
    assert (index.n_samples, index.n_atoms) == codes.shape
    np.testing.assert_allclose(index.coherence, oracle.coherence(atoms), atol=1e-12)
    for atom in range(codes.n_atoms):
        entries = entries_of(codes, atom)
        row = index.atom(atom)
        values = [value for _, value in entries]
        assert index.usage[atom] == len(entries)
        assert index.mean_abs[atom] == pytest.approx(np.mean(np.abs(values)) if values else 0)
        assert (row["low"], row["high"]) == ((min(values), max(values)) if values else (0, 0))
        assert row["histogram"].tolist() == histogram(entries)
        expected = strongest(entries, 1) + strongest(entries, -1)
        assert list(zip(row["example_sample"].tolist(), row["example_value"].tolist(), strict=True)) == expected
        for name, coordinate in coordinates_of_examples(row).items():
            assert coordinate.tolist() == [codes.coords[name].values[sample] for sample, _ in expected]
        if "context" in codes.coords:
            assert row["example_around"].tolist() == [around(codes, entries, sample).tolist() for sample, _ in expected]
        found, company = index.together(atom, codes.n_atoms), together(codes, atom, range(len(codes.indices)))
        assert set(found.atoms.tolist()) == set(company)
        assert found.n_sampled == len(entries)
        for other, share, lift in zip(found.atoms.tolist(), found.share, found.lift, strict=True):
            assert (share, lift) == pytest.approx(company[other])
        above_chance = found.share - found.share / found.lift
        assert np.all(np.diff(above_chance) <= 1e-12)


SHAPES = st.tuples(st.integers(1, 120), st.integers(2, 9), st.integers(1, 4))


@pytest.mark.parametrize("rows", [None, 1000, 17], ids=["memory", "one chunk", "many chunks"])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), shape=SHAPES, levels=st.sampled_from([None, 2]))
def test_the_index_is_what_the_codes_say(rows, seed, shape, levels):
    n_samples, n_atoms, k = shape
    codes = example(n_samples, n_atoms, min(k, n_atoms), seed, levels=levels)
    given_codes = codes if rows is None else lazily(codes, rows)
    assert_is_index_of(atom_index.atom_index(given_codes, atoms_of(codes)), codes, atoms_of(codes))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [1000, 40, 7])
def test_a_stored_index_is_what_the_codes_say(rows, dtype, tmp_path, small_steps):
    codes = example(dtype=dtype)
    opened = stored(lazily(codes, rows), tmp_path)
    for _ in range(2):  # made, and opened again
        index = atom_index.atom_index(opened, atoms_of(codes))
        assert_is_index_of(index, codes, atoms_of(codes))
        assert index.atom(0)["example_value"].dtype == dtype


def test_float16_coefficients_and_wide_indices_are_taken(tmp_path):
    codes = example(levels=8)
    narrow = replace(codes, indices=codes.indices.astype(np.int64), values=codes.values.astype(np.float16))
    assert_is_index_of(atom_index.atom_index(narrow, atoms_of(codes)), codes, atoms_of(codes))


def test_codes_without_places_have_no_coefficients_around_their_examples():
    codes = replace(example(), coords={"document": xr.DataArray(np.arange(150), dims="sample")})
    index = atom_index.atom_index(codes, atoms_of(codes))
    assert_is_index_of(index, codes, atoms_of(codes))
    assert "example_around" not in index.atom(0)


def test_codes_that_use_no_atom_have_an_index(tmp_path):
    codes = replace(example(20), indices=np.full((20, 3), -1, np.int32), values=np.zeros((20, 3), "float32"))
    assert_is_index_of(atom_index.atom_index(stored(codes, tmp_path), atoms_of(codes)), codes, atoms_of(codes))


def test_text_and_dates_are_kept_of_the_examples(tmp_path):
    codes = example()
    words = np.array([f"wörd {i}" for i in range(150)])
    dates = np.datetime64("2025-05-27", "ns") + np.arange(150).astype("timedelta64[D]")
    coords = {"word": xr.DataArray(words, dims="sample"), "date": xr.DataArray(dates, dims="sample")}
    index = atom_index.atom_index(stored(replace(codes, coords=coords), tmp_path), atoms_of(codes))
    row = index.atom(1)
    found = coordinates_of_examples(row)
    assert found["word"].tolist() == words[row["example_sample"]].tolist()
    np.testing.assert_array_equal(found["date"], dates[row["example_sample"]])
    assert len(row["example_sample"]) > 5


def test_of_very_many_samples_some_are_counted_on(monkeypatch, small_steps):
    monkeypatch.setattr(atom_passes, "MOST_SAMPLED", 60)
    codes = lazily(example(), 40)
    built = build_index(codes, atoms_of(codes))
    rows = [row.tolist() for row in built.sampled_indices.values]
    everything = [row.tolist() for row in codes.indices.compute()]
    assert len(rows) == 60
    # They are rows of the codes, in their order, each taken once.
    remaining = iter(everything)
    assert all(any(row == other for other in remaining) for row in rows)
    index = atom_index.AtomIndex(built)
    sampled = replace(example(), indices=built.sampled_indices.values, values=np.ones((60, 3), "float32"))
    for atom in range(N_ATOMS - 1):
        found, company = index.together(atom, N_ATOMS), together(sampled, atom, range(60))
        expected = {other: pytest.approx(figures) for other, figures in company.items()}
        assert dict(zip(found.atoms.tolist(), zip(found.share, found.lift, strict=True), strict=True)) == expected
        assert found.n_sampled == np.count_nonzero(built.sampled_indices.values == atom)
        assert index.usage[atom] == len(entries_of(example(), atom))  # and the rest on all of them


# --- what is read ----------------------------------------------------------------------------------------------------


def counted(codes, read, rows=10):
    """Lazy codes that note which chunks are read."""

    def note(block, block_info=None):
        if block_info:
            read.append(block_info[0]["chunk-location"][0])
        return block

    lazy = lazily(codes, rows)
    return replace(lazy, values=lazy.values.map_blocks(note, meta=lazy.values._meta))


def test_lazy_codes_of_no_store_are_computed_once():
    read = []
    atom_index.atom_index(counted(example(), read), atoms_of(example()))
    assert sorted(read) == list(range(15))


def test_stored_codes_are_read_step_by_step(monkeypatch, tmp_path, small_steps):
    """No step has more than the slots that may be in memory, nor reads a chunk that another one reads."""
    opened = stored(lazily(example(), 10), tmp_path)
    read, steps = [], []

    def noting(codes, rows, names):
        for start, arrays in original(codes, rows, names):
            steps.append((start, len(arrays[0])))
            yield start, arrays

    original = atom_passes._read
    monkeypatch.setattr(atom_passes, "_read", noting)
    noted = counted(opened.compute(), read)
    atom_index.atom_index(replace(noted, store=opened.store), atoms_of(opened))
    assert sorted(read) == sorted(2 * list(range(15)))  # two passes
    assert [size for _, size in steps] == 2 * [30] * 5  # 100 slots // k = 33 rows: three chunks of ten
    assert [start for start, _ in steps] == 2 * [0, 30, 60, 90, 120]


def test_nothing_but_lazy_codes_of_no_store_goes_to_the_active_scheduler(tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("the active scheduler was used")

    opened = stored(lazily(example(), 40), tmp_path)
    with dask.config.set(scheduler=refuse):
        for _ in range(2):  # made, and opened again
            assert_is_index_of(atom_index.atom_index(opened, atoms_of(example())), example(), atoms_of(example()))


def unreadable(codes):
    """The same codes, of which nothing can be read."""

    def fail(block, block_info=None):
        raise AssertionError("the codes were read")

    return replace(codes, values=codes.values.map_blocks(fail, dtype=codes.dtype, meta=np.empty((0, 0), codes.dtype)))


def test_a_stored_index_is_used_again_without_reading_the_codes(tmp_path):
    opened = stored(example(), tmp_path)
    first = atom_index.atom_index(opened, atoms_of(opened))
    again = atom_index.atom_index(unreadable(open_codes(tmp_path / "codes.zarr")), atoms_of(opened))
    np.testing.assert_array_equal(again.usage, first.usage)


def test_a_click_reads_the_index_only_and_of_it_one_chunk_of_atoms(tmp_path):
    n_atoms = 2 * atom_index._ATOMS_PER_CHUNK
    codes = example(400, n_atoms)
    opened = stored(codes, tmp_path)
    atom_index.atom_index(opened, atoms_of(codes))
    index = atom_index.atom_index(unreadable(opened), atoms_of(codes))
    expected = index.atom(3)
    # Of the chunks with the second half of the atoms nothing is left.
    for chunk in index_path(opened.store.path).glob("example_*/c/1*"):
        shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
    np.testing.assert_equal(index.atom(3), expected)


# --- kept and made anew ----------------------------------------------------------------------------------------------


def test_the_index_is_beside_the_codes(tmp_path):
    atom_index.atom_index(stored(example(), tmp_path), atoms_of(example()))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["codes.atoms.zarr", "codes.zarr"]
    assert index_path(tmp_path / "codes").name == "codes.atoms.zarr"
    assert index_path(tmp_path / "layer3.codes.zarr").name == "layer3.codes.atoms.zarr"


def test_codes_of_no_store_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atom_index.atom_index(example(), atoms_of(example()))
    atom_index.atom_index(lazily(example()), atoms_of(example()))
    assert list(tmp_path.iterdir()) == []


def test_codes_know_the_store_that_they_are_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert example().store is None
    example().to_zarr("codes.zarr")
    first = open_codes("codes.zarr").store
    assert first.path == tmp_path / "codes.zarr"
    assert open_codes(tmp_path / "codes.zarr").store == first
    assert open_codes("codes.zarr").compute().store == first
    example().to_zarr("codes.zarr", overwrite=True)
    assert open_codes("codes.zarr").store.identity != first.identity


def test_the_index_is_made_anew_when_the_codes_are_written_again(tmp_path):
    atom_index.atom_index(stored(example(seed=0), tmp_path), atoms_of(example()))
    again = example(seed=1)
    index = atom_index.atom_index(stored(again, tmp_path, overwrite=True), atoms_of(again))
    assert_is_index_of(index, again, atoms_of(again))


def test_the_index_is_made_anew_when_the_atoms_are_others(tmp_path):
    opened = stored(example(), tmp_path)
    for seed in (0, 1):
        index = atom_index.atom_index(opened, atoms_of(opened, seed))
        np.testing.assert_allclose(index.coherence, oracle.coherence(atoms_of(opened, seed)), atol=1e-12)


def test_a_fingerprint_tells_atoms_apart():
    D = atoms_of(example())
    others = [D.astype("float32"), -D, D[::-1], D[:-1], D.reshape(5, -1)]
    assert len({fingerprint(atoms) for atoms in [D, *others]}) == 6
    assert fingerprint(np.asfortranarray(D)) == fingerprint(D.copy())


def test_a_damaged_index_is_made_anew(tmp_path):
    opened = stored(example(), tmp_path)
    atom_index.atom_index(opened, atoms_of(opened))
    shutil.rmtree(tmp_path / "codes.atoms.zarr" / "usage" / "c")
    assert_is_index_of(atom_index.atom_index(opened, atoms_of(opened)), example(), atoms_of(opened))
    atom_index.atom_index(unreadable(opened), atoms_of(opened))  # and kept


def test_what_is_not_an_index_is_left_alone_and_the_index_is_in_memory(tmp_path):
    (tmp_path / "codes.atoms.zarr").mkdir()
    (tmp_path / "codes.atoms.zarr" / "notes.txt").write_text("mine")
    opened = stored(example(), tmp_path)
    with pytest.warns(UserWarning, match=r"in memory only.*codes\.atoms\.zarr is not a"):
        index = atom_index.atom_index(opened, atoms_of(opened))
    assert_is_index_of(index, example(), atoms_of(opened))
    assert (tmp_path / "codes.atoms.zarr" / "notes.txt").read_text() == "mine"


def test_where_nothing_can_be_written_the_index_is_in_memory(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    opened = stored(example(), tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.warns(UserWarning, match="in memory only"):
            index = atom_index.atom_index(opened, atoms_of(opened))
    finally:
        tmp_path.chmod(0o700)
    assert_is_index_of(index, example(), atoms_of(opened))


@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("reads_before", [0, 5], ids=["first pass", "second pass"])
def test_what_fails_while_it_is_made_leaves_nothing(failure, reads_before, tmp_path):
    opened = stored(lazily(example(), 40), tmp_path)
    reads = iter(range(reads_before))

    def fail(block, block_info=None):
        if block_info and next(reads, None) is None:
            raise failure
        return block

    failing = replace(opened, values=opened.values.map_blocks(fail, meta=opened.values._meta))
    with pytest.raises(type(failure)), dask.config.set(num_workers=1):
        atom_index.atom_index(failing, atoms_of(opened))
    assert [entry.name for entry in tmp_path.iterdir()] == ["codes.zarr"]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
import numpy as np
from dbksvd_dask import open_codes
from dbksvd_dask.atom_index import atom_index

def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)

Path.rename = kill
codes = open_codes(sys.argv[1])
print("making", flush=True)
atom_index(codes, np.eye(codes.n_atoms))
"""


def test_an_index_killed_while_it_is_written_is_none(tmp_path):
    opened = stored(example(), tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path / "codes.zarr")],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "making\n"), killed.stderr
    assert not index_path(opened.store.path).exists()
    assert any(entry.name.startswith(".codes.atoms.zarr.") for entry in tmp_path.iterdir())
    eye = np.eye(N_ATOMS)
    assert_is_index_of(atom_index.atom_index(opened, eye), example(), eye)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [lambda codes, folder: codes, stored], ids=["memory", "store"])
def test_an_index_that_is_no_atom_is_an_error(keep, tmp_path):
    codes = example()
    wrong = replace(codes, indices=np.where(codes.indices == 2, N_ATOMS, codes.indices))
    with pytest.raises(ValueError, match=f"index {N_ATOMS}, but {N_ATOMS} atoms"):
        atom_index.atom_index(keep(wrong, tmp_path), atoms_of(codes))


def test_codes_of_no_samples_are_an_error():
    codes = SparseCodes(np.empty((0, 3), np.int32), np.empty((0, 3), "float32"), N_ATOMS)
    with pytest.raises(ValueError, match="no samples"):
        atom_index.atom_index(codes, atoms_of(codes))


def test_usage_is_that_of_the_metrics():
    codes = example()
    index = atom_index.atom_index(codes, atoms_of(codes))
    np.testing.assert_array_equal(index.usage, metrics.atom_usage(codes.indices, N_ATOMS))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_coefficients_that_are_not_finite_are_an_error_that_names_the_sample(value, small_steps):
    codes = example()
    codes.values[77, 0] = value
    with pytest.raises(ValueError, match="the codes of sample 77 are not finite"):
        build_index(codes, atoms_of(codes))


def test_an_index_that_was_written_anew_or_deleted_says_so(tmp_path):
    codes = stored(example(), tmp_path)
    index = atom_index.atom_index(codes, atoms_of(codes))
    index.atom(0)
    again = stored(example(seed=1), tmp_path, overwrite=True)
    of_the_new = atom_index.atom_index(again, atoms_of(codes))
    for stale in (index, of_the_new):
        if stale is of_the_new:
            shutil.rmtree(tmp_path / "codes.atoms.zarr")
        with pytest.raises(ValueError, match="written anew or deleted since it was opened: call explore again"):
            stale.atom(0)


def test_an_index_with_a_damaged_chunk_is_made_anew(tmp_path):
    codes = stored(example(), tmp_path)
    before = atom_index.atom_index(codes, atoms_of(codes))
    for chunk in (tmp_path / "codes.atoms.zarr" / "usage" / "c").iterdir():
        chunk.write_bytes(chunk.read_bytes()[:5])
    np.testing.assert_array_equal(atom_index.atom_index(codes, atoms_of(codes)).usage, before.usage)


def test_an_index_of_another_layout_is_made_anew(tmp_path, monkeypatch):
    codes = stored(example(), tmp_path)
    atom_index.atom_index(codes, atoms_of(codes))
    monkeypatch.setattr(atom_index, "REACH", REACH + 1)
    identity = atom_index.store_identity(tmp_path / "codes.atoms.zarr")
    atom_index.atom_index(codes, atoms_of(codes))
    assert atom_index.store_identity(tmp_path / "codes.atoms.zarr") != identity
