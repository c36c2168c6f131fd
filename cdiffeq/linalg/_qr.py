"""A = Q R with Householder reflections, of a dense matrix."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from cdiffeq.linalg._lu import small_pivot
from cdiffeq.linalg._operator import Operator
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report, first_code


class QR(Solver):
    """QR factorization by Householder reflections (LAPACK's geqrf), for any operator: a sparse or
    matrix-free one is made dense.

    Twice the work of `LU`, and no growth of rounding errors whatever the matrix. Says that A is singular
    where an entry on the diagonal of R is below n eps times the largest in its column of A. Cost: 8/3 n^3
    operations, four times that for complex numbers, and 3 n^2 for each solve. Memory: 2 n^2 numbers.

    >>> cd.linalg.solve(np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([2.0, 3.0]), cd.linalg.QR()) + 0.0
    Array([3., 1.], dtype=float64)
    """

    def init(self, A: Operator) -> Any:
        matrix = A.to_dense()
        Q, R = jnp.linalg.qr(matrix)
        return Q, R, first_code((small_pivot(jnp.diagonal(R), matrix), Code.SINGULAR))

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        Q, R, code = state
        mul = lambda A, b: jnp.matmul(A, b, precision=jax.lax.Precision.HIGHEST)
        solve = lambda b, **options: jax.lax.linalg.triangular_solve(
            R, b, left_side=True, **options
        )
        of_adjoint = lambda b: mul(Q, solve(b, transpose_a=True, conjugate_a=True))
        x = of_adjoint(b) if adjoint else solve(mul(jnp.conj(Q.T), b))
        return x, direct_report(A, x, b, adjoint, code)
