"""optimistix's solvers on the flat real vector, where they are right whatever the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, Float

from cdiffeq.implicit._method import Found, Options, code_if, first_failure
from cdiffeq.linalg._solver import Code

_ROOT = (
    optimistix.AbstractRootFinder
    | optimistix.AbstractLeastSquaresSolver
    | optimistix.AbstractMinimiser
)


class Optimistix(eqx.Module):
    """A root finder, least-squares solver, minimiser or fixed-point solver, with tolerances of its own."""

    solver: Any

    def find(self, F: Callable[[Array], Array], z: Float[Array, " N"], options: Options) -> Found:
        """z with F(z) = 0."""
        given: Any = dict(max_steps=options.max_steps, throw=False)
        if isinstance(self.solver, optimistix.AbstractFixedPointSolver):
            return _found(optimistix.fixed_point(lambda z, _: z - F(z), self.solver, z, **given))
        return _found(optimistix.root_find(lambda z, _: F(z), self.solver, z, **given))

    def minimise(self, L: Callable[[Array], Array], z: Float[Array, " N"], max_steps: int) -> Found:
        """z where L(z) is least."""
        fn = lambda z, _: L(z)
        return _found(optimistix.minimise(fn, self.solver, z, max_steps=max_steps, throw=False))


def is_root_finder(solver: Any) -> bool:
    """Whether optimistix finds roots with it."""
    return isinstance(solver, _ROOT)


def _found(solution: Any) -> Found:
    failed = solution.result != optimistix.RESULTS.successful
    stopped = solution.result == optimistix.RESULTS.nonlinear_max_steps_reached
    finite = jnp.all(jnp.isfinite(solution.value))
    code = first_failure(
        code_if(~finite, Code.NOT_FINITE),
        code_if(stopped, Code.NOT_CONVERGED),
        code_if(failed, Code.STAGNATED),
    )
    return Found(solution.value, code, jnp.asarray(solution.stats["num_steps"]))
