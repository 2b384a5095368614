"""The algorithm as literally as it can be written, for the fast code to be compared with: plain float64 NumPy.

One sample, one atom at a time; nothing here knows the library. Samples and atoms are rows, as everywhere.
"""

from typing import NamedTuple

import numpy as np

EPS = np.finfo(np.float64).eps


class Codes(NamedTuple):
    """Sparse codes, in the order in which the atoms were first picked."""

    indices: np.ndarray
    """(n, k) int: −1 in empty slots, which come last."""
    values: np.ndarray
    """(n, k) float64."""
    margins: np.ndarray
    """(n,) relative to ‖y‖: by how little the closest choice of the pursuit was made. Less than rounding leaves may
    turn it the other way."""


# --- sparse encoding -------------------------------------------------------------------------------------------------


def matching_pursuit(Y, D, k, max_steps=None, rtol=0.0, nonnegative=False, rounding=EPS, norms=None):
    """Add the best atom's product to its coefficient until a (k+1)-th distinct atom would be needed.

    Products up to `rounding`, relative to ‖y‖, are no products. `norms` are those ‖y‖, if not of the rows themselves.
    """
    Y, D = np.asarray(Y, np.float64), np.asarray(D, np.float64)
    norms = np.linalg.norm(Y, axis=1) if norms is None else norms
    codes = no_codes(len(Y), k)
    for i, y in enumerate(Y):
        r = y
        x = {}
        for _ in range(4 * k if max_steps is None else max_steps):
            # j = argmax |p| with p = ⟨r, d_j⟩; numpy takes the lowest index on ties
            p = D @ r
            score = p if nonnegative else np.abs(p)
            j = int(np.argmax(score))
            note_margin(codes.margins, i, norms[i], score, rounding, rtol, r)
            if score[j] <= rounding * norms[i]:
                break
            # ‖r‖ ≤ rtol ‖y‖
            if rtol > 0 and np.linalg.norm(r) <= rtol * norms[i]:
                break
            if j not in x and len(x) == k:
                break
            # x_j ← x_j + p_j,  r ← r − p_j d_j
            x[j] = x.get(j, 0.0) + p[j]
            r = r - p[j] * D[j]
        codes.indices[i, : len(x)] = list(x.keys())
        codes.values[i, : len(x)] = list(x.values())
    return codes


def orthogonal_matching_pursuit(Y, D, k, rtol=0.0, rounding=EPS, norms=None):
    """Add the best atom, then solve least squares on the support; end early where it depends on the support."""
    Y, D = np.asarray(Y, np.float64), np.asarray(D, np.float64)
    norms = np.linalg.norm(Y, axis=1) if norms is None else norms
    codes = no_codes(len(Y), k)
    for i, y in enumerate(Y):
        support, x, r = [], [], y
        while len(support) < k:
            score = np.abs(D @ r)
            score[support] = 0
            j = int(np.argmax(score))
            note_margin(codes.margins, i, norms[i], score, rounding, rtol, r)
            if score[j] <= rounding * norms[i]:
                break
            if rtol > 0 and np.linalg.norm(r) <= rtol * norms[i]:
                break
            if np.linalg.matrix_rank(D[[*support, j]]) <= len(support):
                break
            # x = argmin ‖y − x D_Ω‖
            support.append(j)
            x = np.linalg.lstsq(D[support].T, y, rcond=None)[0]
            r = y - x @ D[support]
        codes.indices[i, : len(support)] = support
        codes.values[i, : len(support)] = x
    return codes


def refit(Y, D, indices, values):
    """Least-squares coefficients on each support; a dependent support keeps its own."""
    Y, D, values = np.asarray(Y, np.float64), np.asarray(D, np.float64), np.array(values, np.float64)
    for i, y in enumerate(Y):
        support = indices[i][indices[i] >= 0]
        if np.linalg.matrix_rank(D[support]) == len(support):
            values[i, : len(support)] = np.linalg.lstsq(D[support].T, y, rcond=None)[0]
    return values


def groups_of(group_sizes, k):
    """The atoms of each Matryoshka group, and the slots of its codes: k dealt out to the groups one by one."""
    sizes = list(group_sizes)
    budgets = [len(range(number, k, len(sizes))) for number in range(len(sizes))]
    atoms, slots = (np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1]) for counts in (sizes, budgets))
    return list(zip(atoms, slots, strict=True))


