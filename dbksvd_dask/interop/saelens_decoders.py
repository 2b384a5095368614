"""The decoders of SAELens' sparse autoencoders as dictionaries."""

import os
import warnings
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dbksvd_dask.atoms import UNIT_NORM_TOLERANCE
from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.interop.saelens import CFG, OURS, WEIGHTS
from dbksvd_dask.interop.settings import dictionary_from
from dbksvd_dask.interop.tensors import read_json, read_tensors

if TYPE_CHECKING:
    from sae_lens import SAE

_SIGNED = frozenset({"abstopk"})
_NONNEGATIVE = frozenset(
    {"standard", "gated", "topk", "batchtopk", "jumprelu", "matching_pursuit", "matryoshka_batchtopk"}
)
_SCALED = frozenset({"layer_norm", "constant_norm_rescale", "expected_average_only_in"})
_TENSORS = {"W_dec": 2, "b_dec": 1}
_PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"})


def from_saelens(source: "str | os.PathLike[str] | SAE") -> Dictionary:
    """The decoder of a SAE of SAELens as a dictionary.

    Atoms are the rows of `W_dec`, divided by their norms, which are not kept: coefficients of the dictionary are in
    units of the embeddings. `b_dec` becomes the mean. A decoder ``[D; −D]`` becomes D with signed codes; all others
    become nonnegative dictionaries, but for the signed ``abstopk``. k is that of the architecture, where it has one.
    The dictionary encodes by matching pursuit, not by the SAE's encoder.

    Parameters
    ----------
    source : path or sae_lens.SAE
        Local folder, for which SAELens need not be installed, or an SAE: standard, gated, TopK, BatchTopK, AbsTopK,
        JumpReLU, matching pursuit or Matryoshka.

    Raises
    ------
    FileNotFoundError
        If there is no folder, or no SAE in it.
    ValueError
        If it is of another architecture (a transcoder's decoder writes other embeddings than those it reads), if its
        files are cut off or do not fit each other, or if all there is are pickles.

    Warns
    -----
    UserWarning
        If rows of the decoder are zero: they are left out, and the others move up; which they were is in the
        provenance. If the SAE scales its input: `b_dec` is then none of the embeddings' and left out.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from dbksvd_dask.interop import to_saelens
    >>> D = Dictionary(np.eye(3), n_nonzero_coefs=1, mean=np.ones(3), nonnegative=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_saelens(D, f"{folder}/sae", model_name="gpt2", hook_name="blocks.3.hook_resid_pre")
    ...     back = from_saelens(f"{folder}/sae")
    >>> back.nonnegative, back.mean
    (True, array([1., 1., 1.]))
    """
    cfg, decoder, bias, where = _open(source)
    architecture = str(cfg["architecture"])
    if architecture not in _NONNEGATIVE | _SIGNED:
        known = ", ".join(sorted(_NONNEGATIVE | _SIGNED))
        raise ValueError(
            f"{where} has the architecture {architecture!r}, whose decoder is no dictionary of its input: {known} have"
        )
    ours = _metadata(cfg).get(OURS)
    half = len(decoder) // 2
    folded = len(decoder) == 2 * half and np.array_equal(decoder[half:], -decoder[:half])
    folded &= not (isinstance(ours, dict) and ours.get("nonnegative") is True)  # whose atoms may be opposite
    rows = decoder[:half] if folded else decoder
    kept, norms = _kept(rows, where)
    found = {
        "n_nonzero_coefs": _k(cfg, rows.shape[1], len(kept), where),
        "nonnegative": not folded and architecture not in _SIGNED,
        "group_sizes": _group_sizes(cfg, len(kept), where),
        "provenance": _provenance(cfg, where, np.setdiff1d(np.arange(len(rows)), kept)),
    }
    untouched = (np.abs(norms - 1) <= UNIT_NORM_TOLERANCE).all()  # not trained on in SAELens
    if isinstance(ours, dict) and ours.get("nonnegative") is not folded and untouched:
        return dictionary_from(rows, _mean(cfg, bias, where), found | ours, where)
    atoms = (rows[kept] / norms[kept, None]).astype(np.result_type(rows.dtype, np.float32))
    return dictionary_from(atoms, _mean(cfg, bias, where), found, where)


def _open(source: "str | os.PathLike[str] | SAE") -> tuple[dict[str, Any], np.ndarray, np.ndarray | None, str]:
    """Configuration, `W_dec`, `b_dec`, and what errors call it."""
    if isinstance(source, str | os.PathLike):
        return _open_folder(Path(source).expanduser())
    try:
        cfg, state = source.cfg.to_dict(), source.state_dict()
        tensors = {name: _array(state[name]) for name in _TENSORS if name in state}
        decoder = tensors["W_dec"]
    except (AttributeError, KeyError) as error:
        raise TypeError(f"source is a {type(source).__name__}: pass a folder of SAELens, or an SAE of it") from error
    return cfg, decoder, tensors.get("b_dec"), f"this {type(source).__name__}"


