"""The atom explorer: a table of atoms, and for a chosen one its strongest samples, its neighbours and its company."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from dbksvd_dask.atom_index import AtomIndex, atom_index, build_index, coordinates_of_examples
from dbksvd_dask.atom_passes import REACH
from dbksvd_dask.atoms import check_labels
from dbksvd_dask.codes import SparseCodes
from dbksvd_dask.contexts import TELLING, Window, bare, in_words, open_contexts, with_coordinates
from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.embeddings.opening import Source
from dbksvd_dask.widgets.page import write_page

N_NEIGHBOURS = 10
"""Nearest atoms, and atoms that fire together, that are shown."""

_STATIC = Path(__file__).parent / "static"
_PAGE_DIGITS = 4  # significant ones of the numbers in a static page


class AtomExplorer(anywidget.AnyWidget):
    """Table of the atoms of a dictionary, and what there is to see of a chosen one; `Dictionary.explore` makes it.

    Parameters
    ----------
    dictionary : Dictionary
        Labels that are given here are its labels.
    codes : SparseCodes
    embeddings : path, xarray.Dataset or array, optional
        What tells the tokens of the samples.

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import Dictionary
    >>> D = Dictionary(np.eye(3), n_nonzero_coefs=1)
    >>> explorer = D.explore(D.encode(np.array([[3.0, 0.0, 1.0], [0.0, -2.0, 1.0], [4.0, 1.0, 0.0]])))
    >>> explorer.select(0)
    >>> [(example["where"], example["value"]) for example in explorer.detail["positive"]]
    [('sample 2', 4.0), ('sample 0', 3.0)]
    >>> explorer.label(0, "first axis")
    >>> D.labels
    {0: 'first axis'}
    """

    _esm = _STATIC / "explorer.js"
    _css = _STATIC / "explorer.css"

    atoms = traitlets.Dict().tag(sync=True)
    table = traitlets.Bytes().tag(sync=True)
    labels = traitlets.Dict().tag(sync=True)
    chosen = traitlets.Int(-1).tag(sync=True)
    detail = traitlets.Dict().tag(sync=True)
    query = traitlets.Unicode().tag(sync=True)
    found = traitlets.Dict().tag(sync=True)
    details = traitlets.Dict().tag(sync=True)
    static = traitlets.Bool(False).tag(sync=True)

    def __init__(self, dictionary: Dictionary, codes: SparseCodes, embeddings: Source | None = None) -> None:
        self._dictionary = dictionary
        self._contexts = open_contexts(embeddings)
        telling = with_coordinates(codes, embeddings)
        # An index that is kept beside codes holds nothing that comes from elsewhere.
        own = telling is codes
        index = atom_index(codes, dictionary.atoms) if own else AtomIndex(build_index(telling, dictionary.atoms))
        self._index = index
        self._telling = index.example_coordinates(TELLING)
        self._contexts.check({name: array[index.is_example] for name, array in self._telling.items()})
        self._group = dictionary.group
        columns = (
            (np.minimum(index.usage, np.iinfo(np.uint32).max), "<u4"),
            (index.coherence, "<f4"),
            (index.mean_abs, "<f4"),
            (self._group, "<u4"),
        )
        super().__init__(
            atoms={"n_atoms": index.n_atoms, "n_samples": index.n_samples, "group": len(dictionary.group_sizes) > 1},
            table=b"".join(column.astype(dtype).tobytes() for column, dtype in columns),
            labels={str(atom): text for atom, text in dictionary.labels.items()},
        )
        self.observe(lambda change: self._show(change.new), "chosen")
        self.observe(lambda change: self._find(change.new), "query")
        self.observe(lambda change: self._keep_labels(change.old, change.new), "labels")

    def select(self, atom: int) -> None:
        """Choose an atom, as a click on it does.

        Raises
        ------
        TypeError, ValueError
            If there is no such atom.
        """
        atom = self._check_atom(atom)
        if atom == self.chosen:
            self._show(atom)
        self.chosen = atom

    def search(self, token: str) -> list[int]:
        """Find the atoms in whose strongest samples a token is, as the search box does.

        Upper and lower case are the same, and so are tokens with and without the marks of words. Where no atom has
        the token, tokens that contain it count.

        Returns
        -------
        list of int
            Those first that have it in the largest share of their strongest samples.

        Raises
        ------
        TypeError
            If `token` is not text.
        """
        if not isinstance(token, str):
            raise TypeError(f"token={token!r} must be text")
        if token == self.query:
            self._find(token)
        self.query = token
        return self.found["atoms"]

    def label(self, atom: int, text: str) -> None:
        """Call an atom something; an empty text takes its label away.

        The label is the dictionary's: `Dictionary.to_zarr` writes it.

        Raises
        ------
        TypeError, ValueError
            If there is no such atom, or `text` is not text.
        """
        atom = self._check_atom(atom)
        if not isinstance(text, str):
            raise TypeError(f"text={text!r} must be text")
        self.labels = {**self.labels, str(atom): text}

    def to_html(self, path: str | os.PathLike[str], n_atoms: int = 200) -> None:
        """Write a page that shows the table of all atoms, and of the most used ones what a click shows here.

        Parameters
        ----------
        path : path
            Written anew if there is such a file.
        n_atoms : int
            How many atoms, besides the one that is chosen, have more than their row of the table: about 10 kB each.

        Raises
        ------
        ValueError
            If `n_atoms` is not a whole number of at least 0.
        """
        if not isinstance(n_atoms, Integral) or isinstance(n_atoms, bool) or n_atoms < 0:
            raise ValueError(f"n_atoms={n_atoms!r} must be a whole number of at least 0")
        order = np.argsort(-self._index.usage, kind="stable")[:n_atoms].tolist()
        chosen = self.detail.get("atom", order[0] if order else -1)
        shown = sorted({chosen, *order} - {-1})
        details = {str(detail["atom"]): detail for detail in self._details(shown, _PAGE_DIGITS)}
        names = "atoms", "table", "labels"
        state = {name: getattr(self, name) for name in names} | {"static": True, "chosen": chosen, "details": details}
        state |= {"detail": details.get(str(chosen), {}), "query": "", "found": {}}
        write_page(path, f"{len(self._index.usage):,} atoms", "explorer", state)

    def __repr__(self) -> str:
        """One line, for where widgets are not shown."""
        return f"<AtomExplorer: {self._index.n_atoms} atoms, {self._index.n_samples} samples>"

    @traitlets.validate("labels")
    def _check_labels(self, proposal: Any) -> dict[str, str]:
        """Refuse what are no labels, whoever sets them; blank ones are none."""
        given = {atom: text for atom, text in proposal.value.items() if not isinstance(text, str) or text.strip()}
        if not all(isinstance(atom, str) and atom.isdecimal() for atom in given):
            raise ValueError(f"labels={proposal.value!r} must have atoms by their number, as text, for keys")
        stripped = {int(atom): text.strip() if isinstance(text, str) else text for atom, text in given.items()}
        return {str(atom): text for atom, text in check_labels(stripped, len(self._group)).items()}

    def _check_atom(self, atom: int) -> int:
        if not isinstance(atom, Integral) or isinstance(atom, bool):
            raise TypeError(f"atom={atom!r} must be a whole number")
        if not 0 <= atom < self._index.n_atoms:
            raise ValueError(f"atom={atom} is none of the atoms: they are 0 to {self._index.n_atoms - 1}")
        return int(atom)

    def _keep_labels(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Let the dictionary have what was changed here or in the browser; another explorer may have changed others."""
        labels = self._dictionary.labels
        for atom in {*before, *after}:
            if before.get(atom) != after.get(atom):
                labels.pop(int(atom), None)
                labels |= {int(atom): after[atom]} if atom in after else {}
        self.labels = {str(atom): text for atom, text in sorted(labels.items())}

    def _show(self, atom: int) -> None:
        detail = next(self._details([atom])) if 0 <= atom < self._index.n_atoms else {}
        self.detail = detail

    def _details(self, atoms: Sequence[int], digits: int | None = None) -> Iterator[dict[str, Any]]:
        """What there is to show of atoms, as plain JSON, with all or some digits of the numbers."""

        def number(value: Any) -> float:
            return float(value if digits is None else f"{value:.{digits}g}")

        rows = self._index.several(atoms)
        for atom, row, windows in zip(atoms, rows, self._windows(rows), strict=True):
            yield self._detail(atom, row, windows, number)

    def _windows(self, rows: Sequence[Mapping[str, np.ndarray]]) -> Iterator[list[Window]]:
        """The tokens around the examples of each of some atoms, which are read together."""
        coords = [coordinates_of_examples(row) for row in rows]
        told = {
            name: np.concatenate([of[name] for of in coords]) for name in TELLING if any(name in of for of in coords)
        }
        found = iter(self._contexts.windows(told, REACH))
        for row in rows:
            yield [next(found, Window([], 0, [])) for _ in row["example_sample"]]

    def _detail(
        self, atom: int, row: Mapping[str, np.ndarray], windows: Sequence[Window], number: Callable[[Any], float]
    ) -> dict[str, Any]:
        index = self._index
        examples = self._examples(row, windows, number)
        positive = [example for example in examples if example["value"] > 0]
        together = index.together(atom, N_NEIGHBOURS)
        return {
            "atom": atom,
            "usage": int(index.usage[atom]),
            "mean_abs": number(index.mean_abs[atom]),
            "coherence": number(index.coherence[atom]),
            "group": int(self._group[atom]),
            "label": self._dictionary.labels.get(atom, ""),
            "positive": positive,
            "negative": examples[len(positive) :],
            "histogram": {"counts": row["histogram"].tolist(), "low": number(row["low"]), "high": number(row["high"])},
            "nearest": [{"atom": near, "cos": number(cos)} for near, cos in self._nearest(atom)],
            "together": [
                {"atom": int(other), "share": number(share), "lift": number(lift)}
                for other, share, lift in zip(together.atoms, together.share, together.lift, strict=True)
            ],
            "n_sampled": together.n_sampled,
        }

    def _examples(
        self, row: Mapping[str, np.ndarray], windows: Sequence[Window], number: Callable[[Any], float]
    ) -> list[dict[str, Any]]:
        samples, strongest = row["example_sample"].tolist(), row["example_value"]
        coords = {name: array for name, array in coordinates_of_examples(row).items() if name not in TELLING}
        examples = []
        for i, (sample, value, window) in enumerate(zip(samples, strongest, windows, strict=True)):
            around = {offset: row["example_around"][i, offset + REACH] for offset in window.offsets if offset}
            examples.append(
                {
                    "sample": sample,
                    "value": number(value),
                    "tokens": window.tokens or [f"sample {sample}"],
                    "values": [number(around.get(offset, value)) for offset in window.offsets or [0]],
                    "at": window.at,
                    "where": in_words(sample, {name: array[i] for name, array in coords.items()}),
                }
            )
        return examples

    def _nearest(self, atom: int) -> list[tuple[int, float]]:
        atoms = self._dictionary.atoms
        # Not by BLAS, whose threads may wait a third of a second for those that have just read the index.
        cosines = np.einsum("af,f->a", atoms, atoms[atom])
        order = np.argsort(-np.abs(cosines), kind="stable")
        return [(int(near), cosines[near]) for near in order[: N_NEIGHBOURS + 1] if near != atom][:N_NEIGHBOURS]

    def _find(self, query: str) -> None:
        text = bare(query.strip()).casefold()
        found: dict[str, Any] = {"query": query, "atoms": [], "share": [], "note": ""}
        ids, texts = self._tokens
        if text and ids is None:
            found["note"] = "The tokens of the samples are not known: give explore the path of the store that has them."
        elif text and ids is not None:
            tokens = {token: bare(token_text).casefold() for token, token_text in texts.items()}
            share = self._share(ids, [token for token, plain in tokens.items() if plain == text])
            if not share.any():
                share = self._share(ids, [token for token, plain in tokens.items() if text in plain])
                found["note"] = f"No atom has “{query.strip()}” in its strongest samples" + (
                    ": these have tokens that contain it." if share.any() else "."
                )
            order = np.argsort(-share, kind="stable")[: np.count_nonzero(share)]
            found |= {"atoms": order.tolist(), "share": share[order].tolist()}
        self.found = found

    @cached_property
    def _tokens(self) -> tuple[np.ndarray | None, Mapping[int, str]]:
        return self._contexts.token_ids(self._telling)

    def _share(self, ids: np.ndarray, tokens: list[int]) -> np.ndarray:
        """Share of the strongest samples of each atom that are one of these tokens."""
        is_example = self._index.is_example
        hits = np.count_nonzero(np.isin(ids, tokens) & is_example, axis=1)
        return hits / np.maximum(np.count_nonzero(is_example, axis=1), 1)
