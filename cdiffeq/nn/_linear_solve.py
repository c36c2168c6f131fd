r"""y = W y + x: a layer that feeds its output back, solved for y."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Complex, Inexact, PRNGKeyArray

from cdiffeq.linalg import Solver, solve
from cdiffeq.nn._initialisation import complex_dtype, glorot
from cdiffeq.nn._linear import require_vector


class LinearSolveLayer(eqx.Module):
    """The layer whose output y solves ``y = W y + x``, as in a resonator or a network with feedback.

    ``LinearSolveLayer(n, key)``; called with x of shape (n,), real or complex, it returns y of that shape.
    W is complex, (n, n), and starts as half of a `glorot` matrix: its spectral radius is about 1/2, far from
    the 1 where the feedback may resonate. `solver` is one of `cd.linalg.solve`. `dtype` as for `Linear`.

    Calling raises `ValueError` for another shape, and `RuntimeError` where 1 - W is singular. Gradients are
    those of the rule of `cd.linalg.solve`: one more solve, with the factors of the first.
    Cost: a factorization, n^3/3 complex multiplications with the default LU, once for a batch by `jax.vmap`.

    >>> layer = cd.nn.LinearSolveLayer(3, jax.random.key(0))
    >>> y = layer(jnp.ones(3))
    >>> bool(jnp.allclose(y, layer.weight @ y + 1))
    True
    """

    weight: Complex[Array, "n n"]
    solver: Solver | None

    def __init__(
        self, size: int, key: PRNGKeyArray, *, solver: Solver | None = None, dtype: Any = None
    ):
        self.weight = glorot(key, (size, size), complex_dtype("LinearSolveLayer", dtype)) / 2
        self.solver = solver

    def __call__(
        self, x: Inexact[Array, "..."], *, key: PRNGKeyArray | None = None
    ) -> Complex[Array, " n"]:
        n = len(self.weight)
        require_vector("LinearSolveLayer", x, n)
        return solve(jnp.eye(n, dtype=self.weight.dtype) - self.weight, x, self.solver)
