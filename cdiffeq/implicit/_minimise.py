r"""Minima of real functions of complex numbers: L(z, args) least, hence dL/dx - i dL/dy = 0.

primal     BFGS on the real and imaginary parts, then Newton's method on the gradient
tangent    dz = -H^-1 (d grad L / dp) dp,       H the real Hessian
adjoint    w = H^-1 g,      g_p = -(d grad L / dp)* w
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, Float, PyTree

from cdiffeq._arrays import as_params, as_state
from cdiffeq._flat import Layout
from cdiffeq.implicit._jacobian import DENSE_SIZE, linearise
from cdiffeq.implicit._method import Found, Options, code_if, first_failure
from cdiffeq.implicit._newton import Newton
from cdiffeq.implicit._optimistix import Optimistix
from cdiffeq.implicit._options import make_options, require_function, require_precision
from cdiffeq.implicit._rule import checked, solve
from cdiffeq.linalg._cholesky_solver import Cholesky
from cdiffeq.linalg._minres import MINRES
from cdiffeq.linalg._solver import Code, Solver


def minimise(
    L: Callable[[Any, Any], Any],
    z0: PyTree[Any],
    args: PyTree[Any] = None,
    *,
    solver: optimistix.AbstractMinimiser | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 1024,
    linear_solver: Solver | None = None,
    throw: bool = True,
) -> Any:
    r"""z where the real L(z, args) has a local minimum, for complex z.

    >>> L = lambda z, a: jnp.abs(z**2 - a) ** 2 + 0.1 * jnp.abs(z) ** 2
    >>> least = lambda a: cd.implicit.minimise(L, 1 + 0j, a)
    >>> z, dz = jax.jvp(least, (1 + 1j,), (0.1 + 0j,))
    >>> print(f"{z:.5f} {dz:.5f}")
    1.07909+0.44697j 0.03914-0.01539j

    **Arguments**

    - `L`: the loss ``(z, args) -> L``, a real number, with first and second derivatives. JAX's second
      derivative of ``abs(u)**2`` is 0 or NaN where u is exactly 0: write ``u.real**2 + u.imag**2``.
    - `solver`: a minimiser of optimistix, with tolerances of its own, which is handed a real vector. By
      default BFGS up to 256 real unknowns, L-BFGS above.
    - `linear_solver`: for systems with the Hessian. By default `cd.linalg.Cholesky()` up to 256 real
      unknowns, `cd.linalg.MINRES()` above, without forming the Hessian.
    - all others as in `root`. What the minimiser found is improved by Newton's method on the gradient, down
      to the tolerances.

    **Returns** z, shaped like z0, of its dtypes. **Raises** as `root` does; and `RuntimeError` where what was
    found is no minimum: the Hessian has a negative eigenvalue (seen up to 256 real unknowns).

    **Derivatives**: as of `root`, for ``grad L = 0``: one system with the Hessian, whose products are jvps of
    the gradient. A minimum whose Hessian is singular has no derivative, and asking for one raises.

    **Cost**: a gradient of L a step, and some of Newton's steps at the end. **Memory**: N^2 numbers, or 20 N.
    """
    require_function("minimise", "L", L)
    z0, args = as_state("z0", z0), as_params(args)
    layout = Layout.of(z0)
    small = layout.size <= DENSE_SIZE
    options = make_options("minimise", layout, rtol, atol, max_steps, linear_solver)
    if linear_solver is None:
        accuracy = max(options.rtol, 100 * float(jnp.finfo(layout.dtype).eps))
        best = Cholesky() if small else MINRES(rtol=accuracy)
        options = dataclasses.replace(options, linear_solver=best)
    if solver is None:
        tol = float(jnp.finfo(layout.dtype).eps) ** 0.5
        make = optimistix.BFGS if small else optimistix.LBFGS
        solver = make(rtol=tol, atol=tol)
    if not isinstance(solver, optimistix.AbstractMinimiser):
        raise TypeError(f"minimise: solver must be a minimiser of optimistix, got {solver!r}.")
    loss = _Loss(L, layout)
    eqx.filter_eval_shape(loss, z0, args)
    algorithm = _Descent(Optimistix(solver))
    out = solve(loss, z0, args, "minimise", True, throw, algorithm, options)
    return checked(*out, "minimise", throw)


class _Descent(eqx.Module):
    """A minimiser, and Newton's method where it stops: it stops where L is flat within rounding, which is
    the square root of eps away from the minimum."""

    minimiser: Optimistix

    def find(self, L: Callable[[Array], Array], z: Float[Array, " N"], options: Options) -> Found:
        rough = self.minimiser.minimise(L, z, options.max_steps)
        fine = Newton().find(jax.grad(L), rough.z, options)
        slack = 100 * jnp.finfo(z.dtype).eps * (1 + jnp.abs(L(rough.z)))
        lower = L(fine.z) <= L(rough.z) + slack
        # Where the Hessian is singular Newton's method fails, and the minimiser's answer is as good as any.
        better = (fine.code == Code.SUCCESS) & lower & (rough.code != Code.NOT_FINITE)
        z = jnp.where(better, fine.z, rough.z)
        saddle = _has_descent(L, z) if z.size <= DENSE_SIZE else jnp.asarray(False)
        code = jnp.where(better, Code.SUCCESS, rough.code)
        code = first_failure(code, code_if(saddle, Code.NOT_DEFINITE))
        return Found(z, code, rough.steps + fine.steps)


def _has_descent(L: Callable[[Array], Array], z: Float[Array, " N"]) -> Array:
    """Whether the Hessian has an eigenvalue that is negative beyond rounding."""
    _, H = linearise(jax.grad(L), z)
    eigenvalues = jnp.linalg.eigvalsh(H.to_dense())
    return eigenvalues[0] < -(jnp.finfo(z.dtype).eps ** 0.5) * jnp.max(jnp.abs(eigenvalues))


class _Loss(eqx.Module):
    """L, checked."""

    L: Callable[[Any, Any], Any]
    layout: Layout = eqx.field(static=True)

    def __call__(self, z: Any, args: Any) -> Any:
        value = jnp.asarray(self.L(z, args))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"minimise: L must return a real number, got {value.dtype}{list(value.shape)}."
            )
        require_precision("minimise: L", value.dtype, self.layout)
        return value
