from . import bounds, callbacks, cluster, embeddings, history, interop, metrics
from .baseline import Baseline, ksvd_baseline
from .callbacks import Callback, ProgressBar, StopOnPlateau, TimeBudget
from .codes import SparseCodes, open_codes
from .comparison import compare, stability
from .dictionary import Dictionary, open_dictionary
from .embeddings import open_embeddings
from .embeddings.synthetic import ToyProblem, toy_problem
from .estimator import DBKSVD
from .language.harvesting import harvest
from .language.splicing import evaluate_splicing
from .run import Run
from .sweeps import sweep

__all__ = [
    "DBKSVD",
    "Baseline",
    "Callback",
    "Dictionary",
    "ProgressBar",
    "Run",
    "SparseCodes",
    "StopOnPlateau",
    "TimeBudget",
    "ToyProblem",
    "bounds",
    "callbacks",
    "cluster",
    "compare",
    "embeddings",
    "evaluate_splicing",
    "harvest",
    "history",
    "interop",
    "ksvd_baseline",
    "metrics",
    "open_codes",
    "open_dictionary",
    "open_embeddings",
    "stability",
    "sweep",
    "toy_problem",
]
