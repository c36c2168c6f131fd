"""What an algorithm for ``A x = b`` has to be; each is a file of its own, and none writes a derivative."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int, PyTree

from cdiffeq._errors import poison, raise_if
from cdiffeq.linalg._operator import Operator, from_real_parts, real_parts


class Code:
    """How a solve ended."""

    SUCCESS = 0
    SINGULAR = 1
    NOT_CONVERGED = 2
    BREAKDOWN = 3
    NOT_FINITE = 4
    STAGNATED = 5
    NOT_HERMITIAN = 6
    NOT_DEFINITE = 7
    OTHER_STRUCTURE = 8


REASONS = {
    Code.SINGULAR: "the matrix is singular to working precision",
    Code.NOT_CONVERGED: "the iteration reached its limit of steps before its tolerance",
    Code.BREAKDOWN: "the iteration broke down",
    Code.NOT_FINITE: "A, b or the solution is not finite",
    Code.STAGNATED: "the iteration came no closer before it reached its tolerance",
    Code.NOT_HERMITIAN: (
        "A isn't Hermitian (for CG: positive definite), or the preconditioner isn't Hermitian and "
        "positive definite"
    ),
    Code.NOT_DEFINITE: "A isn't positive definite to working precision",
    Code.OTHER_STRUCTURE: "A has entries outside of the structure that the solver is for",
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


def compute(
    solver: Solver,
    A: Operator,
    state: PyTree[Any],
    b: Inexact[Array, "m k"],
    guess: Inexact[Array, "n k"] | None,
    adjoint: bool,
) -> tuple[Inexact[Array, "n k"], Report]:
    """`solver.compute`, where b may be complex and A real."""
    if not jnp.iscomplexobj(b) or jnp.issubdtype(A.dtype, jnp.complexfloating):
        return solver.compute(A, state, b, guess, adjoint)
    # A real A has real factors: twice the columns.
    guess = None if guess is None else real_parts(guess, 1)
    x, report = solver.compute(A, state, real_parts(b, 1), guess, adjoint)
    return from_real_parts(x, 1), report


def checked(
    x: Inexact[Array, "n k"], report: Report, throw: bool, error: Callable[..., Exception]
) -> Inexact[Array, "n k"]:
    """x, unless the solve failed: then `error(*report)` is raised, or x is NaN where `throw` is false."""
    failed = report.code != Code.SUCCESS
    if throw:
        return raise_if(x, failed, error, *report)
    return poison(x, jax.lax.stop_gradient(failed))


def direct_report(
    product: Callable[[Array], Array], x: Array, b: Array, code: Int[Array, ""]
) -> Report:
    """The report of a direct solver of ``product(x) = b``, which has the `code` from factoring A."""
    code = jnp.where((code == Code.SUCCESS) & ~jnp.all(jnp.isfinite(x)), Code.NOT_FINITE, code)
    # One failure in a whole batch computes it for all, so that no time goes there otherwise.
    failed = eqxi.unvmap_any(code != Code.SUCCESS)
    real = jnp.finfo(x.dtype).dtype
    known = lambda: residual_of(product, x, b).astype(real)
    residual = jax.lax.cond(failed, known, lambda: jnp.zeros((), real))
    return Report(code.astype(real), residual, jnp.zeros((), real))


def first_code(*failures: tuple[Bool[Array, ""], int]) -> Int[Array, ""]:
    """The code of the first failure, given as pairs of (whether, code); success if there is none."""
    code = jnp.asarray(Code.SUCCESS)
    for failed, of_failure in reversed(failures):
        code = jnp.where(failed, of_failure, code)
    return code


def residual_of(product: Callable[[Array], Array], x: Array, b: Array) -> Float[Array, ""]:
    """norm(b - product(x)) / norm(b), of the worst column."""
    norm = lambda r: jnp.sqrt(jnp.sum(jnp.abs(r) ** 2, axis=0))
    left, given = norm(b - product(x)), norm(b)
    return jnp.max(left / jnp.where(given == 0, 1, given), initial=0)
