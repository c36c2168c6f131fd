"""Stabilised bi-conjugate gradients, for any A, with short recurrences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from cdiffeq.linalg._arnoldi import two_norm as norm
from cdiffeq.linalg._krylov import Cycle, KrylovSolver, Map, dot
from cdiffeq.linalg._solver import Code


class BiCGStab(KrylovSolver):
    """Bi-CGSTAB (van der Vorst 1992, doi:10.1137/0913035), preconditioned on the right, for any A.

    A breakdown starts it anew from where it is; where that is no closer than before the solve ends with
    `Code.BREAKDOWN`. Its residuals go up and down, and for a real A close to skew-symmetric it fails: take
    GMRES then. Cost of a step: two products with A, two with the preconditioner. Memory: eight vectors.

    >>> A = np.array([[2.0, 1j], [0.0, 1.0]])
    >>> cd.linalg.solve(A, np.array([2.0, 1.0]), cd.linalg.BiCGStab(rtol=1e-10)).round(8) + 0.0
    Array([1.-0.5j, 1.+0.j ], dtype=complex128)
    """

    def cycle(
        self, A: Map, M: Map, r: Inexact[Array, " n"], tol: Float[Array, ""], steps: Int[Array, ""]
    ) -> Cycle:
        shadow, eps = r, jnp.finfo(r.dtype).eps

        def going(state):
            _, r, _, _, k, alive = state
            return (norm(r) > tol) & (k < steps) & alive

        def step(state):
            d, r, p, rho, k, _ = state
            p_hat = M(p)
            v = A(p_hat)
            alpha, bi_conjugate = _quotient(rho, dot(shadow, v), eps * norm(shadow) * norm(v))
            s = r - alpha * v
            s_hat = M(s)
            t = A(s_hat)
            omega, _ = _quotient(dot(t, s), dot(t, t), 0)
            d, r = d + alpha * p_hat + omega * s_hat, s - omega * t
            rho_new = dot(shadow, r)
            beta, stable = _quotient(rho_new * alpha, rho * omega, 0)
            p = r + beta * (p - omega * v)
            orthogonal = jnp.abs(rho_new) <= eps * norm(shadow) * norm(r)
            alive = bi_conjugate & stable & ~orthogonal | (norm(r) <= tol)
            return d, r, p, rho_new, k + 1, alive

        start = jnp.zeros_like(r), r, r, dot(r, r), jnp.zeros_like(steps), jnp.asarray(True)
        d, _, _, _, k, alive = jax.lax.while_loop(going, step, start)
        return Cycle(d, k, jnp.where(alive, Code.SUCCESS, Code.BREAKDOWN))


def _quotient(x: Array, y: Array, least: Array | int) -> tuple[Inexact[Array, ""], Array]:
    """x / y, or 0 where abs(y) <= least, and whether it is the quotient."""
    sound = jnp.abs(y) > least
    return jnp.where(sound, x / jnp.where(sound, y, 1), 0), sound
