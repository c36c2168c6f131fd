"""Roots: z with F(z, args) = 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from cdiffeq._arrays import as_params, as_state
from cdiffeq._flat import Layout
from cdiffeq.implicit._method import Method
from cdiffeq.implicit._newton import Newton
from cdiffeq.implicit._optimistix import Optimistix, is_root_finder
from cdiffeq.implicit._options import make_options, require_function, require_precision
from cdiffeq.implicit._rule import checked, solve
from cdiffeq.linalg._solver import Solver


def root(
    F: Callable[[Any, Any], Any],
    z0: PyTree[Any],
    args: PyTree[Any] = None,
    *,
    solver: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 256,
    linear_solver: Solver | None = None,
    throw: bool = True,
) -> Any:
    r"""z with F(z, args) = 0, for complex z and any F, holomorphic or not.

    >>> F = lambda z, p: z + p["kerr"] * jnp.abs(z) ** 2 * z - p["drive"]  # a driven Kerr resonator
    >>> p = {"kerr": 0.5j, "drive": 1.0}
    >>> z = cd.implicit.root(F, 1 + 0j, p)
    >>> power = lambda p: jnp.abs(cd.implicit.root(F, 1 + 0j, p)) ** 2
    >>> print(f"{z:.4f} {jax.grad(power)(p)['drive']:.4f}")
    0.8477-0.3593j 1.2996

    **Arguments**

    - `F`: the equations ``(z, args) -> F``, a pytree with as many real numbers as z has (a complex one counts
      twice). It may close over arrays, and be an Equinox module.
    - `z0`: where the search starts: a pytree of real and complex floating arrays of one precision.
    - `args`: any pytree: arrays, numbers, callables, Equinox modules.
    - `solver`: `Newton()` (the default), `Broyden()`, `Anderson()`, or a root finder, least-squares solver or
      minimiser of optimistix, with tolerances of its own, which is handed real vectors.
    - `rtol`, `atol`: the error left in z, in its largest entry, is estimated below
      ``atol + rtol max|z|``. Both are eps^(2/3) by default: 3.7e-11 in double, 2.4e-5 in single precision.
    - `max_steps`: the most steps tried.
    - `linear_solver`: for systems with the Jacobian in real and imaginary parts, in Newton's steps and in
      derivatives. By default `cd.linalg.LU()` up to 256 real unknowns, `cd.linalg.GMRES()` above, to rtol and
      without forming the Jacobian. It may have a preconditioner, of vectors with all real parts, then all
      imaginary ones, then real leaves.
    - `throw`: whether a failed search raises. If not, z is NaN then, and ``(z, report)`` is returned, with
      the report's `code` (0 is success), `residual` (the norm of F), `size` (that of z) and `iterations`.

    **Returns** z, shaped like z0 and of its dtypes. Which root it is depends on z0.

    **Raises**, before the search: `TypeError` for unknowns that aren't floating, for an F of another
    precision or another number of equations than z has unknowns (a complex F needs a complex z0);
    `ValueError` for options out of range and a tolerance below what the dtype resolves. When it runs:
    `RuntimeError` with the residual and the last iterate's norm, where the tolerances aren't met.

    **Derivatives**: jvp, vjp and second derivatives with respect to all floating arrays in args or closed
    over by F, by the implicit function theorem: one linear system with the whole real Jacobian, which is
    ``(dF/dz) x + (dF/dzbar) conj(x) = b``, never through the iterations. z0 has zero derivative. Where the
    Jacobian is singular at the root, within the tolerances, a derivative raises.
    A first jvp needs forward mode of F alone, a gradient also reverse mode.

    **Cost and memory**: see `Newton`. A derivative costs the Jacobian (or GMRES's products with it) and one
    solve.

    Source: S. G. Krantz, H. R. Parks 2003, The Implicit Function Theorem, doi:10.1007/978-1-4614-5981-1.
    """
    require_function("root", "F", F)
    z0, args = as_state("z0", z0), as_params(args)
    layout = Layout.of(z0)
    options = make_options("root", layout, rtol, atol, max_steps, linear_solver)
    algorithm = as_algorithm("root", solver, Newton())
    residuals = _Residuals(F, layout)
    eqx.filter_eval_shape(residuals, z0, args)
    return checked(
        *solve(residuals, z0, args, "root", False, throw, algorithm, options), "root", throw
    )


def as_algorithm(
    name: str, solver: Any, default: Method, kinds: str = "a solver of optimistix"
) -> Any:
    """What has a function `find`."""
    if solver is None:
        return default
    if isinstance(solver, Method):
        return solver
    if is_root_finder(solver):
        return Optimistix(solver)
    raise TypeError(
        f"{name}: solver must be one such as cd.implicit.Newton(), or {kinds}, got {solver!r}."
    )


class _Residuals(eqx.Module):
    """F as a real vector of as many entries as z has real numbers."""

    F: Callable[[Any, Any], Any]
    layout: Layout = eqx.field(static=True)

    def __call__(self, z: Any, args: Any) -> Any:
        f = jax.tree.map(jnp.asarray, self.F(z, args))
        for path, leaf in jax.tree_util.tree_leaves_with_path(f):
            where = "root: F" + jax.tree_util.keystr(path)
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise TypeError(f"{where} must be floating or complex, got {leaf.dtype}.")
            require_precision(where, leaf.dtype, self.layout)
        of_f = Layout.of(f)
        if of_f.size != self.layout.size:
            raise TypeError(
                f"root: F returns {of_f.size} real numbers, and z0 has {self.layout.size}; there must be as "
                "many equations as unknowns, a complex number counting twice."
            )
        return of_f.pack(f)
