"""What an algorithm for ``A x = b`` has to be; each is a file of its own, and none writes a derivative."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from cdiffeq.linalg._operator import Operator, apply


class Code:
    """How a solve ended."""

    SUCCESS = 0
    SINGULAR = 1
    NOT_CONVERGED = 2
    BREAKDOWN = 3
    NOT_FINITE = 4


REASONS = {
    Code.SINGULAR: "the matrix is singular to working precision",
    Code.NOT_CONVERGED: "the iteration reached its limit of steps before its tolerance",
    Code.BREAKDOWN: "the iteration broke down",
    Code.NOT_FINITE: "A, b or the solution is not finite",
}


class Report(NamedTuple):
    """How a solve ended: `code` (see `Code`), the relative residual ``norm(b - A x) / norm(b)`` of the worst
    column where it is known (a direct solver computes it only if it failed), and the steps of an iteration.

    All are floating, so that they may pass through a rule; their derivatives are zero.
    """

    code: Float[Array, ""]
    residual: Float[Array, ""]
    iterations: Float[Array, ""]


class Solver(eqx.Module):
    """An algorithm for ``A x = b``.

    - `init(A)` gives what all solves with A share: its factors, or a preconditioner. It is called once, and
      never differentiated.
    - `compute(A, state, b, guess, adjoint)` solves A x = b, or A^H x = b, for b of shape (n, k).
    """

    @abstractmethod
    def init(self, A: Operator) -> PyTree[Any]:
        """What all solves with A share."""

    @abstractmethod
    def compute(
        self,
        A: Operator,
        state: PyTree[Any],
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        """The solution of A x = b, or of A^H x = b, and how it went."""


def direct_report(
    A: Operator, x: Array, b: Array, adjoint: bool, singular: Bool[Array, ""]
) -> Report:
    """The report of a direct solver, which knows from its factors whether A is `singular`."""
    finite = jnp.all(jnp.isfinite(x))
    code = jnp.where(singular, Code.SINGULAR, jnp.where(finite, Code.SUCCESS, Code.NOT_FINITE))
    # One failure in a whole batch computes it for all, so that no time goes there otherwise.
    failed = eqxi.unvmap_any(code != Code.SUCCESS)
    real = jnp.finfo(x.dtype).dtype
    known = lambda: residual_of(A, x, b, adjoint).astype(real)
    residual = jax.lax.cond(failed, known, lambda: jnp.zeros((), real))
    return Report(code.astype(real), residual, jnp.zeros((), real))


def residual_of(A: Operator, x: Array, b: Array, adjoint: bool) -> Float[Array, ""]:
    """norm(b - A x) / norm(b), of the worst column."""
    norm = lambda r: jnp.sqrt(jnp.sum(jnp.abs(r) ** 2, axis=0))
    left, given = norm(b - apply(A, x, adjoint)), norm(b)
    return jnp.max(left / jnp.where(given == 0, 1, given), initial=0)
