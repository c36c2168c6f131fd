"""LU with partial pivoting, of a dense matrix."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Bool, Inexact

from cdiffeq.linalg._operator import Operator
from cdiffeq.linalg._solver import Report, Solver, direct_report


class LU(Solver):
    """LU factorization with partial pivoting (LAPACK's getrf), for any operator: a sparse or
    matrix-free one is made dense.

    Says that A is singular where a pivot is below n eps times the largest entry of its column of U. Cost:
    2/3 n^3 operations, four times that for complex numbers, and 2 n^2 for each solve. Memory: n^2 numbers.

    >>> cd.linalg.solve(np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([2.0, 3.0]), cd.linalg.LU())
    Array([3., 1.], dtype=float64)
    """

    def init(self, A: Operator) -> Any:
        lu, pivots = jsl.lu_factor(A.to_dense())
        return lu, pivots, small_pivot(lu)

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        lu, pivots, singular = state
        x = jsl.lu_solve((lu, pivots), b, trans=2 if adjoint else 0)
        return x, direct_report(A, x, b, adjoint, singular)


def small_pivot(U: Inexact[Array, "n n"]) -> Bool[Array, ""]:
    """Whether a pivot of the triangular factor U is nothing but rounding, in its column."""
    n = U.shape[0]
    if n == 0:
        return jnp.zeros((), bool)
    largest = jnp.max(jnp.abs(jnp.triu(U)), axis=0)
    bound = n * jnp.finfo(U.dtype).eps * largest
    return jnp.any(jnp.abs(jnp.diagonal(U)) <= bound) & jnp.all(jnp.isfinite(largest))
