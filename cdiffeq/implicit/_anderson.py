r"""Anderson's mixing: a fixed-point iteration that looks back.

With r(z) = -beta F(z), which is G(z) - z for a fixed point and beta = 1, and the last m differences of z and
of r as the columns of S and R,

    c = argmin |r - R c|,        z <- z + r - (S + R) c.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cdiffeq.implicit._jacobian import Equations
from cdiffeq.implicit._method import Method, Options, Step, largest, square
from cdiffeq.linalg._solver import Code


class Memory(NamedTuple):
    """Rows of differences, the oldest overwritten first, and how many have been written."""

    S: Float[Array, "m N"]
    R: Float[Array, "m N"]
    written: Int[Array, ""]


class Anderson(Method):
    """Anderson's method for `fixed_point` and `root`: no Jacobian, a few vectors.

    - `memory`: it looks back so many steps.
    - `mixing`: beta; 1 for `fixed_point`. In `root` the iteration is ``z <- z - beta F(z)``, so F must point
      away from the root, and beta must have its scale.

    It converges where the iteration does, and often where it doesn't. Cost of a step: one evaluation, and
    about 4 m^2 N operations. Memory: ``2 m`` vectors.

    Source: D. G. Anderson 1965, doi:10.1145/321296.321305; H. F. Walker, P. Ni 2011, doi:10.1137/10078356X.

    >>> G = lambda z, a: a / (1 + jnp.abs(z) ** 2)
    >>> cd.implicit.fixed_point(G, 0j, 2j, solver=cd.implicit.Anderson(memory=3)).round(6)
    Array(0.+1.j, dtype=complex128)
    """

    memory: int = eqx.field(default=5, static=True)
    mixing: float = eqx.field(default=1.0, static=True)

    def __check_init__(self):
        if not isinstance(self.memory, int) or self.memory < 1:
            raise ValueError(f"Anderson: memory must be a positive integer, got {self.memory!r}.")

    def init(self, F: Equations, z: Array, f: Array, options: Options) -> Memory:
        empty = jnp.zeros((min(self.memory, z.size), z.size), z.dtype)
        return Memory(empty, empty, jnp.asarray(0))

    def step(
        self, F: Equations, z: Array, f: Array, memory: Memory, options: Options
    ) -> tuple[Step, Memory]:
        S, R, written = memory
        r = -self.mixing * f
        # Rows that aren't written yet are zero, and take no part in the smallest solution.
        c = jnp.linalg.lstsq(R.T, r)[0]
        z_new = z + r - c @ (S + R)
        f_new = F(z_new)
        # By the secants of the memory this step is Newton's: as good an estimate as they are.
        error = jnp.maximum(largest(r), largest(z_new - z))
        place = written % len(S)
        S = S.at[place].set(z_new - z)
        R = R.at[place].set(-self.mixing * (f_new - f))
        # What was learnt far away misleads: forget it where the residual grows.
        keep = square(f_new) <= square(f)
        S, R = (jnp.where(keep, D, jnp.zeros_like(D)) for D in (S, R))
        step = Step(z_new, f_new, error, jnp.asarray(Code.SUCCESS, jnp.int32))
        return step, Memory(S, R, jnp.where(keep, written + 1, 0))