def group_wise_pursuit(Y, D, k, group_sizes, encoder="mp", *, nonnegative=False, rtol=0.0, lstsq=False, rounding=EPS):
    """One pursuit after the other, each over the atoms of a group and on what the groups before leave.

    The slots of each group are side by side, its empty ones last. What is relative to ‖y‖ is so in every group.
    """
    left, D = np.array(Y, np.float64), np.asarray(D, np.float64)
    norms = np.linalg.norm(left, axis=1)
    codes = no_codes(len(left), k)
    for atoms, slots in groups_of(group_sizes, k):
        if encoder == "omp":
            found = orthogonal_matching_pursuit(left, D[atoms], len(slots), rtol, rounding, norms)
        else:
            found = matching_pursuit(left, D[atoms], len(slots), None, rtol, nonnegative, rounding, norms)
        values = refit(left, D[atoms], found.indices, found.values) if lstsq else found.values
        left = residual(left, D[atoms], found.indices, values)
        codes.indices[:, slots] = np.where(found.indices >= 0, found.indices + atoms[0], -1)
        codes.values[:, slots] = values
        codes.margins[:] = np.minimum(codes.margins, found.margins)
    return codes


def no_codes(n_samples, k):
    return Codes(np.full((n_samples, k), -1), np.zeros((n_samples, k)), np.full(n_samples, np.inf))


def note_margin(margins, i, norm, score, rounding, rtol, r):
    """Lower the margin of row i, of this norm, to that of a pick, if that is smaller."""
    if norm > 0:
        best, second = np.sort(np.append(score, -np.inf))[[-1, -2]]
        margins[i] = min(margins[i], (best - second) / norm, abs(best / norm - rounding))
        if rtol > 0:
            margins[i] = min(margins[i], abs(np.linalg.norm(r) / norm - rtol))


def dense(indices, values, n_atoms):
    """X, (n, m)."""
    X = np.zeros((len(indices), n_atoms))
    for i, slot in np.argwhere(indices >= 0):
        X[i, indices[i, slot]] = values[i, slot]
    return X


def residual(Y, D, indices, values):
    """R = Y − X D."""
    return np.asarray(Y, np.float64) - dense(indices, values, len(D)) @ np.asarray(D, np.float64)


# --- dictionary update -----------------------------------------------------------------------------------------------


def error_matrix(R, D, indices, values, j):
    """E_j = R_Ω + x_j d_jᵀ over the support Ω of atom j; (users, d)."""
    users, slots = np.nonzero(indices == j)
    return R[users] + np.outer(values[users, slots], D[j])


def singular_atom(E, old):
    """First right singular vector of E, on the side of the old atom."""
    return towards(np.linalg.svd(E, full_matrices=False)[2][0], old)


def krylov_atom(E, old, n_passes, tol=0.0):
    """EᵀE applied to the Ritz vector of EᵀE in span{d, EᵀE d, …, (EᵀE)^(n_passes − 1) d}.

    Or in the first of these spaces whose Ritz pair (θ, v) has ‖EᵀE v − θ v‖ ≤ tol θ.
    """
    A = E.T @ E
    K = [old]
    while len(K) < n_passes and (tol == 0 or ritz_error(A, *ritz_pair(A, K)) > tol):
        v = A @ K[-1]
        K.append(v / (np.linalg.norm(v) or 1.0))
    return towards(A @ ritz_pair(A, K)[1], old)


def ritz_pair(A, K):
    """The largest Ritz value of A in the span of the rows of K, and its Ritz vector."""
    # Orthonormal basis Q, projected matrix QᵀAQ, its eigenvector y of the largest eigenvalue: v = Q y
    U, sizes, _ = np.linalg.svd(np.transpose(K), full_matrices=False)
    Q = U[:, sizes > 1e-13 * sizes[0]]
    values, vectors = np.linalg.eigh(Q.T @ A @ Q)
    return values[-1], Q @ vectors[:, -1]


def ritz_error(A, theta, v):
    """‖A v − θ v‖ / θ; 0 where A is zero."""
    error = np.linalg.norm(A @ v - theta * v)
    return error / theta if error > 0 else 0.0


def power_atom(E, old, n_passes):
    """v ← EᵀE v / ‖EᵀE v‖, so many times."""
    v = old
    for _ in range(n_passes):
        v = towards(E.T @ (E @ v), v)
    return v


def towards(v, old):
    """V with unit norm and ⟨v, old⟩ ≥ 0; the old atom where v is zero."""
    norm = np.linalg.norm(v)
    if norm == 0:
        return old
    return -v / norm if v @ old < 0 else v / norm


