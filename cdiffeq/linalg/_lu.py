"""LU with partial pivoting, of a dense matrix."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from cdiffeq.linalg._condition import lost_pivot
from cdiffeq.linalg._operator import Operator
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report, first_code
from cdiffeq.linalg._square import matmul
from cdiffeq.linalg._structure import dense


class LU(Solver):
    """LU factorization with partial pivoting (LAPACK's getrf), for any operator: a sparse or
    matrix-free one is made dense.

    Says that A is singular where a pivot is as small as the rounding errors of the terms that it is a sum of
    (100 eps of them). Cost: 2/3 n^3 operations, four times that for complex numbers, and 2 n^2 for each
    solve. Memory: n^2 numbers.

    >>> cd.linalg.solve(np.array([[0.0, 2.0], [1.0, 0.0]]), np.array([2.0, 3.0]), cd.linalg.LU())
    Array([3., 1.], dtype=float64)
    """

    def init(self, A: Operator) -> Any:
        lu, _, order = jax.lax.linalg.lu(dense(A))
        return lu, order, first_code((lost_pivot(lu), Code.SINGULAR))

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        lu, order, code = state
        lower = dict(lower=True, unit_diagonal=True)
        solve = functools.partial(jax.lax.linalg.triangular_solve, lu, left_side=True)
        if adjoint:
            solve = functools.partial(solve, transpose_a=True, conjugate_a=True)
            y = solve(solve(b), **lower)
            x = jnp.zeros_like(y).at[order].set(y, unique_indices=True)
        else:
            x = solve(solve(b[order], **lower))

        def product(x):  # by the factors: A itself would be kept, and be copied, for this alone
            L = jnp.tril(lu, -1) + jnp.eye(len(lu), dtype=lu.dtype)
            U = jnp.triu(lu)
            if adjoint:
                return matmul(jnp.conj(U.T), matmul(jnp.conj(L.T), x[order]))
            y = matmul(L, matmul(U, x))
            return jnp.zeros_like(y).at[order].set(y, unique_indices=True)

        return x, direct_report(product, x, b, code)
