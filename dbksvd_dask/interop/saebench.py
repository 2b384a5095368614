"""Dictionaries as SAEBench takes sparse autoencoders."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.interop.pursuit import pursue
from dbksvd_dask.interop.settings import check_dictionary, check_place_in_model
from dbksvd_dask.kernels import chunk as kernels
from dbksvd_dask.kernels.blas import single_threaded
from dbksvd_dask.kernels.pursuit import Pursuit

if TYPE_CHECKING:
    from torch import nn


def saebench_wrapper(
    dictionary: Dictionary,
    *,
    model_name: str,
    hook_name: str,
    hook_layer: int,
    split: bool = False,
    n_nonzero_coefs: int | None = None,
) -> "nn.Module":
    """Make a dictionary what the evaluations of SAEBench take for a sparse autoencoder.

    Pass ``[(name, wrapper)]`` as their `selected_saes`. SAEBench need not be installed for the wrapper itself.

    `encode` gives the codes of `Dictionary.encode` as a dense tensor, (…, m), and `decode` what `Dictionary.decode`
    does of them. On a CPU the pursuit is compiled by numba, with the Gram matrix kept, m² floats; on another device
    matching pursuit is done there by PyTorch, while orthogonal matching pursuit stays on the CPU.

    Parameters
    ----------
    dictionary : Dictionary
        Encodes by its own pursuit and `rtol`; Matryoshka groups are encoded together.
    model_name, hook_name : str
        Model, as TransformerLens names it, and where in it the embeddings are from: ``"blocks.12.hook_resid_post"``.
    hook_layer : int
        Its block: SAEBench computes none that comes after it.
    split : bool
        Have two latents for each atom, of ``[D; −D]`` with ``x⁺`` and ``x⁻``, rather than one that is signed. The
        reconstruction and L0 are the same. Evaluations that count only positive latents as active (feature density and
        alive latents in `core`, TPP, absorption, automatic interpretation) need it to see the negative coefficients.
    n_nonzero_coefs : int, optional
        k, the dictionary's own by default.

    Returns
    -------
    torch.nn.Module
        With `encode`, `decode`, `forward`, `to`, `dtype`, `device`, `cfg`, `W_dec`, `W_enc` (zero), and `b_dec` (the
        mean). `dtype` is that of codes and reconstructions; they are computed in that of the dictionary, which
        ``to(dtype=…)`` leaves as it is. Rows of zeros, as masked tokens come, get zero codes, also where there is a
        mean. Gradients pass through `decode`, not through `encode`.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    TypeError, ValueError
        If an argument is not what it has to be, or the dictionary has no k of its own and none is given; when
        encoding, if activations have another number of features or are not finite.

    References
    ----------
    Karvonen et al., "SAEBench: A Comprehensive Benchmark for Sparse Autoencoders in Language Model Interpretability",
    arXiv:2503.09532.

    Examples
    --------
    >>> import numpy as np
    >>> D = Dictionary(np.eye(3, dtype="float32"), n_nonzero_coefs=1)
    >>> saebench_wrapper(D, model_name="gpt2", hook_name="blocks.5.hook_resid_post", hook_layer=6)
    Traceback (most recent call last):
    ...
    ValueError: hook_layer=6, but hook_name='blocks.5.hook_resid_post' is in block 5
    """
    check_dictionary(dictionary)
    k = dictionary._k(n_nonzero_coefs)
    if not isinstance(split, bool | np.bool_):
        raise TypeError(f"split={split!r} must be True or False")
    if split and dictionary.nonnegative:
        raise ValueError("split=True, but the dictionary is nonnegative: there is nothing to split, pass split=False")
    _check_hook(model_name, hook_name, hook_layer)
    pursuit = Pursuit(k, dictionary.encoder, dictionary.nonnegative, dictionary.rtol)
    cfg = SAEBenchConfig(
        model_name=model_name,
        hook_name=hook_name,
        hook_layer=int(hook_layer),
        d_in=dictionary.n_features,
        d_sae=dictionary.n_atoms * (2 if split else 1),
        dtype=str(dictionary.dtype),
        n_nonzero_coefs=k,
        encoder=dictionary.encoder,
        nonnegative=bool(dictionary.nonnegative),
        rtol=float(dictionary.rtol),
        split=bool(split),
    )
    return _module_class()(dictionary, pursuit, cfg)


@dataclass
class SAEBenchConfig:
    """What SAEBench asks of a sparse autoencoder, and keeps with its results."""

    model_name: str
    """As TransformerLens names it."""
    hook_name: str
    """Where in the model the embeddings are from."""
    hook_layer: int
    """Its block."""
    d_in: int
    """Features, d."""
    d_sae: int
    """Latents: m, or 2 m of a split dictionary."""
    dtype: str
    """Of codes and reconstructions, and so of the model that SAEBench loads."""
    n_nonzero_coefs: int
    """k."""
    encoder: str
    """The pursuit."""
    nonnegative: bool
    """Whether it has positive coefficients only."""
    rtol: float
    """Ends a sample at ``‖r‖ ≤ rtol ‖y‖``."""
    split: bool
    """Whether latents are ``x⁺`` and ``x⁻``."""
    architecture: str = "dbksvd"
    """What SAEBench calls such a sparse autoencoder."""
    normalize_activations: str = "none"
    """Nothing is done to embeddings before they are encoded, but for the mean."""
    prepend_bos: bool = True
    """Whether contexts begin with the model's first token, as SAEBench has it by default."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON values."""
        return asdict(self)


