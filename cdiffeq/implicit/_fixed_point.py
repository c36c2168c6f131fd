"""Fixed points: z = G(z, args), roots of z - G."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import PyTree

from cdiffeq._arrays import as_params, as_state
from cdiffeq._flat import Layout, is_complex
from cdiffeq.implicit._anderson import Anderson
from cdiffeq.implicit._optimistix import Optimistix
from cdiffeq.implicit._options import make_options, require_function, require_precision
from cdiffeq.implicit._root import as_algorithm
from cdiffeq.implicit._rule import checked, solve
from cdiffeq.linalg._solver import Solver


def fixed_point(
    G: Callable[[Any, Any], Any],
    z0: PyTree[Any],
    args: PyTree[Any] = None,
    *,
    solver: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 1024,
    linear_solver: Solver | None = None,
    throw: bool = True,
) -> Any:
    r"""z with z = G(z, args), for complex z and any G, holomorphic or not.

    >>> G = lambda z, a: a * jnp.exp(-jnp.abs(z) ** 2) + 0.2 * jnp.conj(z)
    >>> z = cd.implicit.fixed_point(G, 0j, 0.5 + 0.5j)
    >>> print(f"{z:.6f}", abs(G(z, 0.5 + 0.5j) - z) < 1e-10)
    0.460251+0.306834j True

    **Arguments**

    - `G`: the map ``(z, args) -> z``, of the structure and shapes of z0.
    - `solver`: `Anderson()` (the default), which needs no derivative of G for the value; `Newton()`,
      `Broyden()`, or a solver of optimistix.
    - all others as in `root`.

    **Returns**, **raises** and **derivatives**: as `root`, for F = z - G. The adjoint's system is
    ``w = g + (dG/dz)* w``; GMRES solves it where there are more than 256 real unknowns.

    **Cost**: one evaluation of G a step. **Memory**: see `Anderson`.
    """
    require_function("fixed_point", "G", G)
    z0, args = as_state("z0", z0), as_params(args)
    layout = Layout.of(z0)
    options = make_options("fixed_point", layout, rtol, atol, max_steps, linear_solver)
    if isinstance(solver, optimistix.AbstractFixedPointSolver):
        algorithm = Optimistix(solver)
    else:
        algorithm = as_algorithm("fixed_point", solver, Anderson())
    moves = _Moves(G, layout)
    eqx.filter_eval_shape(moves, z0, args)
    out = solve(moves, z0, args, "fixed_point", False, throw, algorithm, options)
    return checked(*out, "fixed_point", throw)


class _Moves(eqx.Module):
    """z - G(z) as a real vector."""

    G: Callable[[Any, Any], Any]
    layout: Layout = eqx.field(static=True)

    def __call__(self, z: Any, args: Any) -> Any:
        g = jax.tree.map(jnp.asarray, self.G(z, args))
        if jax.tree.structure(g) != self.layout.tree:
            raise TypeError(
                f"fixed_point: G must return the structure of z0, {self.layout.tree}; got "
                f"{jax.tree.structure(g)}."
            )
        pairs = zip(jax.tree_util.tree_leaves_with_path(g), jax.tree.leaves(z), strict=True)
        for (path, leaf), z_leaf in pairs:
            where = "fixed_point: G" + jax.tree_util.keystr(path)
            if leaf.shape != z_leaf.shape:
                raise ValueError(
                    f"{where} has shape {leaf.shape}, and z0 has {z_leaf.shape} there."
                )
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise TypeError(f"{where} must be floating or complex, got {leaf.dtype}.")
            if is_complex(leaf.dtype) and not is_complex(z_leaf.dtype):
                raise TypeError(
                    f"{where} is complex, and z0 is real there: start from a complex z0, such as z0 + 0j."
                )
            require_precision(where, leaf.dtype, self.layout)
        cast = jax.tree.map(lambda a, b: a.astype(b.dtype), g, z)
        return self.layout.pack(z) - self.layout.pack(cast)
