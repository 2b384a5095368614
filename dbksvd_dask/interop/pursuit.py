"""The pursuit of a `Dictionary` inside SAELens, which has one that counts steps instead of atoms."""

import os
from functools import cache
from typing import Any

from dbksvd_dask.interop.saelens import OURS
from dbksvd_dask.kernels.chunk import STEPS_PER_NONZERO

_ARCHITECTURE = "dbksvd_pursuit"


def exact_pursuit(
    path: str | os.PathLike[str], device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let SAELens encode just as the dictionary does: ``SAE.load_from_disk(path, converter=exact_pursuit)``.

    The folder is one that `to_saelens` has written. What is loaded is a SAE as any other, on any device and with
    gradients, but its pursuit goes on to k distinct atoms, or 4 k steps, or until ``‖r‖ ≤ rtol ‖y‖``, and an atom has
    one coefficient, not a positive and a negative one: the codes are those of `Dictionary.encode` up to rounding. Saved
    by ``save_model`` it is the same folder again, which loads with and without this function.

    Parameters
    ----------
    path, device, cfg_overrides
        As ``SAE.load_from_disk`` passes them on.

    Returns
    -------
    tuple of dict
        Configuration and tensors.

    Raises
    ------
    ImportError
        If SAELens is not installed.
    ValueError
        If `to_saelens` has not written the folder, or the dictionary encodes by orthogonal matching pursuit.
    """
    try:
        from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader
    except ModuleNotFoundError as error:
        if error.name != "sae_lens":
            raise
        message = 'this needs SAELens, which is missing: pip install "dbksvd-dask[interop]"'
        raise ImportError(message, name=error.name) from error

    cfg, tensors = sae_lens_disk_loader(path, device, cfg_overrides)
    found = (cfg.get("metadata") or {}).get(OURS)
    if not isinstance(found, dict) or not {"encoder", "nonnegative", "n_nonzero_coefs", "rtol"} <= found.keys():
        raise ValueError(f"{path} was not written by to_saelens: load it without exact_pursuit")
    if found["encoder"] != "mp":
        raise ValueError(
            f"{path} is of a dictionary that encodes by {found['encoder']!r}; this is for matching pursuit"
        )
    _register()
    return cfg | {"architecture": _ARCHITECTURE}, tensors


@cache
def _register() -> None:
    """Make the architecture known to SAELens; once, and not before it is needed: it takes seconds to import."""
    import torch
    from sae_lens import MatchingPursuitSAE, MatchingPursuitSAEConfig, register_sae_class

    class PursuitConfig(MatchingPursuitSAEConfig):
        @classmethod
        def architecture(cls) -> str:
            return _ARCHITECTURE

        def to_dict(self) -> dict[str, Any]:
            return super().to_dict() | {"architecture": MatchingPursuitSAEConfig.architecture()}

    class PursuitSAE(MatchingPursuitSAE):
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.process_sae_in(x)
            found = self.cfg.metadata[OURS]
            signed = not found["nonnegative"]
            atoms = self.W_dec[: len(self.W_dec) // 2] if signed else self.W_dec
            codes = pursue(rows.reshape(-1, rows.shape[-1]), atoms, found["n_nonzero_coefs"], found["rtol"], signed)
            latents = torch.cat([codes.relu(), (-codes).relu()], dim=1) if signed else codes
            return self.hook_sae_acts_post(latents.reshape(*rows.shape[:-1], self.cfg.d_sae))

    register_sae_class(_ARCHITECTURE, PursuitSAE, PursuitConfig)


def pursue(rows: Any, atoms: Any, k: int, rtol: float, signed: bool) -> Any:
    """Matching pursuit as in `dbksvd_dask.kernels`, but in PyTorch: on any device, with gradients.

    Parameters
    ----------
    rows : (n, d) torch.Tensor
    atoms : (m, d) torch.Tensor
        Unit rows.
    k : int
        Most atoms of a row.
    rtol : float
        A row is done at ``‖r‖ ≤ rtol ‖y‖``.
    signed : bool
        Or positive coefficients only.

    Returns
    -------
    (n, m) torch.Tensor
        The codes, dense.
    """
    import torch

    codes = rows.new_zeros(len(rows), len(atoms))
    used = torch.zeros_like(codes, dtype=torch.bool)
    going, residual = torch.arange(len(rows), device=rows.device), rows
    norms = torch.linalg.vector_norm(rows.detach(), dim=1)
    for _ in range(STEPS_PER_NONZERO * k):
        with torch.no_grad():
            products = residual @ atoms.T
            peaks, picked = (products.abs() if signed else products).max(dim=1)
            full = used[going].sum(dim=1) == k
            ended = peaks <= torch.finfo(rows.dtype).eps * norms[going]
            ended |= full & ~used[going, picked]
            if rtol > 0:
                ended |= torch.linalg.vector_norm(residual, dim=1) <= rtol * norms[going]
            left = ~ended
            going, picked = going[left], picked[left]
            if not len(going):
                break
            used[going, picked] = True
        residual = residual[left]
        directions = atoms[picked]
        c = (residual * directions).sum(dim=1)
        codes.index_put_((going, picked), c, accumulate=True)
        residual = residual - c[:, None] * directions
    return codes
