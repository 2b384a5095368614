"""``open_embeddings``: whatever holds the embeddings, as one lazy ``(sample, feature)`` array on Dask chunks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypeAlias

import dask.array as da
import numpy as np
import xarray as xr

from dbksvd_dask.device import check_gpu
from dbksvd_dask.embeddings.checks import check_embeddings, choose_variable, refuse_name
from dbksvd_dask.embeddings.chunking import lazy_embeddings, on_dask, uploaded, whole_rows
from dbksvd_dask.embeddings.formats import open_zarr, stored_embeddings, unnamed
from dbksvd_dask.embeddings.orientation import Orientation, check_orientation, rows_are_features
from dbksvd_dask.embeddings.places import is_url, placed
from dbksvd_dask.embeddings.several import are_paths, is_pattern, joined, matching
from dbksvd_dask.embeddings.stored import StoredEmbeddings
from dbksvd_dask.kernels.backend import on_device
from dbksvd_dask.warning import warn_caller

Path: TypeAlias = str | os.PathLike[str]
Source: TypeAlias = Path | Sequence[Path] | np.ndarray | da.Array | xr.DataArray | xr.Dataset


def open_embeddings(
    source: Source,
    *,
    name: str | None = None,
    orientation: Orientation | None = None,
    device: Literal["cuda"] | None = None,
) -> xr.DataArray:
    """Open embeddings lazily: metadata is read and checked, the embeddings are not.

    Parameters
    ----------
    source : path, list of paths, array, xarray.DataArray or xarray.Dataset
        One of:

        * the path or URL of a zarr group as xarray writes it, or of a single zarr array. Each task reads its chunks
          straight from there. URLs are those of fsspec (``s3://``, ``gs://``, ``https://``, …), which needs a package
          for most of them, and has a configuration for credentials, endpoints and timeouts;
        * the path of a file: ``.npy``, ``.npz`` (uncompressed), ``.safetensors``; ``.pt`` (tensors only, as SAEBench's
          caches); ``.h5`` or ``.hdf5``; ``.parquet``; ``.arrow``, ``.arrows``, ``.ipc`` or ``.feather``; or of a
          folder that ``datasets.save_to_disk`` has written, as SAELens' caches. Each task reads the rows it needs, so
          on a cluster every worker must see the file under the same path;
        * a list of such paths, or a pattern as ``"cache/activations_*.pt"``, whose files are opened as one, in the
          order of the list, or of the numbers in their names;
        * a dask array, a NumPy array (not copied; on a cluster its rows travel with every graph, which a ``.npy`` file
          avoids), a CuPy array (not copied either), an xarray.DataArray or an xarray.Dataset.

        Tables hold one list of all features a sample, or lists of such lists, a window of samples.
    name : str, optional
        Which array of a zarr group, Dataset or file that holds several; which column of a table. By default the one
        called "embeddings", or else the only two-dimensional floating one, or three-dimensional, where these may be
        windows.
    orientation : {"samples", "features"}, optional
        What the rows are. By default the samples, unless the dimensions of an xarray object are called "feature" and
        "sample", or there are more than 65,536 columns and no more rows than that, which are no features of a model.
    device : "cuda", optional
        Where the chunks are: each is read on the host, and moved to the current GPU by the task that reads it; the
        coordinates stay on the host. What is made of them is computed there, too. By default they stay where they are:
        on the host, or on a GPU if they are CuPy arrays already.

    Returns
    -------
    xarray.DataArray
        Dimensions ``("sample", "feature")``, on a dask array with all the features in one chunk, and with the
        coordinates and attributes of the source, and its path, if there is one, as ``encoding["source"]``. Zarr stores
        and dask arrays keep their own chunks of rows; files and NumPy arrays get chunks of at most 8 MiB, or of what is
        compressed together. float16, float32 and float64 stay as they are. bfloat16, which neither zarr nor numba
        knows, becomes float32 chunk by chunk.

        Of windows (`.pt`, tables) each token is a sample, with the coordinates "context" and "position": which window,
        and where in it. Columns and tensors of integers, one a sample, come along as coordinates; those called
        "token_ids", "tokens" or "input_ids" as "token_id". Of several files "file" tells which, in the list that is
        the attribute "files".

    Raises
    ------
    FileNotFoundError
        If there is nothing at the path.
    ImportError
        If the package for a format is missing: ``pip install "dbksvd-dask[formats]"`` has those for HDF5, Parquet and
        Arrow, torch is in ``[harvest]``. With ``device="cuda"`` if CuPy or numba-cuda is missing, or does not work.
    OSError
        With ``device="cuda"``, if there is no GPU, or its driver is missing or too old.
    TypeError
        If ``source`` is none of the above, or its dtype is not floating.
    ValueError
        If ``source`` is not two-dimensional, is empty, has chunks of unknown size, is of an unknown format, cannot be
        read or was only half written, could run code when it is read, or if ``name`` does not say which array is
        meant; if files that are opened as one are of different widths; if there is no such ``device``.

    Warns
    -----
    UserWarning
        If the features of a zarr store or dask array are split over chunks, and have to be put together; if rows are
        taken for features because of the shape alone; if row groups of a Parquet file, or chunks of an HDF5
        dataset, are too large to be read whole; if a tensor of a `.pt` file cannot be a coordinate as it lies there.

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask.embeddings import open_embeddings
    >>> Y = open_embeddings(np.ones((100_000, 384), dtype="float16"))
    >>> Y.dims, Y.shape, Y.dtype
    (('sample', 'feature'), (100000, 384), dtype('float16'))
    >>> Y.chunks
    ((8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192, 1696), (384,))

    From a file, nothing is read until it is needed:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/embeddings.npy", np.eye(3, dtype="float32"))
    ...     Y = open_embeddings(f"{folder}/embeddings.npy")
    ...     Y[1].values
    array([0., 1., 0.], dtype=float32)
    """
    check_orientation(orientation)
    if device is not None:
        if not isinstance(device, str) or device != "cuda":
            raise ValueError(
                f"device={device!r} is neither 'cuda' nor None: pass device='cuda' for the GPU that this process "
                "uses, which CUDA_VISIBLE_DEVICES chooses, or leave it out for the CPU"
            )
        check_gpu()
        array = open_embeddings(source, name=name, orientation=orientation)
        return array.copy(deep=False, data=uploaded(array.data))
    if isinstance(source, str | os.PathLike) and is_pattern(os.fspath(source)):
        source = matching(os.fspath(source))
    if are_paths(source):
        if not source:
            raise ValueError("the list of files is empty: name at least one")
        arrays = [open_embeddings(path, name=name, orientation=orientation) for path in source]
        return joined(arrays, [placed(path) for path in source])

    kind = type(source)
    where = f"the {kind.__module__.partition('.')[0]} {kind.__name__}"
    opened: xr.DataArray | StoredEmbeddings
    if isinstance(source, str | os.PathLike):
        where = placed(source)
        if not is_url(where) and not os.path.exists(where):
            raise FileNotFoundError(f"there is nothing at {where}")
        opened = stored_embeddings(where, name) or open_zarr(where, name)
    elif isinstance(source, xr.Dataset):
        opened = choose_variable(source, name, where)
    elif isinstance(source, xr.DataArray):
        refuse_name(name, where)
        opened = source
    elif (isinstance(source, da.Array | np.ndarray) and not isinstance(source, np.ma.MaskedArray)) or on_device(source):
        refuse_name(name, where)
        opened = unnamed(source)
    else:
        raise TypeError(
            f"embeddings cannot be opened from a {kind.__module__}.{kind.__qualname__}: pass a path, a NumPy, CuPy or "
            "dask array, an xarray.DataArray or an xarray.Dataset"
        )

    array = _in_order(opened, orientation, where if opened.name is None else f"{where} ({opened.name!r})")
    if on_device(array.data):
        check_gpu()  # CuPy is there, but that is not all
    if isinstance(source, str | os.PathLike):
        array.encoding["source"] = placed(source)  # xarray's place for it: survives selection, is not written along
    return array.rename(array.name or "embeddings")


def _in_order(opened: xr.DataArray | StoredEmbeddings, orientation: Orientation | None, where: str) -> xr.DataArray:
    """Samples by features, on a dask array with all the features in one chunk; raises what it is unfit for."""
    if isinstance(opened, StoredEmbeddings):
        check_embeddings(opened.rows, where)
        if rows_are_features(opened.rows.shape, opened.dims, orientation, where):
            opened = opened.transposed()
        array = lazy_embeddings(opened)
    else:
        check_embeddings(opened, where)
        turned = rows_are_features(opened.shape, opened.dims, orientation, where)
        array = _name_dims(opened.T if turned else opened)
    data = on_dask(array)
    if data.numblocks[1] > 1:
        warn_caller(
            f"the features of {where} are split over {data.numblocks[1]} chunks; each sample is needed whole, so they "
            "are put together again and again as they are read. Avoid it by storing all the features in one chunk "
            f"(zarr: chunks=(rows, {data.shape[1]}); dask: .rechunk({{1: -1}}))"
        )
    return array.copy(deep=False, data=whole_rows(data))


def _name_dims(array: xr.DataArray) -> xr.DataArray:
    """Call the dimensions "sample" and "feature", in this order; coordinates keep their names."""
    return array.swap_dims({old: new for old, new in zip(array.dims, ("sample", "feature"), strict=True) if old != new})
