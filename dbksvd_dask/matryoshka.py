"""Matryoshka groups (paper, section 4.2): atoms in groups of growing size, each fitted to what those before leave.

The groups themselves are encoded and updated in `kernels` and `iteration`; here is how many atoms each has.
"""

from collections.abc import Sequence

import numpy as np

from dbksvd_dask.kernels.pursuit import Pursuit

FIRST_GROUP = 256
"""Atoms of the first group, as in the paper."""


def default_group_sizes(n_atoms: int) -> tuple[int, ...]:
    """Groups that double the number of atoms each time: 256, 256, 512, 1024, …; the last one takes what is left.

    Parameters
    ----------
    n_atoms : int
        m. Where it is no power of two, the last group has between 0.4 and 1.9 times as many atoms as all before; below
        512 atoms there are two groups.

    Returns
    -------
    tuple of int
        They add up to m.

    Examples
    --------
    >>> default_group_sizes(4096), default_group_sizes(1300), default_group_sizes(100)
    ((256, 256, 512, 1024, 2048), (256, 256, 788), (50, 50))
    """
    if n_atoms < 2 * FIRST_GROUP:
        return (n_atoms // 2, n_atoms - n_atoms // 2) if n_atoms > 1 else (1,)
    n_doublings = round(np.log2(n_atoms / FIRST_GROUP))
    bounds = [0, *(FIRST_GROUP * 2**i for i in range(n_doublings)), n_atoms]
    return tuple(int(size) for size in np.diff(bounds))


def group_sizes(matryoshka: bool | Sequence[int], n_atoms: int, n_nonzero_coefs: int) -> tuple[int, ...]:
    """The sizes of the groups that the parameter asks for, empty for none; checked.

    Parameters
    ----------
    matryoshka : bool or sequence of int
        Whether there are groups, or their sizes.
    n_atoms, n_nonzero_coefs : int

    Raises
    ------
    TypeError, ValueError
        Those of `check_group_sizes` and `check_shares`.

    Examples
    --------
    >>> group_sizes(True, n_atoms=512, n_nonzero_coefs=20), group_sizes(False, 512, 20)
    ((256, 256), ())
    """
    if not isinstance(matryoshka, bool | np.bool_):
        sizes = check_group_sizes(matryoshka, n_atoms)
    else:
        sizes = default_group_sizes(n_atoms) if matryoshka else ()
    if sizes:
        check_shares(sizes, n_nonzero_coefs)
    return sizes


def check_group_sizes(sizes: Sequence[int], n_atoms: int) -> tuple[int, ...]:
    """The sizes as a tuple of int.

    Raises
    ------
    TypeError
        If they are not whole numbers.
    ValueError
        If one of them is no size, or they do not add up to the number of atoms.

    Examples
    --------
    >>> check_group_sizes([4, 4, 9], n_atoms=16)
    Traceback (most recent call last):
    ...
    ValueError: the Matryoshka groups [4, 4, 9] add up to 17, but there are 16 atoms
    """
    array = np.asarray(sizes)
    listed = array.tolist()
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise TypeError(f"the Matryoshka groups {sizes!r} must be a list of whole numbers: how many atoms each has")
    if array.min() < 1:
        raise ValueError(f"the Matryoshka groups {listed} hold one of {array.min()}: each has at least one atom")
    if array.sum() != n_atoms:
        raise ValueError(f"the Matryoshka groups {listed} add up to {array.sum()}, but there are {n_atoms} atoms")
    return tuple(listed)


def check_shares(sizes: Sequence[int], n_nonzero_coefs: int) -> None:
    """Refuse a k that leaves a group without a coefficient, or gives it more of them than it has atoms.

    Raises
    ------
    ValueError

    Examples
    --------
    >>> check_shares([4, 4, 8], n_nonzero_coefs=2)
    Traceback (most recent call last):
    ...
    ValueError: n_nonzero_coefs=2 is fewer than the 3 Matryoshka groups, and each needs one: ask for more of ...
    """
    if n_nonzero_coefs < len(sizes):
        raise ValueError(
            f"n_nonzero_coefs={n_nonzero_coefs} is fewer than the {len(sizes)} Matryoshka groups, and each needs one: "
            "ask for more of them, or for fewer groups"
        )
    for size, budget in zip(sizes, Pursuit(n_nonzero_coefs, group_sizes=tuple(sizes)).budgets, strict=True):
        if size < budget:
            raise ValueError(
                f"a Matryoshka group of {size} atoms has {budget} of n_nonzero_coefs={n_nonzero_coefs}, "
                "more than it has atoms: make it larger"
            )
