"""Tridiagonal systems, by elimination with row exchanges."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from cdiffeq.linalg._operator import Operator
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report, first_code
from cdiffeq.linalg._structure import band, ill_conditioned, probe


class Tridiagonal(Solver):
    """Gaussian elimination with partial pivoting (LAPACK's gtsv, cuSPARSE's gtsv2).

    Reads the three diagonals of any operator: of a sparse one (a `TridiagonalLinearOperator` of lineax is
    one) from its entries, of another from a dense matrix. An entry of A elsewhere is an error. Says that A is
    singular where the solution with a random right side shows a condition number of 1 / (8 eps) or more.
    Cost: about 10 n operations for each column of b, and as much once for that test; memory: 5 n numbers.

    >>> A = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> cd.linalg.solve(A, np.array([2.0, 2.0, 2.0]), cd.linalg.Tridiagonal())
    Array([1., 1., 1.], dtype=float64)
    """

    def init(self, A: Operator) -> Any:
        ab, elsewhere = band("Tridiagonal()", A, 1, 1)
        # LAPACK's band has A[i, j] in column j; a row of gtsv's has A[i, i - 1], A[i, i], A[i, i + 1].
        diagonals = jnp.roll(ab[2], 1), ab[1], jnp.roll(ab[0], -1)
        b = probe(A.shape[0], A.dtype)
        x = _solve(diagonals, b[:, None])
        norm = jnp.max(sum(map(jnp.abs, diagonals)), initial=0)
        singular = ill_conditioned(norm, x, b, float(jnp.finfo(A.dtype).eps)) & jnp.isfinite(norm)
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
        if adjoint:
            lower, diagonal, upper = map(jnp.conj, diagonals)
            diagonals = jnp.roll(upper, 1), diagonal, jnp.roll(lower, -1)
        x = _solve(diagonals, b)
        return x, direct_report(A, x, b, adjoint, code)


def _solve(diagonals: tuple[Array, Array, Array], b: Array) -> Array:
    if b.size == 0:
        return b
    if b.shape[0] == 1:
        return b / diagonals[1][:, None]
    return jax.lax.linalg.tridiagonal_solve(*diagonals, b)
