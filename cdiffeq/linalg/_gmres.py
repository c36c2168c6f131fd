r"""Generalised minimal residuals, restarted, for any A.

    A M^-1 V_m = V_(m+1) H,    V^H V = 1,    H of shape (m + 1, m),    y = argmin |beta e_1 - H y|,

and ``d = M^-1 V y``. The residual of each m follows without y, from the vector u with ``u^H H = 0`` and
``u_0 = 1``: it is the part of ``beta e_1`` along u, of norm ``beta / norm(u)`` (Ayachour 2003,
doi:10.1016/S0377-0427(03)00534-X).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from cdiffeq.linalg._arnoldi import orthogonalise
from cdiffeq.linalg._arnoldi import two_norm as norm
from cdiffeq.linalg._krylov import Cycle, KrylovSolver, Map
from cdiffeq.linalg._solver import Code


class GMRES(KrylovSolver):
    """Restarted GMRES (Saad and Schultz 1986, doi:10.1137/0907058), preconditioned on the right, for any A.

    - `restart`: vectors are kept, and the residual is minimal over all of them, for so many steps.

    Cost of a step: one product with A, one with the preconditioner, and four passes over the vectors kept.
    Memory: ``restart + 4`` vectors for each column of b.

    >>> A = np.array([[0.0, 2.0], [-2.0, 1j]])
    >>> cd.linalg.solve(A, np.array([2.0, 0.0]), cd.linalg.GMRES(rtol=1e-10)).round(8) + 0.0
    Array([0.+0.5j, 1.+0.j ], dtype=complex128)
    """

    restart: int = eqx.field(default=30, static=True)

    def cycle(
        self, A: Map, M: Map, r: Inexact[Array, " n"], tol: Float[Array, ""], steps: Int[Array, ""]
    ) -> Cycle:
        n = r.shape[0]
        m = min(self.restart, n)
        beta = norm(r)
        V = jnp.zeros((m + 1, n), r.dtype).at[0].set(r / beta)
        H = jnp.eye(m + 1, m, -1, dtype=r.dtype)  # what isn't reached decouples
        u = jnp.zeros(m + 1, r.dtype).at[0].set(1)

        def going(state):
            _, _, _, k, residual = state
            return (residual > tol) & (k < jnp.minimum(m, steps))

        def step(state):
            V, H, u, k, _ = state
            v, h, next = _arnoldi(V, A(M(V[k])))
            h = h.at[k + 1].set(next)
            # u^H h = 0 gives the next entry; where nothing is left of v the residual is zero.
            u = u.at[k + 1].set(-jnp.conj(u.conj() @ h.at[k + 1].set(0)) / next)
            residual = jnp.where(next == 0, 0, beta / norm(u))
            return V.at[k + 1].set(v), H.at[:, k].set(h), u, k + 1, residual

        start = V, H, u, jnp.zeros_like(steps), beta
        V, H, _, k, _ = jax.lax.while_loop(going, step, start)
        d = M(_least_squares(H, beta) @ V[:m])
        return Cycle(d, k, jnp.asarray(Code.SUCCESS))


def _arnoldi(
    V: Inexact[Array, "m n"], w: Inexact[Array, " n"]
) -> tuple[Inexact[Array, " n"], Inexact[Array, " m"], Float[Array, ""]]:
    """v, h and a number a with w = h V + a v and v orthogonal to V."""
    size = norm(w)
    w, h = orthogonalise(V, w)
    left = norm(w)
    # Within rounding w is a sum of the others.
    left = jnp.where(left <= 10 * jnp.finfo(w.dtype).eps * size, 0, left)
    return jnp.where(left == 0, 0, w / jnp.where(left == 0, 1, left)), h, left


def _least_squares(H: Inexact[Array, "m_plus_1 m"], beta: Float[Array, ""]) -> Inexact[Array, " m"]:
    """argmin |beta e_1 - H y|, with zero in place of what H leaves open."""
    Q, R = jnp.linalg.qr(H)
    diagonal = jnp.abs(jnp.diagonal(R))
    open_ = diagonal <= jnp.finfo(R.dtype).eps * jnp.max(diagonal)
    R = jnp.where(open_[:, None], jnp.eye(H.shape[1], dtype=R.dtype), R)
    y = jnp.where(open_, 0, beta * jnp.conj(Q[0]))
    return jax.lax.linalg.triangular_solve(R, y[:, None], left_side=True)[:, 0]