def gauss_seidel(R, values, indices, batch, old, new, nonnegative=False):
    """Residual and coefficients with the new atoms of an inner batch: each sample projected on them slot by slot."""
    R, values = R.copy(), values.copy()
    for i in range(len(R)):
        slots = [slot for slot, j in enumerate(indices[i]) if j in batch]
        for slot in slots:
            R[i] += values[i, slot] * old[indices[i, slot]]
        for slot in slots:
            d = new[indices[i, slot]]
            values[i, slot] = max(R[i] @ d, 0.0) if nonnegative else R[i] @ d
            R[i] -= values[i, slot] * d
    return R, values


def update(Y, D, indices, values, batches, new_atom, nonnegative=False):
    """The dictionary, the coefficients and the residual after every inner batch had its update.

    All atoms of one inner batch come from the same D, X and R: d_j ← new_atom(E_j, d_j).
    """
    D, values = np.array(D, np.float64), np.array(values, np.float64)
    R = residual(Y, D, indices, values)
    for batch in batches:
        new = D.copy()
        for j in batch:
            E = error_matrix(R, D, indices, values, j)
            if len(E):
                new[j] = new_atom(E, D[j])
        R, values = gauss_seidel(R, values, indices, set(batch), D, new, nonnegative)
        D = new
    return D, values, R


def move_together(old, new, X, n_directions=8, n_iterations=4):
    """Where all atoms at once would diverge, along eigenvectors of their coupling with λ > 2: that step divided by λ.

    C = N^(−1/2) XᵀX N^(−1/2), N = Σ_i x_ij². Subspace iteration from u ∝ N^(−1/2) Σ_i x_ij and random vectors.
    """
    roots = np.sqrt(np.sum(X**2, axis=0))
    used = roots > 0
    scale = np.divide(1.0, roots, out=np.zeros_like(roots), where=used)
    C = scale[:, np.newaxis] * (X.T @ X) * scale
    U = np.random.default_rng(0).standard_normal((len(old), n_directions)) * used[:, np.newaxis]
    U[:, 0] = X.sum(axis=0) * scale
    U = np.linalg.qr(U)[0]
    for _ in range(n_iterations):
        U = np.linalg.qr(C @ U)[0]
    overshoots, W = np.linalg.eigh(U.T @ C @ U)
    moved = np.array(new, np.float64)
    for overshoot, u in zip(overshoots, (U @ W).T, strict=True):
        if overshoot > 2:
            moved -= np.outer((1 - 1 / overshoot) * u * scale, (u * roots) @ (new - old))
    return unit_rows(moved) if np.any(overshoots > 2) else new


def inner_batches(n_atoms, size, seed, members=None):
    """The order in which an iteration takes the atoms, or some of them; all at once without a size."""
    members = np.arange(n_atoms) if members is None else members
    if size is None:
        return [members]
    order = np.random.default_rng([*seed, 0]).permutation(n_atoms)
    order = order[np.isin(order, members)]
    return [order[i : i + size] for i in range(0, len(order), size)]


def iteration(
    Y,
    D,
    k,
    *,
    encoder="mp",
    nonnegative=False,
    rtol=0.0,
    solver="lanczos",
    n_passes=2,
    tol=0.0,
    size=None,
    seed=(),
    group_sizes=(),
    n_fixed=0,
):
    """The codes of an outer batch, and the new dictionary; the first `n_fixed` atoms stay as they are.

    Where all atoms of the largest group fit an inner batch, the atoms of each group are updated at once, from the
    residual that it leaves under the old atoms of all groups. Else group by group and inner batch by inner batch, from
    what is left of the samples by the groups before as they are by then.
    """
    left, D = np.array(Y, np.float64), np.array(D, np.float64)
    sizes = group_sizes or (len(D),)
    codes = group_wise_pursuit(Y, D, k, sizes, encoder, nonnegative=nonnegative, rtol=rtol)
    solve = {"lanczos": lambda E, d: krylov_atom(E, d, n_passes, tol), "power": lambda E, d: power_atom(E, d, n_passes)}
    at_once = size is None or size >= max(sizes)
    new = D.copy()
    for atoms, slots in groups_of(sizes, k):
        indices, values = codes.indices[:, slots], codes.values[:, slots]
        if at_once:
            updated, _, _ = update(left, D, indices, values, [atoms], solve[solver])
            X = dense(indices, values, len(D))[:, atoms] * (atoms >= n_fixed)
            new[atoms] = move_together(D[atoms], updated[atoms], X)
            left = residual(left, D, indices, values)
        else:
            batches = inner_batches(len(D), size, seed, atoms[atoms >= n_fixed])
            new, _, left = update(left, new, indices, values, batches, solve[solver], nonnegative)
    new[:n_fixed] = D[:n_fixed]
    return codes, new


