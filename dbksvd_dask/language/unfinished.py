"""A harvest that is going on, as it lies on the disk: from here it goes on when it was killed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from dbksvd_dask.embeddings.shuffled import N_FILES
from dbksvd_dask.whole import exchange

_STATE = "state.json"


@dataclass
class Progress:
    """How far a harvest has come."""

    n_batches: int = 0
    """Of windows, whose embeddings are on the disk."""
    digest: str = ""
    """Of the tokens of these batches."""
    n_contexts: int = 0
    """Windows of these batches: all numbers below this."""
    sizes: list[int] = field(default_factory=lambda: [0] * N_FILES)
    """Embeddings in each of the files that they are scattered over."""
    complete: bool = False
    """Whether these were all batches."""
    n_files: int = 0
    """Of the files, those that are in the store."""

    @property
    def n_rows(self) -> int:
        """Embeddings that are in the store."""
        return sum(self.sizes[: self.n_files])


class Unfinished:
    """The hidden folder beside a store in which a harvest works, and what is known of one that was not finished.

    Parameters
    ----------
    target : Path
        Where the store goes.
    parameters : mapping
        By which a harvest is known to be the same one; JSON.
    anew : bool
        Begin anew where one with other parameters was not finished.

    Attributes
    ----------
    folder : Path
    progress : Progress

    Raises
    ------
    BlockingIOError
        On entering, if another process is at it.
    ValueError
        On entering, if one with other parameters was not finished.
    """

    def __init__(self, target: Path, parameters: Mapping[str, Any], *, anew: bool) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.harvest")
        self.parameters = dict(parameters)
        self.progress = Progress()
        self._anew = anew

    def __enter__(self) -> Unfinished:
        """Lock the folder, and find out how far a harvest has come."""
        self.folder.mkdir(exist_ok=True)
        self._lock: IO[str] = open(self.folder / "lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise BlockingIOError(error.errno, f"another process is harvesting into {self.target}") from error
        try:
            self.progress = self._read()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Unlock the folder, which stays if there is something to go on with."""
        if self.progress.n_batches == 0:
            self.discard()
        self._lock.close()

    def note(self, **changes: Any) -> None:
        """Keep on the disk how far the harvest has come; what was written before this is there when it goes on."""
        for name, value in changes.items():
            setattr(self.progress, name, value)
        content = json.dumps({"parameters": self.parameters, "progress": asdict(self.progress)}, indent=1)
        draft = self.folder / f"{_STATE}.draft"
        draft.write_text(content, encoding="utf-8")
        draft.replace(self.folder / _STATE)

    def publish(self) -> None:
        """Let the finished store, which is in the folder, take its place."""
        store = self.folder / "store"
        # Killed from here on it has nothing to go on with: what lies in the folder may be the store that was replaced.
        (self.folder / _STATE).unlink()
        if self.target.exists():
            exchange(store, self.target)
        else:
            store.rename(self.target)
        self.discard()

    def discard(self) -> None:
        """Remove the folder and all that is in it."""
        (self.folder / _STATE).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def other_texts(self) -> ValueError:
        """The error of going on with other texts."""
        return ValueError(
            f"texts: an unfinished harvest of {self.target} has read others; pass the same texts in the same order to "
            f"go on with it, or delete {self.folder} to begin anew"
        )

    def _read(self) -> Progress:
        try:
            content = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Progress()
        except ValueError as error:
            raise ValueError(
                f"{self.folder / _STATE}, of an unfinished harvest, is damaged ({error}): "
                f"delete {self.folder} to begin anew"
            ) from error
        before = content["parameters"]
        differing = [
            f"{name}={now!r} (it was {before.get(name)!r})"
            for name, now in self.parameters.items()
            if before.get(name) != now
        ]
        if not differing:
            return Progress(**content["progress"])
        if not self._anew:
            raise ValueError(
                f"there is an unfinished harvest of {self.target} with other parameters: {', '.join(differing)}. Pass "
                "the same to go on with it, or overwrite=True (--overwrite) to begin anew"
            )
        for entry in os.scandir(self.folder):
            if entry.name != "lock":
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
        return Progress()
