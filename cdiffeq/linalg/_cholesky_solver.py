"""A = L L^H, of a dense Hermitian positive definite matrix."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from cdiffeq._errors import is_traced
from cdiffeq.linalg._condition import PIVOT_IN_EPS
from cdiffeq.linalg._operator import Operator, apply
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report, first_code
from cdiffeq.linalg._structure import dense


class Cholesky(Solver):
    """Cholesky factorization (LAPACK's potrf) of a Hermitian positive definite A; any operator that isn't
    dense is made so.

    An A that isn't Hermitian to rounding (10 n eps times its largest entry) is an error, and so is one that
    isn't positive definite: where a squared pivot is below 100 eps times the diagonal entry of A. The
    gradient in A is that of the inverse of any matrix, entry by entry, not of Hermitian ones alone; it is
    what `jax.scipy.linalg.solve(assume_a="pos")` doesn't return. Cost: 1/3 n^3 operations, four times that
    for complex numbers, and 2 n^2 for each solve. Memory: n^2 numbers.

    >>> A = np.array([[2.0, 1j], [-1j, 1.0]])
    >>> cd.linalg.solve(A, np.array([1.0, 0.0]), cd.linalg.Cholesky())
    Array([1.+0.j, 0.+1.j], dtype=complex128)
    """

    def init(self, A: Operator) -> Any:
        matrix = dense(A)
        n, eps = A.shape[0], float(jnp.finfo(A.dtype).eps)
        known = not is_traced(matrix)
        xp: Any = np if known else jnp
        given = xp.asarray(matrix)
        largest = xp.max(xp.abs(given), initial=0)
        skew = xp.max(xp.abs(given - xp.conj(given.T)), initial=0)
        hermitian = skew <= 10 * n * eps * largest
        if known and not hermitian and np.isfinite(largest):
            raise ValueError(
                f"solve: Cholesky() is for Hermitian matrices; A differs from A^H by {skew:.1e}."
            )
        L = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
        pivots = jnp.diagonal(L).real ** 2
        definite = jnp.all(pivots > PIVOT_IN_EPS * eps * jnp.diagonal(matrix).real)
        return L, first_code(
            (~jnp.isfinite(largest), Code.NOT_FINITE),
            (~jnp.asarray(hermitian), Code.NOT_HERMITIAN),
            (~definite, Code.NOT_DEFINITE),
        )

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        L, code = state
        solve = lambda b, **options: jax.lax.linalg.triangular_solve(
            L, b, left_side=True, lower=True, **options
        )
        x = solve(solve(b), transpose_a=True, conjugate_a=True)
        return x, direct_report(lambda x: apply(A, x, adjoint), x, b, code)
