"""Triangular systems, by substitution."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from cdiffeq.linalg._operator import Operator, apply
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report, first_code
from cdiffeq.linalg._structure import dense, outside


class Triangular(Solver):
    """Substitution, forward where A is `lower` triangular, backward where it is upper triangular.

    For any operator; a sparse or matrix-free one is made dense. An entry of A in the other triangle is an
    error, and so is a zero on the diagonal. Cost and memory: n^2.

    >>> A = np.array([[2.0, 0.0], [1.0, 4.0]])
    >>> cd.linalg.solve(A, np.array([2.0, 5.0]), cd.linalg.Triangular(lower=True))
    Array([1., 1.], dtype=float64)
    """

    lower: bool = eqx.field(static=True)

    def init(self, A: Operator) -> Any:
        matrix = dense(A)
        n, name = A.shape[0], f"Triangular(lower={self.lower})"
        elsewhere = outside(name, matrix, *((n, 0) if self.lower else (0, n)))
        zero = jnp.any(jnp.diagonal(matrix) == 0)
        return matrix, first_code((elsewhere, Code.OTHER_STRUCTURE), (zero, Code.SINGULAR))

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        matrix, code = state
        x = jax.lax.linalg.triangular_solve(
            matrix, b, left_side=True, lower=self.lower, transpose_a=adjoint, conjugate_a=adjoint
        )
        return x, direct_report(lambda x: apply(A, x, adjoint), x, b, code)
