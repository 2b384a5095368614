"""How samples are encoded: which pursuit, how many coefficients, and which atoms take their turn."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from numbers import Real
from typing import Literal, NamedTuple

import numpy as np


class Group(NamedTuple):
    """A Matryoshka group (paper, section 4.2)."""

    atoms: slice
    """Its atoms."""
    slots: slice
    """The slots of the codes that hold its coefficients."""


@dataclass(frozen=True)
class Pursuit:
    """How samples are encoded."""

    n_nonzero_coefs: int
    """k, the most atoms a sample may use."""
    encoder: Literal["mp", "omp"] = "mp"
    """Matching pursuit, or orthogonal matching pursuit."""
    nonnegative: bool = False
    """Positive coefficients only."""
    rtol: float = 0.0
    """Ends a sample at ``‖r‖ ≤ rtol ‖y‖``."""
    refit: Literal["none", "lstsq"] = "none"
    """``"lstsq"``: least-squares coefficients on the support found."""
    group_sizes: tuple[int, ...] = ()
    """Atoms of each Matryoshka group, each of which encodes what those before left; empty: all atoms together."""

    def __post_init__(self) -> None:
        """Refuse what is no option, and what does not go together."""
        if self.encoder not in ("mp", "omp"):
            raise ValueError(f'encoder={self.encoder!r} is unknown: choose "mp" or "omp"')
        if self.refit not in ("none", "lstsq"):
            raise ValueError(f'refit={self.refit!r} is unknown: choose "none" or "lstsq"')
        if not isinstance(self.rtol, Real) or not 0 <= self.rtol < 1:
            raise ValueError(f"rtol={self.rtol!r} must be a number from 0 to below 1")
        if not isinstance(self.nonnegative, bool | np.bool_):
            raise TypeError(f"nonnegative={self.nonnegative!r} must be True or False")
        if self.nonnegative and (self.encoder == "omp" or self.refit == "lstsq"):
            raise ValueError(
                'nonnegative=True needs encoder="mp" and refit="none": least-squares coefficients may be negative'
            )

    @property
    def budgets(self) -> tuple[int, ...]:
        """Nonzero coefficients of each group: equal shares of k, the first ones one more where k does not divide."""
        n_groups = max(len(self.group_sizes), 1)
        share, rest = divmod(self.n_nonzero_coefs, n_groups)
        return tuple(share + (number < rest) for number in range(n_groups))

    def groups(self, n_atoms: int) -> list[Group]:
        """Where the atoms of each group are, and the slots of the codes that hold its coefficients.

        Examples
        --------
        >>> [group.slots for group in Pursuit(5, group_sizes=(4, 4, 8)).groups(16)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
        """
        atoms = pairwise(accumulate(self.group_sizes or (n_atoms,), initial=0))
        slots = pairwise(accumulate(self.budgets, initial=0))
        return [Group(slice(*a), slice(*b)) for a, b in zip(atoms, slots, strict=True)]