def _array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor if tensor.element_size() >= 4 else tensor.float()).numpy()


def _open_folder(folder: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None, str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: name the one that has {CFG} and {WEIGHTS}")
    missing = [name for name in (CFG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        refused = f"; {', '.join(pickles)} may be pickles, which could run code and are not opened" if pickles else ""
        raise FileNotFoundError(f"{folder} is no folder of SAELens: it has no {' and no '.join(missing)}{refused}")
    cfg = _modern(read_json(folder / CFG))
    tensors, _ = read_tensors(folder / WEIGHTS, _TENSORS)
    if "W_dec" not in tensors:
        raise ValueError(f"{folder / WEIGHTS} has no tensor 'W_dec': it is no SAE")
    decoder, bias = tensors["W_dec"], tensors.get("b_dec")
    told = (cfg.get("d_sae", len(decoder)), cfg.get("d_in", decoder.shape[1]))
    if told != decoder.shape:
        raise ValueError(f"{folder}: {CFG} tells of d_sae={told[0]}, d_in={told[1]}, but W_dec is {decoder.shape}")
    return cfg, decoder, bias, str(folder)


def _modern(cfg: dict[str, Any]) -> dict[str, Any]:
    """A configuration as SAELens has them since version 6, of what matters here."""
    arguments = cfg.get("activation_fn_kwargs") or {}
    if "activation_fn_str" in cfg and cfg["activation_fn_str"] == "topk" and "k" in arguments:
        return cfg | {"architecture": "topk", "k": arguments["k"]}
    return {"architecture": "standard"} | cfg


def _kept(rows: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The atoms that have a direction, and the norms of all."""
    if not np.isfinite(rows).all():
        raise ValueError(f"{where}: row {np.flatnonzero(~np.isfinite(rows).all(axis=1))[0]} of W_dec is not finite")
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    kept = np.flatnonzero(norms)
    if not kept.size:
        raise ValueError(f"{where}: all rows of W_dec are zero")
    if kept.size < len(rows):
        warnings.warn(
            f"{len(rows) - kept.size} of the {len(rows)} rows of W_dec are zero, and left out: the atoms after them "
            'move up (provenance["left out"] tells which they were)',
            UserWarning,
            stacklevel=3,
        )
    return kept, norms


def _k(cfg: dict[str, Any], n_features: int, n_atoms: int, where: str) -> int | None:
    k = cfg.get("k")
    if cfg["architecture"] == "matching_pursuit":
        k = n_features if cfg.get("max_iterations") is None else cfg["max_iterations"]
    if k is None:
        return None
    if not isinstance(k, int | float) or not k >= 1:
        raise ValueError(f"{where} has k={k!r}: it must be a number of at least 1")
    return round(min(k, n_atoms))


def _group_sizes(cfg: dict[str, Any], n_atoms: int, where: str) -> list[int]:
    widths = cfg.get("matryoshka_widths") or [0]
    if not isinstance(widths, list | tuple) or not all(isinstance(width, int) for width in widths):
        raise ValueError(f"{where} has matryoshka_widths={widths!r}: they must be whole numbers")
    return [stop - start for start, stop in pairwise([0, *widths])] if widths[-1] == n_atoms else []


def _mean(cfg: dict[str, Any], bias: np.ndarray | None, where: str) -> np.ndarray | None:
    normalisation = cfg.get("normalize_activations") or "none"
    if normalisation == "covariance_whitening":
        raise ValueError(f"{where} is of whitened embeddings: fold the whitening into it first, as SAELens does")
    applied = cfg["architecture"] != "matching_pursuit" or cfg.get("apply_b_dec_to_input", True)
    if bias is None or not applied or not bias.any():
        return None
    if normalisation in _SCALED:
        warnings.warn(
            f"{where} scales its input (normalize_activations={normalisation!r}): its b_dec is no mean of the "
            "embeddings and left out",
            UserWarning,
            stacklevel=3,
        )
        return None
    return bias


def _metadata(cfg: dict[str, Any]) -> dict[str, Any]:
    """What is told of the model; since version 6 that is in a place of its own."""
    metadata = cfg.get("metadata")
    return metadata if isinstance(metadata, dict) else cfg


def _provenance(cfg: dict[str, Any], where: str, left_out: np.ndarray) -> dict[str, Any]:
    names = "model_name", "hook_name", "sae_lens_version"
    told = {name: _metadata(cfg)[name] for name in names if _metadata(cfg).get(name)}
    return {"imported from": where, "architecture": cfg["architecture"]} | told | {"left out": left_out.tolist()}
