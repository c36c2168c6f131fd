"""LU with partial pivoting of a banded matrix, by LAPACK on the host."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import numpy as np
import scipy.linalg
from jaxtyping import Array, Inexact

from cdiffeq.linalg._condition import ill_conditioned
from cdiffeq.linalg._host import host_call
from cdiffeq.linalg._operator import Operator, apply
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report, first_code
from cdiffeq.linalg._structure import band


class Banded(Solver):
    """LU factorization with partial pivoting (LAPACK's gbtrf) of a matrix with `lower` diagonals below, and
    `upper` above, the main one.

    Reads the diagonals of any operator: of a sparse one from its entries, of another from a dense matrix. An
    entry of A elsewhere is an error. Says that A is singular where an estimate of its condition number, with
    rows and columns scaled, is 1 / eps or more. It runs on the host: correct on a GPU, and slow there.
    Cost: 2 n lower (lower + upper) operations, and 2 n (2 lower + upper) for each column of b; memory:
    n (2 lower + upper + 1) numbers.

    >>> A = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> cd.linalg.solve(A, np.array([2.0, 2.0, 2.0]), cd.linalg.Banded(lower=1, upper=1))
    Array([1., 1., 1.], dtype=float64)
    """

    lower: int = eqx.field(static=True)
    upper: int = eqx.field(static=True)

    def __check_init__(self):
        if self.lower < 0 or self.upper < 0:
            got = f"lower={self.lower}, upper={self.upper}"
            raise ValueError(f"Banded: numbers of diagonals can't be negative, got {got}.")

    def init(self, A: Operator) -> Any:
        n = A.shape[0]
        lower, upper = self._widths(n)
        ab, elsewhere = band(f"Banded({lower}, {upper})", A, lower, upper)
        like = (
            jax.ShapeDtypeStruct((2 * lower + upper + 1, n), A.dtype),
            jax.ShapeDtypeStruct((n,), np.int32),
            jax.ShapeDtypeStruct((), bool),
        )
        factor = functools.partial(_factor, lower, upper)
        lu, pivots, singular = host_call(factor, like, ab)
        code = first_code((elsewhere, Code.OTHER_STRUCTURE), (singular, Code.SINGULAR))
        return lu, pivots, code

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        lu, pivots, code = state
        solve = functools.partial(_solve, *self._widths(A.shape[0]), adjoint)
        (x,) = host_call(solve, [jax.ShapeDtypeStruct(b.shape, b.dtype)], lu, pivots, b)
        return x, direct_report(lambda x: apply(A, x, adjoint), x, b, code)

    def _widths(self, n: int) -> tuple[int, int]:
        """The diagonals that a matrix of size n has of these."""
        return min(self.lower, max(n - 1, 0)), min(self.upper, max(n - 1, 0))


def _factor(lower: int, upper: int, ab: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """gbtrf's factors and its exchanges, and whether the matrix is singular."""
    n = ab.shape[1]
    room = np.zeros((2 * lower + upper + 1, n), ab.dtype, order="F")
    room[lower:] = ab
    if n == 0 or not np.all(np.isfinite(ab)):
        return np.full_like(room, np.nan), np.zeros(n, np.int32), False
    (gbtrf,) = scipy.linalg.get_lapack_funcs(("gbtrf",), (ab,))
    lu, pivots, info = gbtrf(room, lower, upper, overwrite_ab=True)
    if info > 0:  # a pivot is zero
        return lu, pivots, True
    solve = lambda b, adjoint: _solve(lower, upper, adjoint, lu, pivots, b[:, None])[0][:, 0]
    column = np.tile(np.arange(n), len(ab))
    row = np.clip(column + np.repeat(np.arange(-upper, lower + 1), n), 0, n - 1)  # there A is zero
    singular = ill_conditioned(solve, np.abs(ab).ravel(), row, column, n, np.finfo(ab.dtype).eps)
    return lu, pivots, bool(singular)


def _solve(
    lower: int, upper: int, adjoint: bool, lu: np.ndarray, pivots: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray]:
    if b.size == 0:
        return (b,)
    (gbtrs,) = scipy.linalg.get_lapack_funcs(("gbtrs",), (lu,))
    x, _ = gbtrs(lu, lower, upper, b, pivots, trans=2 if adjoint else 0)
    return (x,)
