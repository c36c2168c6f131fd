"""A = Q R with Householder reflections, of a dense matrix."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from cdiffeq.linalg._condition import PIVOT_IN_EPS, size
from cdiffeq.linalg._operator import Operator, apply
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report, first_code
from cdiffeq.linalg._structure import dense


class QR(Solver):
    """QR factorization by Householder reflections (LAPACK's geqrf), for any operator: a sparse or
    matrix-free one is made dense.

    Twice the work of `LU`, and no growth of rounding errors whatever the matrix. Says that A is singular
    where an entry on the diagonal of R is below 100 eps of its column. Cost: 8/3 n^3 operations, four times
    that for complex numbers, and 3 n^2 for each solve. Memory: 2 n^2 numbers.

    >>> cd.linalg.solve(np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([2.0, 3.0]), cd.linalg.QR()) + 0.0
    Array([3., 1.], dtype=float64)
    """

    def init(self, A: Operator) -> Any:
        Q, R = jnp.linalg.qr(dense(A))
        sizes = size(R)
        rounding = PIVOT_IN_EPS * jnp.finfo(R.dtype).eps * jnp.sum(sizes, axis=0)
        return Q, R, first_code((jnp.any(jnp.diagonal(sizes) <= rounding), Code.SINGULAR))

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
        return x, direct_report(lambda x: apply(A, x, adjoint), x, b, code)
