"""What is run: each name is a learner with its settings, in a process of its own."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """One learner with one setting."""

    label: str
    """What tables and plots call it."""
    learner: str
    """Module with its `learn`."""
    settings: dict[str, Any]
    own: str
    """What gives its own codes."""
    k: int = 20
    by_sparsity: tuple[int, ...] = ()
    """Other numbers of nonzeros to score its last atoms with."""


SPARSITIES = (5, 10, 20, 40, 80)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
MATRYOSHKA_WIDTHS = [256, 512, 1024, 2048]
ARCHITECTURES = {
    "topk": ("TopK", {"architecture": "topk"}),
    "batchtopk": ("BatchTopK", {"architecture": "batchtopk"}),
    "matryoshka": (
        "Matryoshka",
        {"architecture": "matryoshka_batchtopk", "sae": {"matryoshka_widths": MATRYOSHKA_WIDTHS}},
    ),
}
SAE = {"batch_size": 512, "dead_feature_window": 200}
BEST_LEARNING_RATE = {"topk": 3e-3, "batchtopk": 3e-3, "matryoshka": 3e-3}


def dbksvd(label: str, k: int = 20, by_sparsity: tuple[int, ...] = (), **settings: Any) -> Run:
    """DBKSVD on outer batches of 16,384 rows."""
    own = settings.get("encoder", "mp").upper()
    return Run(label, "learn_dbksvd", {"batch_size": 16384} | settings, own, k, by_sparsity)


def saelens(name: str, lr: float, n_samples: int, by_sparsity: tuple[int, ...] = ()) -> Run:
    """An autoencoder."""
    label, settings = ARCHITECTURES[name]
    settings = SAE | settings | {"lr": lr, "n_samples": n_samples}
    return Run(f"SAELens {label}", "learn_saelens", settings, "encoder", by_sparsity=by_sparsity)


MAIN = {
    "dbksvd-mp": dbksvd("DB-KSVD, MP", max_iter=180, by_sparsity=SPARSITIES),
    "spams-l0": Run(
        "SPAMS, L0",
        "learn_spams",
        {"mode": 3, "lambda1": 20.0, "batchsize": 512, "n_samples": 1024 * 1000},
        "OMP",
        by_sparsity=SPARSITIES,
    ),
    "dbksvd-matryoshka": dbksvd("DB-KSVD, Matryoshka", max_iter=180, matryoshka=True, by_sparsity=SPARSITIES),
    "spams-l1": Run(
        "SPAMS, L1",
        "learn_spams",
        {"mode": 2, "lambda1": 0.9, "batchsize": 512, "n_samples": 1024 * 1000},
        "L1",
        by_sparsity=SPARSITIES,
    ),
    "scikit-learn": Run(
        "scikit-learn",
        "learn_scikit",
        {"alpha": 0.9, "batch_size": 512, "n_samples": 64 * 512},
        "L1",
        by_sparsity=SPARSITIES,
    ),
    "dbksvd-omp": dbksvd("DB-KSVD, OMP", max_iter=120, encoder="omp", by_sparsity=SPARSITIES),
}
AUTOENCODERS = {
    f"saelens-{name}": saelens(name, BEST_LEARNING_RATE[name], 2_500_000, SPARSITIES) for name in ARCHITECTURES
}
REFITTED = {f"dbksvd-k{k}": dbksvd("DB-KSVD, MP", k=k, max_iter=60) for k in SPARSITIES if k != 20}
SEARCH = {f"search-{name}-{lr:g}": saelens(name, lr, 400_000) for name in ARCHITECTURES for lr in LEARNING_RATES}
RUNS = MAIN | AUTOENCODERS | REFITTED | SEARCH
