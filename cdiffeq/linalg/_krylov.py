r"""What iterative solvers share: cycles that start anew from the true residual, until it is small enough.

    r = b - A x,        x <- x + cycle(r),        until  norm(r) <= max(rtol norm(b), atol).

A cycle solves ``A d = r`` by its own recursion, which may drift from the truth by rounding. So whatever the
recursion claims, it is the residual computed from A, x and b that ends a solve and that is reported.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from cdiffeq._errors import check_tolerance
from cdiffeq.linalg._arnoldi import two_norm as norm
from cdiffeq.linalg._operator import Operator
from cdiffeq.linalg._preconditioner import Preconditioner, as_preconditioner
from cdiffeq.linalg._solver import Code, Report, Solver

Map = Callable[[Inexact[Array, " n"]], Inexact[Array, " n"]]


class Cycle(NamedTuple):
    """What a cycle found: d with A d close to r, the steps it took, and how it ended.

    `code` is `Code.SUCCESS`; `Code.BREAKDOWN`, if the recursion can't go on and has to start anew; or
    `Code.NOT_HERMITIAN`, if the method isn't for this A, which ends the solve.
    """

    d: Inexact[Array, " n"]
    steps: Int[Array, ""]
    code: Int[Array, ""]


class KrylovSolver(Solver):
    """An iterative solver. A method is a `cycle`, and says nothing of tolerances, starts and failures.

    - `rtol`, `atol`: what is reached is ``norm(b - A x) <= max(rtol norm(b), atol)``, for each column of b.
      The residual is the true one, computed from x at the end. The solves of derivatives, with other right
      sides, reach the same.
    - `max_steps`: of all cycles together; 10 n by default.
    - `preconditioner`: `Jacobi()`, `ILU()`, a function r -> M^-1 r of one vector (the leaves of a pytree in
      one vector), linear, or a pair of that and its adjoint. Solves with A^H take ``M^-H``.
    """

    rtol: float = eqx.field(default=1e-5, static=True)
    atol: float = eqx.field(default=0.0, static=True)
    max_steps: int | None = eqx.field(default=None, static=True)
    preconditioner: Preconditioner | None = eqx.field(default=None, converter=as_preconditioner)

    @abstractmethod
    def cycle(
        self, A: Map, M: Map, r: Inexact[Array, " n"], tol: Float[Array, ""], steps: Int[Array, ""]
    ) -> Cycle:
        """d with norm(r - A d) <= tol, from d = 0, in at most so many steps, preconditioned by r -> M(r)."""

    def init(self, A: Operator) -> Any:
        return None if self.preconditioner is None else self.preconditioner.init(A)

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        check_tolerance("rtol", self.rtol, b.dtype)
        M = self.preconditioner
        precondition = (lambda r: r) if M is None else lambda r: M.apply(state, r, adjoint)
        mv = (A.adjoint() if adjoint else A).mv
        max_steps = 10 * b.shape[0] if self.max_steps is None else self.max_steps

        def single(b, guess):
            b, guess, scale = scaled(b, guess)
            tol = jnp.maximum(self.rtol * norm(b), self.atol / scale)
            cycle = lambda r, steps: self.cycle(mv, precondition, r, tol, steps)
            x, report = iterate(cycle, mv, b, guess, tol, max_steps)
            return scale * x, report

        return over_columns(single, b, guess)


def scaled(b: Inexact[Array, " m"], guess: Inexact[Array, " n"] | None) -> tuple[Any, Any, Any]:
    """b and a guess divided by the largest entry of b, so that no square of a small one is zero, and that."""
    largest = jnp.max(jnp.abs(b), initial=0)
    scale = jnp.where(largest == 0, 1, largest)
    return b / scale, None if guess is None else guess / scale, scale


def over_columns(
    single: Callable[..., tuple[Array, Report]],
    b: Inexact[Array, "m k"],
    guess: Inexact[Array, "n k"] | None,
) -> tuple[Inexact[Array, "n k"], Report]:
    """`single(b, guess)` for each column; the report is that of the worst."""
    if b.shape[1] == 1:  # without vmap, whose loops choose between the old and the new in each step
        x, report = single(b[:, 0], None if guess is None else guess[:, 0])
        return x[:, None], report
    x, report = jax.vmap(single, (1, None if guess is None else 1), (1, 0))(b, guess)
    return x, Report(*(jnp.max(of_each, initial=0) for of_each in report))


class _State(NamedTuple):
    x: Inexact[Array, " n"]
    r: Inexact[Array, " n"]
    steps: Int[Array, ""]
    code: Int[Array, ""]


def iterate(
    cycle: Callable[[Array, Array], Cycle],
    A: Map,
    b: Inexact[Array, " n"],
    guess: Inexact[Array, " n"] | None,
    tol: Float[Array, ""],
    max_steps: int,
) -> tuple[Inexact[Array, " n"], Report]:
    """x with norm(b - A x) <= tol, and how it went."""
    if guess is None:
        start = _State(jnp.zeros_like(b), b, jnp.asarray(0), jnp.asarray(Code.SUCCESS))
    else:
        x = jnp.where(norm(b) == 0, 0, guess)
        start = _State(x, b - A(x), jnp.asarray(0), jnp.asarray(Code.SUCCESS))

    def going(s):
        return (norm(s.r) > tol) & (s.steps < max_steps) & (s.code == Code.SUCCESS)

    def step(s):
        d, steps, code = cycle(s.r, max_steps - s.steps)
        x = s.x + d
        r = b - A(x)
        closer = norm(r) < norm(s.r)
        stuck = jnp.where(code == Code.SUCCESS, Code.STAGNATED, code)
        code = jnp.where(closer & (code != Code.NOT_HERMITIAN), Code.SUCCESS, stuck)
        return _State(x, r, s.steps + steps, code)

    end = jax.lax.while_loop(going, step, start)
    size = norm(end.r)
    code = jnp.where(end.code == Code.SUCCESS, Code.NOT_CONVERGED, end.code)
    code = jnp.where(
        size <= tol, Code.SUCCESS, jnp.where(jnp.isfinite(size), code, Code.NOT_FINITE)
    )
    relative = size / jnp.where(norm(b) == 0, 1, norm(b))
    return end.x, Report(*(y.astype(relative.dtype) for y in (code, relative, end.steps)))


def dot(x: Inexact[Array, " n"], y: Inexact[Array, " n"]) -> Inexact[Array, ""]:
    """x^H y."""
    return jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST)


def real_product(
    x: Inexact[Array, " n"], y: Inexact[Array, " n"]
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """x^H y, where it has to be real, and whether it is, within rounding."""
    xy = dot(x, y)
    if not jnp.iscomplexobj(xy):
        return xy, jnp.asarray(True)
    rounding = jnp.sqrt(jnp.finfo(xy.dtype).eps) * norm(x) * norm(y)
    return xy.real, jnp.abs(xy.imag) <= rounding
