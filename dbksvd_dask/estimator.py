"""DBKSVD: the estimator, by scikit-learn's conventions."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
import xarray as xr
from scipy.sparse import csr_array, sparray, spmatrix
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from dbksvd_dask import fitting
from dbksvd_dask.batches import read_in_order
from dbksvd_dask.checkpoint import SavedFit, check_same_fit, read_checkpoint
from dbksvd_dask.checkpoint_store import checkpoint_place
from dbksvd_dask.codes import SparseCodes
from dbksvd_dask.dictionary import Dictionary
from dbksvd_dask.embeddings.opening import Source
from dbksvd_dask.encoding import evaluate_chunks, share_dictionary
from dbksvd_dask.graph import without_size_warning
from dbksvd_dask.inputs import check_parameters, is_lazy, open_rows, refuse_second_argument
from dbksvd_dask.kernels.backend import on_device, to_host
from dbksvd_dask.kernels.pursuit import Pursuit
from dbksvd_dask.memory import MemoryPlan
from dbksvd_dask.reprs import model_html
from dbksvd_dask.run import Run


class DBKSVD(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Sparse dictionary learning by Double-Batch K-SVD.

    Finds unit-norm atoms D and codes X of at most k nonzero coefficients a sample so that ``Y ≈ X D``, by turns: sparse
    encoding of an outer batch of samples by matching pursuit, and rank-1 updates of the atoms, an inner batch of them
    at a time [1]_. Each iteration is one Dask graph, computed by whatever scheduler is active: threads of this process,
    or a `distributed.Client`.

    Parameters
    ----------
    n_components : int
        m, the number of atoms.
    n_nonzero_coefs : int
        k, the most atoms a sample may use.
    batch_size : int, default 65536
        Most samples of an outer batch: those that one iteration sees.
    max_iter : int, default 40
        Iterations; each goes on in the data where the one before left off.
    inner_batch_size : int or None, default None
        Atoms updated simultaneously; None for all of them, which needs the least communication.
    n_passes : int, default 2
        Most passes over the residual that the update of an inner batch takes.
    tol : float, default 0.0
        Krylov tolerance: an atom takes no more passes when ``‖EᵀE v − θ v‖ ≤ tol θ``, where E is its error matrix, v
        its best direction so far and θ the Ritz value of that; with ``solver="lanczos"``.
    solver : {"lanczos", "power"}, default "lanczos"
        What is made of the passes: the best vector of the Krylov space, or plain power iteration.
    init : {"samples", "random"} or (n_components, d) array, default "samples"
        The first dictionary: rows of the first outer batch (and of the next ones, if it does not hold enough different
        ones), uniformly random directions, or unit-norm atoms.
    fixed_atoms : (f, d) array, optional
        Unit-norm atoms that are known beforehand and stay as they are, to the last bit: the first f of the dictionary
        (paper, section 5.4).
    known_atoms : (g, d) array, optional
        Unit-norm atoms that are known beforehand and are learned on from there: the next g. `init` is about the others.
    center : bool, default False
        Take the mean of the embeddings from each sample first. It costs one more pass over the data.
    matryoshka : bool or sequence of int, default False
        Learn the atoms in groups of these sizes, each fitted to what the groups before leave, with equal shares of
        `n_nonzero_coefs`; where k does not divide, the first groups have one more (paper, section 4.2). True for groups
        of 256, 256, 512, 1024, … atoms. What is learned is used as any other dictionary: `transform` and validation are
        one pursuit over all atoms; ``dictionary_.encode(Y, group_wise=True)`` goes group by group.
    flat_share : float, default 0.5
        Share of the iterations of `fit`, the last ones, that are one pursuit over all atoms, where there are Matryoshka
        groups: it wins back what the groups cost, and leaves the atoms nearly as different as they made them. 0 gives
        the paper's algorithm, as does `partial_fit`. A fit that a callback or Ctrl-C ends early has fewer of them, or
        none.
    replace_unused : {"residual", "random"} or None, default "residual"
        What becomes of atoms that no sample of an outer batch uses: residual directions of the worst-reconstructed
        samples, random directions, or nothing.
    max_coherence : float, optional
        Of two atoms whose ``|cos|`` is above this, the one that fewer samples use is replaced like an unused one, and
        its samples are left to the other. Embeddings with a mean of their own need ``center=True``: else nearly all
        first atoms are near to each other.
    average : bool, default True
        Learn the average of the atoms over iterations, late ones weighing more [2]_, rather than the last atoms, which
        carry the noise of their batch. `fit` does without it where the data are one outer batch: iterations that see
        the same samples have no such noise. False gives the paper's algorithm.
    encoder : {"mp", "omp"}, default "mp"
        Matching pursuit, or orthogonal matching pursuit.
    nonnegative : bool, default False
        Positive coefficients only; with ``encoder="mp"``.
    rtol : float, default 0.0
        A sample is done when its residual is down to this fraction of its norm.
    dtype : {"float32", "float64"} or None, default None
        Precision of the computation; None for that of the embeddings, but at least float32.
    shuffle : {"chunks"} or None, default None
        Permute chunks, and rows within chunks, anew in every epoch; or walk through them in storage order.
    random_state : int, RandomState or None, default None
        Seed. The same seed and the same data in the same chunks give the same bits, on any number of workers.
    callbacks : sequence of callables, default ()
        Called after each iteration; see `dbksvd_dask.callbacks`.
    checkpoint : path or URL, optional
        Where `fit` keeps its last two checkpoints, from which `resume` goes on, and which `open_dictionary` opens at
        any time: a local folder or any other target of fsspec, as ``s3://…``. SIGTERM, which batch systems send before
        they kill, writes one and ends the process; so does Ctrl-C, which ends the fit.
    checkpoint_every : int, default 1
        Iterations from one checkpoint to the next.

    Attributes
    ----------
    components_ : (n_components, d) ndarray
        The learned atoms, unit rows, in the precision of the computation.
    dictionary_ : Dictionary
        The atoms with their provenance: encodes, decodes, keeps itself as zarr.
    history_ : xarray.Dataset
        What happened at each iteration; the variables are those of `dbksvd_dask.history.Iteration`.
    mean_ : (d,) ndarray or None
        The mean that was taken from the samples.
    n_iter_ : int
        Iterations so far.
    n_features_in_ : int
        d.
    stopped_by_ : str or None
        Why the last fit ended: "max_iter", "stop" (`Run.stop`), "interrupt", "error", or the name of a callback; None
        while it goes on.

    References
    ----------
    .. [1] Valentin, Katz, Vanhoucke, Kochenderfer, "DB-KSVD: Scalable Alternating Optimization for Disentangling
       High-Dimensional Embedding Spaces", arXiv 2505.18441.
    .. [2] Shamir, Zhang, "Stochastic Gradient Descent for Non-smooth Optimization: Convergence Results and Optimal
       Averaging Schemes", ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from dbksvd_dask import DBKSVD
    >>> rng = np.random.default_rng(0)
    >>> Y = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 8))
    >>> model = DBKSVD(n_components=12, n_nonzero_coefs=3, max_iter=5, random_state=0).fit(Y)
    >>> model.components_.shape
    (12, 8)
    >>> bool(model.score(Y) > 0.9)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "n_nonzero_coefs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "inner_batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "n_passes": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "solver": [StrOptions({"lanczos", "power"})],
        "init": [StrOptions({"samples", "random"}), "array-like"],
        "fixed_atoms": ["array-like", None],
        "known_atoms": ["array-like", None],
        "center": ["boolean"],
        "matryoshka": ["boolean", "array-like"],
        "flat_share": [Interval(Real, 0, 1, closed="both")],
        "replace_unused": [StrOptions({"residual", "random"}), None],
        "max_coherence": [Interval(Real, 0, 1, closed="neither"), None],
        "average": ["boolean"],
        "encoder": [StrOptions({"mp", "omp"})],
        "nonnegative": ["boolean"],
        "rtol": [Interval(Real, 0, 1, closed="left")],
        "dtype": [StrOptions({"float32", "float64"}), type, np.dtype, None],
        "shuffle": [StrOptions({"chunks"}), None],
        "random_state": ["random_state"],
        "callbacks": [list, tuple],
        "checkpoint": [str, os.PathLike, None],
        "checkpoint_every": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        n_components: int,
        n_nonzero_coefs: int,
        *,
        batch_size: int = 65536,
        max_iter: int = 40,
        inner_batch_size: int | None = None,
        n_passes: int = 2,
        tol: float = 0.0,
        solver: Literal["lanczos", "power"] = "lanczos",
        init: Literal["samples", "random"] | np.ndarray = "samples",
        fixed_atoms: np.ndarray | None = None,
        known_atoms: np.ndarray | None = None,
        center: bool = False,
        matryoshka: bool | Sequence[int] = False,
        flat_share: float = 0.5,
        replace_unused: Literal["residual", "random"] | None = "residual",
        max_coherence: float | None = None,
        average: bool = True,
        encoder: Literal["mp", "omp"] = "mp",
        nonnegative: bool = False,
        rtol: float = 0.0,
        dtype: Any = None,
        shuffle: Literal["chunks"] | None = None,
        random_state: int | np.random.RandomState | None = None,
        callbacks: Sequence[Callable] = (),
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
    ) -> None:
        self.n_components = n_components
        self.n_nonzero_coefs = n_nonzero_coefs
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.inner_batch_size = inner_batch_size
        self.n_passes = n_passes
        self.tol = tol
        self.solver = solver
        self.init = init
        self.fixed_atoms = fixed_atoms
        self.known_atoms = known_atoms
        self.center = center
        self.matryoshka = matryoshka
        self.flat_share = flat_share
        self.replace_unused = replace_unused
        self.max_coherence = max_coherence
        self.average = average
        self.encoder = encoder
        self.nonnegative = nonnegative
        self.rtol = rtol
        self.dtype = dtype
        self.shuffle = shuffle
        self.random_state = random_state
        self.callbacks = callbacks
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every

    def fit(
        self,
        Y: Source,
        y: None = None,
        *,
        validation: Source | None = None,
        support: sparray | spmatrix | np.ndarray | None = None,
    ) -> Self:
        """Learn a dictionary.

        Kernel → Interrupt (Ctrl-C) after the first iteration ends the fit; the model is then fitted and usable.

        Parameters
        ----------
        Y : (n, d) embeddings
            A NumPy array (or what scikit-learn takes for one), a dask array, an xarray.DataArray or Dataset, or a path:
            whatever `open_embeddings` takes.
        y : None
            Ignored; scikit-learn's pipelines pass it.
        validation : (n, d) embeddings, optional
            Held-out embeddings whose error is in the history of each iteration. They are kept in memory.
        support : (n, n_components) SciPy sparse array of 0 and 1, optional
            Which samples are known to use which atoms, as far as that is known: the first dictionary follows from it
            (paper, section 5.4). Its columns are in the order of `components_`; empty ones are atoms of which nothing
            is known. Looked at are the samples of the first five outer batches.

        Returns
        -------
        DBKSVD
            Itself.

        Raises
        ------
        TypeError
            If the embeddings are not floating.
        ValueError
            If they are empty, have fewer samples than there are atoms, or hold a row that is not finite; if the
            validation embeddings have another number of features; or if a parameter or the support does not fit.

        Examples
        --------
        >>> import numpy as np
        >>> from dbksvd_dask import DBKSVD
        >>> Y = np.random.default_rng(0).standard_normal((500, 8))
        >>> model = DBKSVD(12, 3, max_iter=5, random_state=0).fit(Y[:400], validation=Y[400:])
        >>> model.history_.validation_relative_error.sizes
        Frozen({'iteration': 5})
        """
        refuse_second_argument(y)
        fitting.fit(self, Y, validation, support)
        return self

    def fit_async(
        self,
        Y: Source,
        *,
        validation: Source | None = None,
        support: sparray | spmatrix | np.ndarray | None = None,
    ) -> Run:
        """Learn a dictionary in a background thread, and return at once.

        In a notebook the convergence monitor is shown, elsewhere a progress bar. The model is the one that `fit` makes,
        to the last bit, if it is not stopped. Several models can be fitted side by side.

        Parameters
        ----------
        Y, validation, support
            As in `fit`. An array in memory is not copied: leave it as it is until the fit has ended.

        Returns
        -------
        Run
            To stop, pause, resume and await the fit. What the fit raises is shown in the monitor, and raised by
            `Run.wait` and by awaiting the run.

        Examples
        --------
        >>> import numpy as np
        >>> from dbksvd_dask import DBKSVD
        >>> Y = np.random.default_rng(0).standard_normal((500, 8))
        >>> run = DBKSVD(12, 3, max_iter=5, random_state=0).fit_async(Y[:400], validation=Y[400:])
        >>> run.wait().n_iter_
        5
        """
        return Run(self, partial(fitting.fit, self, Y, validation, support))

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        Y: Source,
        *,
        validation: Source | None = None,
        callbacks: Sequence[Callable] = (),
        **expected: Any,
    ) -> Self:
        """Go on with a fit that has ended early, from its last checkpoint: the outcome is that of the whole fit.

        It has the same bits as if the fit had not been interrupted, and goes on to write checkpoints. At most the
        iterations since the last one are made again. A fit that came to its end is returned as it is.

        Parameters
        ----------
        path : path or URL
            That of the fit's `checkpoint`.
        Y : (n, d) embeddings
            Those of the fit, in the same chunks; wherever they are now.
        validation : (n, d) embeddings, optional
            Those of the fit, if it had some.
        callbacks : sequence of callables
            What watches the fit from here on. `Callback.catch_up` is told of the iterations before.
        **expected
            Parameters that the fit must have been begun with, refused if it was not.

        Returns
        -------
        DBKSVD
            The fitted model.

        Raises
        ------
        FileNotFoundError
            If there is no checkpoint at `path`.
        ValueError
            If the embeddings are others, or in other chunks, if an expected parameter is another, or if this version
            of the package, of NumPy or of numba would compute other bits. The message names what differs.

        Warns
        -----
        UserWarning
            If this computer has other instructions, which change the last bits; or if the last checkpoint cannot be
            read, and the one before is used.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> from dbksvd_dask import DBKSVD, TimeBudget
        >>> Y = np.random.default_rng(0).standard_normal((500, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = DBKSVD(12, 3, max_iter=5, checkpoint=f"{folder}/fit.zarr", callbacks=[TimeBudget(seconds=0)])
        ...     n_done = model.fit(Y).n_iter_
        ...     n_done, DBKSVD.resume(f"{folder}/fit.zarr", Y).n_iter_
        (1, 5)
        """
        model, saved = cls._saved(path, callbacks, expected)
        fitting.resume(model, saved, Y, validation)
        return model

    @classmethod
    def resume_async(
        cls,
        path: str | os.PathLike[str],
        Y: Source,
        *,
        validation: Source | None = None,
        callbacks: Sequence[Callable] = (),
        **expected: Any,
    ) -> Run:
        """Go on with a fit in a background thread: to `resume` what `fit_async` is to `fit`.

        Parameters
        ----------
        path, Y, validation, callbacks, **expected
            As in `resume`.

        Returns
        -------
        Run
            Its monitor shows the iterations before, too.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> from dbksvd_dask import DBKSVD
        >>> Y = np.random.default_rng(0).standard_normal((500, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = DBKSVD(12, 3, max_iter=2, checkpoint=f"{folder}/fit.zarr").fit(Y)
        ...     DBKSVD.resume_async(f"{folder}/fit.zarr", Y).wait().n_iter_
        2
        """
        model, saved = cls._saved(path, callbacks, expected)
        return Run(model, partial(fitting.resume, model, saved, Y, validation))

    @classmethod
    def _saved(
        cls, path: str | os.PathLike[str], callbacks: Sequence[Callable], expected: Mapping[str, Any]
    ) -> tuple[Self, SavedFit]:
        """The model as a checkpoint has it, and the rest of the checkpoint."""
        saved = read_checkpoint(path)
        check_same_fit(saved, cls(1, 1).get_params(), expected)
        other = expected.get("checkpoint", path)
        if checkpoint_place(other) != checkpoint_place(path):
            raise ValueError(
                f"checkpoint={other!r}, but the fit goes on to write to {os.fspath(path)}: copy that, and resume the "
                "copy"
            )
        every = expected.get("checkpoint_every", saved.checkpoint_every)
        model = cls(**saved.parameters, callbacks=callbacks, checkpoint=path, checkpoint_every=every)
        model._validate_params()
        return model, saved

    def memory_plan(self, Y: Source, *, validation: Source | None = None) -> MemoryPlan:
        """What a fit will hold in memory, before it starts: on the active cluster, or in threads of this process.

        Parameters
        ----------
        Y, validation : (n, d) embeddings
            As in `fit`; of what is lazy nothing is read.

        Returns
        -------
        MemoryPlan
            What a worker and a task hold, whether that fits, and what to change where it does not.

        Raises
        ------
        TypeError, ValueError
            As `fit`; and if the cluster has no workers yet.

        Examples
        --------
        >>> import dask.array as da
        >>> from dbksvd_dask import DBKSVD
        >>> plan = DBKSVD(4096, 20).memory_plan(da.zeros((10**7, 2304), dtype="float32", chunks=(4096, -1)))
        >>> plan.per_worker > 10 * plan.per_task > 0
        True
        """
        return fitting.plan(self, Y, validation)

    def partial_fit(self, Y: Source, y: None = None) -> Self:
        """Go on learning: one pass over Y in outer batches. The first call begins as `fit` does.

        Parameters
        ----------
        Y : (n, d) embeddings
            As in `fit`; after the first call also fewer samples than atoms.
        y : None
            Ignored.

        Returns
        -------
        DBKSVD
            Itself.

        Raises
        ------
        TypeError, ValueError
            As `fit`; and if the features or `n_components` are not those learned so far.

        Examples
        --------
        >>> import numpy as np
        >>> from dbksvd_dask import DBKSVD
        >>> Y = np.random.default_rng(0).standard_normal((500, 8))
        >>> model = DBKSVD(12, 3, batch_size=100, random_state=0).partial_fit(Y)
        >>> model.n_iter_, model.partial_fit(Y[:300]).n_iter_
        (5, 8)
        """
        refuse_second_argument(y)
        fitting.fit_one_epoch(self, Y)
        return self

    def transform(self, Y: Source) -> csr_array | SparseCodes:
        """Sparse codes of embeddings.

        Parameters
        ----------
        Y : (n, d) embeddings
            As in `fit`.

        Returns
        -------
        (n, n_components) scipy.sparse.csr_array
            For an array in memory; for dask arrays, xarray objects and paths lazy `SparseCodes`.

        Examples
        --------
        >>> import dask.array as da, numpy as np
        >>> from dbksvd_dask import DBKSVD
        >>> Y = np.random.default_rng(0).standard_normal((500, 8))
        >>> model = DBKSVD(12, 3, max_iter=5, random_state=0).fit(Y)
        >>> model.transform(Y).shape
        (500, 12)
        >>> model.transform(da.from_array(Y, chunks=(100, 8)))
        <SparseCodes: 500 samples x 12 atoms, at most 3 nonzero, float64, lazy, 1 chunks>
        """
        check_is_fitted(self)
        embeddings = open_rows(self, Y, reset=False)
        codes = self.dictionary_.encode(embeddings)
        return codes if is_lazy(Y) else codes.to_csr()

    def inverse_transform(self, X: SparseCodes | csr_array | np.ndarray) -> np.ndarray | xr.DataArray:
        """Reconstruct embeddings from their codes; see `Dictionary.decode`.

        Parameters
        ----------
        X : (n, n_components) codes
            `SparseCodes`, or a SciPy matrix or array.

        Returns
        -------
        (n, d) floats
            A NumPy array; for lazy codes a lazy xarray.DataArray.

        Examples
        --------
        >>> import numpy as np
        >>> from dbksvd_dask import DBKSVD
        >>> Y = np.random.default_rng(0).standard_normal((500, 8))
        >>> model = DBKSVD(12, 3, max_iter=5, random_state=0).fit(Y)
        >>> model.inverse_transform(model.transform(Y)).shape
        (500, 8)
        """
        check_is_fitted(self)
        return self.dictionary_.decode(X)

    def score(self, Y: Source, y: None = None) -> float:
        """Variance explained, ``1 − Σ‖y − x D‖² / Σ‖y − ȳ‖²``: 1 is perfect.

        Parameters
        ----------
        Y : (n, d) embeddings
            As in `fit`.
        y : None
            Ignored.

        Returns
        -------
        float
            NaN where all samples are the same.

        Examples
        --------
        >>> import numpy as np
        >>> from dbksvd_dask import DBKSVD
        >>> Y = np.random.default_rng(0).standard_normal((500, 8))
        >>> 0 < DBKSVD(12, 3, max_iter=5, random_state=0).fit(Y).score(Y) < 1
        True
        """
        check_is_fitted(self)
        self._validate_params()
        embeddings = open_rows(self, Y, reset=False)
        check_parameters(self, len(embeddings), len(self.components_))
        shared = share_dictionary(self.components_, self.mean_, self._pursuit, device=on_device(embeddings.data))
        chunks = [rows for _, rows in read_in_order(embeddings.data)]
        statistics = evaluate_chunks(chunks, shared, self._pursuit)
        with without_size_warning():
            return statistics.compute().errors.variance_explained

    @property
    def components_(self) -> np.ndarray:
        """The learned atoms, unit rows."""
        check_is_fitted(self)
        return to_host(self._fit_state.state.learned.average)  # while it is fitted on a device they are there

    @property
    def dictionary_(self) -> Dictionary:
        """The atoms with their history, their provenance, and their labels, which are the model's until `fit`."""
        check_is_fitted(self)
        dictionary = Dictionary(
            self.components_,
            self.n_nonzero_coefs,
            mean=self.mean_,
            encoder=self.encoder,
            nonnegative=self.nonnegative,
            rtol=self.rtol,
            group_sizes=self._fit_state.group_sizes,
            history=self.history_,
            provenance=self._fit_state.provenance(getattr(self, "stopped_by_", None)),
        )
        # The same, not a copy: whoever labels `model.dictionary_` finds it again.
        dictionary.labels = self._fit_state.labels
        return dictionary

    @property
    def history_(self) -> xr.Dataset:
        """What happened at each iteration."""
        check_is_fitted(self)
        return self._fit_state.history

    @property
    def _n_features_out(self) -> int:
        return self.components_.shape[0]

    @property
    def _pursuit(self) -> Pursuit:
        return Pursuit(int(self.n_nonzero_coefs), self.encoder, bool(self.nonnegative), float(self.rtol))

    def _html_repr(self) -> str:
        """What scikit-learn shows in notebooks, unless `set_config(display="text")`."""
        return model_html(self)

    def __sklearn_is_fitted__(self) -> bool:
        """Not before there are atoms, while a fit begins in the background."""
        return hasattr(self, "_fit_state") and self._fit_state.state is not None

    def __sklearn_tags__(self) -> Any:
        """Say what scikit-learn's checks may expect."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
