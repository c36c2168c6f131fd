"""Tridiagonal systems, by elimination with row exchanges."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from cdiffeq.linalg._condition import ill_conditioned
from cdiffeq.linalg._operator import Operator, apply
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report, first_code
from cdiffeq.linalg._structure import band


class Tridiagonal(Solver):
    """Gaussian elimination with partial pivoting (LAPACK's gtsv, cuSPARSE's gtsv2).

    Reads the three diagonals of any operator: of a sparse one (a `TridiagonalLinearOperator` of lineax is
    one) from its entries, of another from a dense matrix. An entry of A elsewhere is an error. Says that A is
    singular where an estimate of its condition number, with rows and columns scaled, is 1 / eps or more.
    Cost: about 10 n operations for each column of b, and twice as much once for that; memory: 5 n numbers.

    >>> A = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> cd.linalg.solve(A, np.array([2.0, 2.0, 2.0]), cd.linalg.Tridiagonal())
    Array([1., 1., 1.], dtype=float64)
    """

    def init(self, A: Operator) -> Any:
        ab, elsewhere = band("Tridiagonal()", A, 1, 1)
        # LAPACK's band has A[i, j] in column j; a row of gtsv's has A[i, i - 1], A[i, i], A[i, i + 1].
        diagonals = jnp.roll(ab[2], 1), ab[1], jnp.roll(ab[0], -1)
        n = A.shape[0]
        column = np.tile(np.arange(n), 3)
        row = np.clip(
            column + np.repeat([-1, 0, 1], n), 0, max(n - 1, 0)
        )  # what is clipped is zero
        solve = lambda b, adjoint: _solve(
            _adjoint(diagonals) if adjoint else diagonals, b[:, None]
        )[:, 0]
        eps = float(jnp.finfo(A.dtype).eps)
        singular = ill_conditioned(solve, jnp.abs(ab).reshape(-1), row, column, n, eps)
        singular = singular & jnp.all(jnp.isfinite(ab))
        return diagonals, first_code((elsewhere, Code.OTHER_STRUCTURE), (singular, Code.SINGULAR))

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        diagonals, code = state
        x = _solve(_adjoint(diagonals) if adjoint else diagonals, b)
        return x, direct_report(lambda x: apply(A, x, adjoint), x, b, code)


def _adjoint(diagonals: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    lower, diagonal, upper = map(jnp.conj, diagonals)
    return jnp.roll(upper, 1), diagonal, jnp.roll(lower, -1)


def _solve(diagonals: tuple[Array, Array, Array], b: Array) -> Array:
    b = b.astype(diagonals[1].dtype)
    if b.size == 0:
        return b
    if b.shape[0] == 1:
        return b / diagonals[1][:, None]
    return jax.lax.linalg.tridiagonal_solve(*diagonals, b)
