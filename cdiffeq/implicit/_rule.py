r"""The rule of implicit functions: z(p) with F(z, p) = 0, all real and flat, J = dF/dz.

    primal     whatever algorithm finds z
    tangent    dz = -J^-1 (dF/dp) dp
    adjoint    w = J^-T g,      g_p = -(dF/dp)* w

In complex numbers the adjoint's system is ``A^H w + B^T conj(w) = g`` with A = dF/dz and B = dF/dzbar. No
derivative is taken of the algorithm, and the point where it began has none. A minimum of L(z, p) is a root of
F = dL/dz, whose J is the Hessian.

z is known to the tolerances only, and to the rounding errors of F. Where J isn't regular all over that
neighbourhood the root has no derivative that could be known, and asking for one is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from cdiffeq._errors import poison, raise_if
from cdiffeq._flat import Layout
from cdiffeq.implicit._jacobian import Equations, linearise
from cdiffeq.implicit._method import Options, largest
from cdiffeq.linalg._arnoldi import two_norm
from cdiffeq.linalg._solve import factorize
from cdiffeq.linalg._solver import REASONS, Code
from cdiffeq.wirtinger._linear_map import hoist, pull_back
from cdiffeq.wirtinger._rule import adjoint_rule


class Report(NamedTuple):
    """How a solve ended: `code` (as of `cd.linalg.solve`, 0 is success), the norms of ``F(z)`` and of z where
    it ended, and the steps it took.

    All are floating, so that they may pass through a rule; their derivatives are zero.
    """

    code: Float[Array, ""]
    residual: Float[Array, ""]
    size: Float[Array, ""]
    iterations: Float[Array, ""]


class Problem(eqx.Module):
    """What is fixed about a solve.

    `fn` is ``(z, params, fixed) -> F``, or -> L where `minimum`; `algorithm` has a function `find`.
    """

    fn: Callable[..., Array] = eqx.field(static=True)
    name: str = eqx.field(static=True)
    minimum: bool = eqx.field(static=True)
    throw: bool = eqx.field(static=True)
    algorithm: Any
    options: Options

    def equations(self, fixed: Any) -> Callable[[Array, Any], Array]:
        """F as a function of (z, params)."""
        fn = lambda z, p: self.fn(z, p, fixed)
        return jax.grad(fn) if self.minimum else fn


@adjoint_rule(nondiff=("z0", "fixed", "problem"))
def find(
    params: PyTree[Inexact[Array, "..."]], z0: Float[Array, " N"], fixed: Any, problem: Problem
) -> tuple[Float[Array, " N"], Report]:
    """The solution, unchecked, and how it went."""
    F = problem.equations(fixed)
    target = (lambda z: problem.fn(z, params, fixed)) if problem.minimum else lambda z: F(z, params)
    z, code, steps = problem.algorithm.find(target, z0, problem.options)
    report = (code, two_norm(F(z, params)), two_norm(z), steps)
    return z, Report(*(x.astype(z.dtype) for x in report))


@find.def_tangent
def _tangent(args, out, dargs):
    params, _, fixed, problem = args
    z, report = out
    F = problem.equations(fixed)
    b = -jax.jvp(lambda p: F(z, p), (params,), (dargs[0],))[1]
    _, J = linearise(lambda z: F(z, params), z)
    dz, solved = factorize(J, problem.options.linear_solver).solve(b, throw=False)
    along = lambda y: jax.jvp(lambda z: F(z, params), (y,), (dz,))[1]
    error = _error_of(lambda z: F(z, params), z, dz, b, problem)
    lost = two_norm(_moved(along, z, dz, error)) > _KNOWN * two_norm(b)
    dz = _require(problem, dz, _finite(b) & ((solved.code != Code.SUCCESS) | lost))
    return dz, jax.tree.map(jnp.zeros_like, report)


@find.def_adjoint
def _adjoint(args, out, g):
    params, _, fixed, problem = args
    z, _ = out
    F = problem.equations(fixed)
    _, J = linearise(lambda z: F(z, params), z)
    solve = factorize(J, problem.options.linear_solver).solve_transposed
    w, solved = solve(g[0], throw=False)
    along = lambda y: pull_back(lambda z: F(z, params), y)[1](w)[0]
    error = _error_of(lambda z: F(z, params), z, w, g[0], problem)
    # J^T w moves most along a direction that no one knows; two steps of a power iteration come close.
    first = _moved(along, z, w, error)
    moved = jnp.maximum(two_norm(first), two_norm(_moved(along, z, first, error)))
    lost = moved > _KNOWN * two_norm(g[0])
    w = _require(problem, w, _finite(g[0]) & ((solved.code != Code.SUCCESS) | lost))
    _, pull = pull_back(lambda p: F(z, p), params)
    return (pull(-w)[0],)


# By so much of its right side a linear system may move within the tolerance of z.
_KNOWN = 0.1


def _error_of(F: Equations, z: Array, x: Array, b: Array, problem: Problem) -> Float[Array, ""]:
    """How far off z may be along x, where J x = b, or J^T x = b, is solved: J is as small as |b| / |x|.

    Beside the tolerance that is what rounding makes of a zero of F. It shows where F is compared with its
    linear part sqrt(eps) away, whose square is rounding, too; nearer by, a lost digit may not show.
    """
    length, size = two_norm(x), two_norm(b)
    h = jnp.finfo(z.dtype).eps ** 0.5 * largest(z) * x / jnp.where(length == 0, 1, length)
    f, push = jax.linearize(F, z)
    step = push(h)
    off = jnp.maximum(two_norm(F(z + h) - f - step), two_norm(F(z - h) - f + step))
    return problem.options.tolerance(z) + off * length / jnp.where(size == 0, 1, size)


def _moved(
    along: Equations, z: Array, direction: Array, error: Float[Array, ""]
) -> Float[Array, " N"]:
    """By how much `along` changes where z is off by `error` in that direction."""
    size = two_norm(direction)
    return along(z + error * direction / jnp.where(size == 0, 1, size)) - along(z)


def _finite(b: Array) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(b))


def _require(problem: Problem, x: Array, failed: Bool[Array, ""]) -> Array:
    if not problem.throw:
        return poison(x, jax.lax.stop_gradient(failed))
    what = "Hessian at the minimum" if problem.minimum else "Jacobian at the solution"
    regular = "positive definite" if problem.minimum else "regular"
    message = (
        f"{problem.name}: there is no derivative, as the {what} isn't {regular} within the tolerances of z "
        "(or its linear solver failed). If it is, lower rtol and atol, or pass another linear_solver."
    )
    return raise_if(x, failed, lambda: RuntimeError(message))


# From what a user gives to a problem and back.


@eqx.filter_jit
def solve(
    fn: Callable[[Any, Any], Any], z0: Any, args: Any, name: str, minimum: bool, throw: bool,
    algorithm: Any, options: Options,
) -> tuple[Any, Report]:  # fmt: skip
    """The solution for `fn`, a function (z, args) -> residuals or loss as a vector or number."""
    layout = Layout.of(z0)
    arrays, rest = eqx.partition(args, eqx.is_array)
    moving, still = eqx.partition(arrays, eqx.is_inexact_array)

    def flat_fn(z, moving, still):
        return fn(layout.unpack(z), eqx.combine(moving, still, rest))

    flat0 = jax.lax.stop_gradient(layout.pack(z0))
    pure, _, consts = hoist(flat_fn, flat0, moving, still)
    inexact = [eqx.is_inexact_array(c) for c in consts]
    split = lambda kind: [c for c, i in zip(consts, inexact, strict=True) if i == kind]

    def closed(z, params, fixed):
        (moved, moving), (held, still) = params, fixed
        moved, held = iter(moved), iter(held)
        return pure([next(moved if i else held) for i in inexact], z, moving, still)

    still_one = lambda a: jax.lax.stop_gradient(a) if eqx.is_array(a) else a
    algorithm, options = jax.tree.map(still_one, (algorithm, options))
    problem = Problem(closed, name, minimum, throw, algorithm, options)
    z, report = find((split(True), moving), flat0, (split(False), still), problem)
    return layout.unpack(z), jax.lax.stop_gradient(report)


def checked(z: Any, report: Report, name: str, throw: bool) -> Any:
    """z; or, of a failed solve, an error, or (NaN, report) where `throw` is false."""
    failed = report.code != Code.SUCCESS
    if not throw:
        return poison(z, failed), report

    def error(code, residual, size, iterations):
        reason = _REASONS.get(int(code)) or REASONS[int(code)]
        return RuntimeError(
            f"{name}: {reason}; after {int(iterations)} steps the residual has the norm "
            f"{residual:.2e}, and the iterate {size:.2e}."
        )

    return raise_if(z, failed, error, *report)


_REASONS = {
    Code.NOT_CONVERGED: "max_steps were made before the tolerances were met",
    Code.STAGNATED: "no step comes closer (another z0 may help, or looser rtol and atol)",
    Code.SINGULAR: "the Jacobian became singular on the way (another z0 may help)",
    Code.NOT_DEFINITE: "what was found is no minimum: the Hessian has a negative eigenvalue (try another z0)",
    Code.NOT_FINITE: "the function, or the iterate, is not finite",
}
