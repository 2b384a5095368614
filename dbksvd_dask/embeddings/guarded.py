"""Zarr stores as they are read here: they run no code, no chunk is silently lost, and what may pass is tried again."""

import builtins
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from dbksvd_dask.embeddings.places import file_system
from dbksvd_dask.embeddings.untrusted import METADATA, check_key, check_metadata
from dbksvd_dask.retry import retrying_async

T = TypeVar("T")


class GuardedStore(WrapperStore[Store]):
    """A store whose metadata are checked before zarr sees them, and whose chunks are there or named.

    zarr reads a missing chunk as its fill value, zeros mostly: also one that was there when the store was opened, and
    all of them when a disk is unmounted.

    Parameters
    ----------
    store : zarr.abc.store.Store
    place : str
        What errors call it.
    """

    def __init__(self, store: Store, place: str) -> None:
        super().__init__(store)
        self._place = place
        self._whole: set[str] = set()
        self._blosc: set[str] = set()

    def _with_store(self, store: Store) -> "GuardedStore":
        other = type(self)(store, self._place)
        other._whole, other._blosc = self._whole, self._blosc
        return other

    def require(self, array: str) -> None:
        """From now on a missing chunk of the array at this path in the store is an error."""
        self._whole.add(array)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read an object; None where there is none, if nothing says that there must be."""
        check_key(key, self._place)
        prototype = prototype or default_buffer_prototype()
        found = await self._retrying(lambda: self._store.get(key, prototype, byte_range), "reading", key)
        if key.rpartition("/")[2] in METADATA:
            if found is not None:
                self._blosc |= check_metadata(key, found.to_bytes(), self._place)
        elif found is None:
            if _inside(key, self._whole):
                raise FileNotFoundError(f"its chunk {key} is gone")
        elif byte_range is None and _inside(key, self._blosc):
            _check_blosc(key, found)
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> builtins.list[Buffer | None]:
        """Read parts of objects, as `get` does."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return await self._retrying(lambda: self._store.exists(key), "looking for", key)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        await self._retrying(lambda: self._store.set(key, value), "writing", key)

    def list(self) -> AsyncIterator[str]:
        """Keys of all objects."""
        return self._listed(self._store.list, "")

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Keys of all objects below a folder."""
        return self._listed(lambda: self._store.list_prefix(prefix), prefix)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names in a folder."""
        return self._listed(lambda: self._store.list_dir(prefix), prefix)

    async def _listed(self, list_anew: Callable[[], AsyncIterator[str]], prefix: str) -> AsyncIterator[str]:
        async def collect() -> builtins.list[str]:
            return [key async for key in list_anew()]

        for key in await self._retrying(collect, "listing", prefix):
            yield key

    async def _retrying(self, call: Callable[[], Awaitable[T]], doing: str, key: str) -> T:
        return await retrying_async(call, f"{doing} {self._place}/{key}")


def _inside(key: str, arrays: set[str]) -> bool:
    return any(not array or key.startswith(f"{array}/") for array in arrays)


def _check_blosc(key: str, chunk: Buffer) -> None:
    size = int.from_bytes(chunk[12:16].to_bytes(), "little")  # of the header
    if size != len(chunk):
        raise ValueError(f"its chunk {key} has {len(chunk)} bytes, but by its header {size}")


def guarded(place: str) -> GuardedStore:
    """The store at a local path or URL, for reading."""
    files, path = file_system(place)
    if isinstance(files, LocalFileSystem):
        return GuardedStore(LocalStore(path, read_only=True), place)
    files.invalidate_cache()  # another process may have written since
    return GuardedStore(FsspecStore.from_url(place, read_only=True), place)
