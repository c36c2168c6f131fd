"""Diagonal systems."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from cdiffeq.linalg._operator import Operator, apply
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report, first_code
from cdiffeq.linalg._structure import band


class Diagonal(Solver):
    """Division by the diagonal. Cost and memory: n.

    An entry of A elsewhere is an error, and so is a zero on the diagonal. A dense A is read whole for that,
    of a sparse one (a `DiagonalLinearOperator` of lineax is one) the entries.

    >>> cd.linalg.solve(np.diag([2.0, 4.0]), np.array([1.0, 1.0]), cd.linalg.Diagonal())
    Array([0.5 , 0.25], dtype=float64)
    """

    def init(self, A: Operator) -> Any:
        (diagonal,), elsewhere = band("Diagonal()", A, 0, 0)
        failures = (elsewhere, Code.OTHER_STRUCTURE), (jnp.any(diagonal == 0), Code.SINGULAR)
        return diagonal, first_code(*failures)

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        diagonal, code = state
        x = b / (jnp.conj(diagonal) if adjoint else diagonal)[:, None]
        return x, direct_report(lambda x: apply(A, x, adjoint), x, b, code)