def _check_hook(model_name: str, hook_name: str, hook_layer: int) -> None:
    check_place_in_model(model_name, hook_name)
    if not isinstance(hook_layer, Integral) or isinstance(hook_layer, bool):
        raise TypeError(f"hook_layer={hook_layer!r} must be a whole number")
    if hook_layer < 0:
        raise ValueError(f"hook_layer={hook_layer} must be 0 or more")
    # SAEBench stops its forward passes after this block, and logs what fails then rather than raising it.
    block = re.match(r"blocks\.(\d+)\.", hook_name)
    if block and int(block[1]) != hook_layer:
        raise ValueError(f"hook_layer={hook_layer}, but hook_name={hook_name!r} is in block {block[1]}")


@cache
def _module_class() -> type:
    """The class of the wrappers; made when it is first needed, for PyTorch takes seconds to import or is not there."""
    try:
        import torch
        from torch import nn
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        message = 'this needs PyTorch, which is missing: pip install "dbksvd-dask[interop]"'
        raise ImportError(message, name=error.name) from error

    class SAEBenchDictionary(nn.Module):
        """A dictionary with the methods and attributes of a SAEBench `BaseSAE`."""

        atoms: torch.Tensor
        b_dec: torch.Tensor

        def __init__(self, dictionary: Dictionary, pursuit: Pursuit, cfg: SAEBenchConfig) -> None:
            super().__init__()
            mean = np.zeros(cfg.d_in, dictionary.dtype) if dictionary.mean is None else dictionary.mean
            self.register_buffer("atoms", torch.tensor(dictionary.atoms))
            self.register_buffer("b_dec", torch.tensor(mean))
            self.cfg = cfg
            self.dtype = self.atoms.dtype
            self._pursuit = pursuit
            self._gram: np.ndarray | None = None
            self.register_load_state_dict_post_hook(_forget_gram)

        @property
        def device(self) -> torch.device:
            return self.atoms.device

        @property
        def W_dec(self) -> torch.Tensor:
            """(d_sae, d_in)."""
            weights = torch.cat([self.atoms, -self.atoms]) if self.cfg.split else self.atoms
            return weights.to(self.dtype)

        @property
        def W_enc(self) -> torch.Tensor:
            """(d_in, d_sae) zeros, in no memory: a pursuit has no such weights, but SAEBench wants their dtype."""
            return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.cfg.d_in, self.cfg.d_sae)

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            """(…, d_in) activations to (…, d_sae) codes."""
            rows = self._rows_of(x)
            codes = self._encode_on_cpu(rows) if self._stays_on_cpu(rows) else self._encode_on_device(rows)
            codes[~rows.any(dim=1)] = 0
            if self.cfg.split:
                codes = torch.cat([codes.clamp(min=0), (-codes).clamp(min=0)], dim=1)
            return codes.to(self.device, self.dtype).reshape(*x.shape[:-1], self.cfg.d_sae)

        def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
            """(…, d_sae) codes to (…, d_in) reconstructions, differentiably."""
            codes = feature_acts.to(self.atoms.dtype)
            if self.cfg.split:
                positive, negative = codes.chunk(2, dim=-1)
                codes = positive - negative
            return (codes @ self.atoms + self.b_dec).to(self.dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Reconstruct (…, d_in) activations."""
            return self.decode(self.encode(x))

        def _rows_of(self, x: torch.Tensor) -> torch.Tensor:
            """The activations as (n, d) rows in the precision of the atoms."""
            if x.ndim < 2 or x.shape[-1] != self.cfg.d_in:
                raise ValueError(f"the activations have shape {tuple(x.shape)}, not (…, {self.cfg.d_in})")
            rows = x.detach().reshape(-1, self.cfg.d_in).to(self.device, self.atoms.dtype)
            finite = rows.isfinite().all(dim=1)
            if not finite.all():
                raise ValueError(f"row {int(finite.logical_not().nonzero()[0])} of the activations is not finite")
            return rows

        def _stays_on_cpu(self, rows: torch.Tensor) -> bool:
            return rows.device.type == "cpu" or self._pursuit.encoder == "omp"

        def _encode_on_device(self, rows: torch.Tensor) -> torch.Tensor:
            pursuit = self._pursuit
            signed = not pursuit.nonnegative
            with torch.no_grad():
                return pursue(rows - self.b_dec, self.atoms, pursuit.n_nonzero_coefs, pursuit.rtol, signed)

        def _encode_on_cpu(self, rows: torch.Tensor) -> torch.Tensor:
            samples, atoms, mean = (tensor.cpu().numpy() for tensor in (rows, self.atoms, self.b_dec))
            codes = np.zeros((len(samples), len(atoms)), atoms.dtype)
            gram = self._gram = atoms @ atoms.T if self._gram is None else self._gram

            def encode_part(part: slice) -> None:
                indices, values = kernels.encode([samples[part]], atoms, [gram], mean, self._pursuit)
                sample, slot = np.nonzero(indices >= 0)
                codes[part][sample, indices[sample, slot]] = values[sample, slot]

            n_threads = torch.get_num_threads()
            edges = np.unique(np.linspace(0, len(samples), n_threads + 1).astype(int))
            parts = [slice(start, stop) for start, stop in pairwise(edges)]
            with single_threaded(), ThreadPoolExecutor(n_threads) as threads:
                list(threads.map(encode_part, parts))
            return torch.from_numpy(codes).to(rows.device)

        def _apply(self, fn: Any, recurse: bool = True) -> "SAEBenchDictionary":
            """Go to another device, or have another dtype without rounding the atoms."""
            like = fn(torch.empty(0, dtype=self.dtype, device=self.device))
            self.dtype = like.dtype
            self.cfg.dtype = str(like.dtype).removeprefix("torch.")
            return super()._apply(lambda tensor: tensor.to(like.device), recurse)

    return SAEBenchDictionary


def _forget_gram(module: Any, incompatible_keys: Any) -> None:
    module._gram = None