def near_duplicates(D, usage, max_coherence, n_fixed=0):
    """Atoms that give way to another one, going from the most used to the least used, fixed ones first.

    An atom keeps its place unless it is that near to one that has kept its own; of equally used ones the first comes
    first.
    """
    G, kept, gone = np.abs(gram(D)), [], []
    for j in sorted(range(len(D)), key=lambda j: (j >= n_fixed, -usage[j], j)):
        near = [i for i in kept if G[i, j] > max_coherence]
        (gone if near and j >= n_fixed else kept).append(j)
    return sorted(gone)


def averages(dictionaries, degree=7, least_cosine=0.5):
    """Of each atom over iterations, after each of them: the newest weighs (degree + 1) / (degree + iterations)."""
    mean, counts = np.zeros_like(dictionaries[0]), np.zeros(len(dictionaries[0]))
    means = []
    for D in dictionaries:
        mean = mean.copy()
        for j, d in enumerate(D):
            counts[j] = counts[j] + 1 if mean[j] @ d >= least_cosine else 1
            weight = (degree + 1) / (degree + counts[j])
            mean[j] = (1 - weight) * mean[j] + weight * d
            mean[j] /= np.linalg.norm(mean[j])
        means.append(mean)
    return means


# --- dictionaries and metrics ----------------------------------------------------------------------------------------


def gram(D):
    """G = D Dᵀ."""
    D = np.asarray(D, np.float64)
    return D @ D.T


def coherence(D):
    """max_{i≠j} |⟨d_i, d_j⟩| of each atom."""
    G = np.abs(gram(D))
    np.fill_diagonal(G, 0.0)
    return G.max(axis=1)


def relative_error(Y, R):
    """Mean of ‖r‖ / ‖y‖ over the nonzero samples (paper, eq. 6)."""
    return np.mean([np.linalg.norm(r) / np.linalg.norm(y) for y, r in zip(Y, R, strict=True) if np.any(y)])


def variance_explained(Y, R):
    """1 − Σ‖r‖² / Σ‖y − ȳ‖²."""
    return 1 - np.sum(R**2) / np.sum((Y - Y.mean(axis=0)) ** 2)


def variance_explained_per_feature(Y, R):
    """Mean over features of 1 − Σ r_f² / Σ (y_f − ȳ_f)² (paper, eq. 7)."""
    return np.mean(1 - np.sum(R**2, axis=0) / np.sum((Y - Y.mean(axis=0)) ** 2, axis=0))


# --- what to compare on, and how -------------------------------------------------------------------------------------


def unit_rows(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_atoms(rng, n_atoms, n_features, dtype=np.float64):
    return unit_rows(rng.standard_normal((n_atoms, n_features))).astype(dtype)


def random_codes(rng, n_samples, n_atoms, k):
    """Supports of 0 … k atoms in random order, and normal coefficients."""
    indices = np.full((n_samples, k), -1, np.int32)
    for i in range(n_samples):
        size = rng.integers(0, min(k, n_atoms) + 1)
        indices[i, :size] = rng.permutation(n_atoms)[:size]
    return indices, rng.standard_normal((n_samples, k)) * (indices >= 0)


def sparse_samples(rng, n_samples, D, k, noise=0.1):
    """Samples of k atoms each, and noise."""
    X = np.zeros((n_samples, len(D)))
    for x in X:
        x[rng.choice(len(D), size=k, replace=False)] = rng.standard_normal(k) + rng.choice([-2, 2], size=k)
    return X @ D + noise * rng.standard_normal((n_samples, D.shape[1]))


def pursuit_rounding(dtype, n_features, n_steps):
    """What rounding may do, relative to ‖y‖, to the products of a pursuit: √d terms each in Y Dᵀ and every Gram row."""
    return 4 * np.finfo(dtype).eps * np.sqrt(n_features) * (1 + n_steps)


def assert_codes_agree(indices, values, expected, norms, rounding):
    """The supports are the same, in the same order, wherever the choice was clear; so are the values, to rounding."""
    clear = expected.margins > 2 * rounding
    assert 2 * np.count_nonzero(clear) >= len(clear), "too few samples are clear: compare on other data"
    np.testing.assert_array_equal(indices[clear], expected.indices[clear])
    errors = np.abs(values - expected.values)[clear]
    assert np.all(errors <= rounding * norms[clear, np.newaxis]), errors.max()
