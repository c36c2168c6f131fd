r"""Broyden's method: the inverse H of the Jacobian is kept, and updated by what each step teaches.

s = -H F(z),     y = F(z + s) - F(z),     H <- H + (s - H y) s^T H / (s^T H y).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cdiffeq.implicit._jacobian import Equations, linearise
from cdiffeq.implicit._method import Method, Options, Step, largest, square
from cdiffeq.implicit._newton import line_search
from cdiffeq.linalg._lu import LU
from cdiffeq.linalg._solve import factorize
from cdiffeq.linalg._solver import Code

# A step has to leave less than this of |F|, or the next one takes a fresh Jacobian.
_ENOUGH = 0.5


class Broyden(Method):
    """Broyden's method for `root`: one Jacobian at the start, and then updates of its inverse.

    A step that leaves more than half of the residual is followed by one of Newton's, with a fresh Jacobian.
    Good where the Jacobian costs far more than F. Cost of a step: one evaluation of F and 6 N^2 operations.
    Memory: N^2 numbers.

    Source: C. G. Broyden 1965, doi:10.1090/S0025-5718-1965-0198670-6.

    >>> F = lambda z, a: z * jnp.abs(z) - a
    >>> cd.implicit.root(F, 1 + 0j, 4j, solver=cd.implicit.Broyden()).round(6)
    Array(0.+2.j, dtype=complex128)
    """

    def init(self, F: Equations, z: Array, f: Array, options: Options) -> Float[Array, "N N"]:
        """No inverse yet: zeros say so."""
        return jnp.zeros((z.size, z.size), z.dtype)

    def step(
        self, F: Equations, z: Array, f: Array, memory: Array, options: Options
    ) -> tuple[Step, Array]:
        fresh = ~jnp.any(memory)

        def invert():
            _, J = linearise(F, z)
            H, report = factorize(J, LU()).solve(jnp.eye(z.size, dtype=z.dtype), throw=False)
            return H, report.code.astype(jnp.int32)

        H, code = jax.lax.cond(
            fresh, invert, lambda: (memory, jnp.asarray(Code.SUCCESS, jnp.int32))
        )
        d = H @ f
        whole = Step(z - d, F(z - d), largest(d), code)
        search = lambda: line_search(F, z, f, d, code, options)
        step = jax.lax.cond(fresh, search, lambda: whole)
        # A step by an old inverse that doesn't help isn't made: the next one has a new inverse.
        enough = square(step.f) <= _ENOUGH**2 * square(f)
        close = step.error <= options.tolerance(z)
        stay = ~enough & ~close & ~fresh
        s, y = step.z - z, step.f - f
        Hy = H @ y
        sHy = s @ Hy
        update = jnp.outer(s - Hy, s @ H) / jnp.where(sHy == 0, 1, sHy)
        H = jnp.where(enough, H + update, jnp.zeros_like(H))
        held = Step(z, f, jnp.asarray(jnp.inf, z.dtype), code)
        return jax.tree.map(lambda a, b: jnp.where(stay, a, b), held, step), H
