r"""Newton's method, with a line search.

J d = F(z),        z <- z - t d,        t = 1, 1/2, 1/4, ... until |F(z - t d)| < (1 - t/10^4) |F(z)|.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cdiffeq.implicit._jacobian import Equations, for_steps, linearise
from cdiffeq.implicit._method import (
    Method,
    Options,
    Step,
    code_if,
    first_failure,
    largest,
    square,
)
from cdiffeq.linalg._solve import factorize
from cdiffeq.linalg._solver import Code

_SMALLEST = 2.0**-20  # of t
_DECREASE = 1e-4


class Newton(Method):
    """Newton's method for `root`, with a line search that halves the step until the residual falls.

    It takes the whole real derivative of F, (dF/dz, dF/dzbar), and converges quadratically near a root where
    that is regular. With a Krylov solver as `linear_solver` (the default above 256 real unknowns) this is the
    Newton-Krylov method: no matrix is formed, and each step's system is solved to 1 %.

    Cost of a step: N products with the Jacobian and one LU; or as many products as GMRES takes. Memory: N^2
    numbers, or GMRES's vectors.

    Source: J. E. Dennis, R. B. Schnabel 1983, Numerical Methods for Unconstrained Optimization and Nonlinear
    Equations, doi:10.1137/1.9781611971200; D. A. Knoll, D. E. Keyes 2004, doi:10.1016/j.jcp.2003.08.010.

    >>> F = lambda z, a: z * jnp.abs(z) - a
    >>> cd.implicit.root(F, 1 + 0j, 4j, solver=cd.implicit.Newton()).round(6)
    Array(0.+2.j, dtype=complex128)
    """

    def init(self, F: Equations, z: Array, f: Array, options: Options) -> None:
        return None

    def step(
        self, F: Equations, z: Array, f: Array, memory: None, options: Options
    ) -> tuple[Step, None]:
        d, code = newton_direction(F, z, f, options)
        return line_search(F, z, f, d, code, options), None


def newton_direction(
    F: Equations, z: Array, f: Array, options: Options
) -> tuple[Float[Array, " N"], Int[Array, ""]]:
    """d with J d = f, and a code: NaN where J is singular."""
    _, J = linearise(F, z)
    d, report = factorize(J, for_steps(options.linear_solver)).solve(f, throw=False)
    return d, report.code.astype(jnp.int32)


def line_search(
    F: Equations, z: Array, f: Array, d: Array, code: Int[Array, ""], options: Options
) -> Step:
    """The step along -d, halved until |F| falls; the error is that of z, the length of d."""
    size = square(f)
    trial = lambda t: (t, z - t * d, F(z - t * d))
    falls = lambda t, f_new: square(f_new) <= (1 - _DECREASE * t) ** 2 * size

    def going(state):
        t, _, f_new = state
        return ~falls(t, f_new) & (t > _SMALLEST) & (code == Code.SUCCESS)

    first = trial(jnp.ones((), z.dtype))
    error = largest(d)
    # Within the tolerance |F| may be rounding: the whole step is as good as z, so no search.
    close = error <= options.tolerance(z)
    search = lambda: jax.lax.while_loop(going, lambda state: trial(state[0] / 2), first)
    t, z_new, f_new = jax.lax.cond(close, lambda: first, search)
    better = falls(t, f_new) | (close & (square(f_new) <= size))
    z_new, f_new = (jnp.where(better, new, old) for new, old in ((z_new, z), (f_new, f)))
    stuck = ~better & ~close
    return Step(z_new, f_new, error, first_failure(code, code_if(stuck, Code.STAGNATED)))
