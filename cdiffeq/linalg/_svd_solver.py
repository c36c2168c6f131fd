r"""Least squares by singular values, of a dense matrix of any shape and rank.

    A = U S V^H,      A^+ = V S^+ U^H,      S^+ = 1 / s, and 0 where s <= rcond max(s).

A damping mu changes the singular values, not the vectors: with ``t = sqrt(s^2 + mu^2)``, and mu for the
directions W that A maps to nothing,

    [A; mu 1]^+ [b; c] = V t^-2 (S U^H b + mu V^H c) + W mu^-1 W^H c.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from cdiffeq.linalg._damped import Damped
from cdiffeq.linalg._expm import adjoint as _adjoint
from cdiffeq.linalg._operator import Operator, apply
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report
from cdiffeq.linalg._square import matmul


class SVD(Solver):
    """Singular value decomposition (LAPACK's gesdd) for `lstsq`, of any operator: a sparse or matrix-free one
    is made dense.

    - `rcond`: singular values up to rcond times the largest count as zero; by default max(m, n) eps.

    Cost: about 20 m n min(m, n) operations, and 2 (m + n) min(m, n) for each of the solves. Memory: as many
    numbers as the matrix has, twice.

    >>> A = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])  # of rank 1
    >>> cd.linalg.lstsq(A, np.array([1.0, 3.0, 5.0]), solver=cd.linalg.SVD(rcond=1e-10)).round(8)
    Array([1., 1.], dtype=float64)
    """

    rcond: float | None = eqx.field(default=None, static=True)

    def init(self, A: Operator) -> tuple[Array, Array, Array]:
        of = A.operator if isinstance(A, Damped) else A
        U, s, Vh = jnp.linalg.svd(of.to_dense(), full_matrices=False)
        return U, s, Vh

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "m k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        if isinstance(A, Damped):
            x = self._damped(state, A, b, adjoint)
        else:
            U, s, Vh = state
            inverse = self._inverse(s, A)[:, None]
            left, right = (U, Vh) if adjoint else (_adjoint(Vh), _adjoint(U))
            x = matmul(left, inverse * matmul(right, b))
        return x, direct_report(lambda x: apply(A, x, adjoint), x, b, jnp.asarray(Code.SUCCESS))

    def _damped(self, state: Any, A: Damped, b: Array, adjoint: bool) -> Array:
        U, s, Vh = state
        mu = A.damping
        inverse = self._inverse(jnp.append(jnp.hypot(s, mu), jnp.abs(mu)), A)
        of_t, of_mu, s = inverse[:-1, None], inverse[-1], s[:, None]

        def solve_normal(inside, outside):
            """(A^H A + mu^2)^-1 (V inside + outside), and its part in V."""
            inside = of_t * (of_t * inside)
            return matmul(_adjoint(Vh), inside) + of_mu * (of_mu * outside), inside

        project = lambda y: matmul(_adjoint(Vh), matmul(Vh, y))
        if adjoint:
            y, inside = solve_normal(matmul(Vh, b), b - project(b))
            return jnp.concatenate([matmul(U, s * inside), mu * y])
        above, below = jnp.split(b, [U.shape[0]])
        below = mu * below
        inside = s * matmul(_adjoint(U), above) + matmul(Vh, below)
        return solve_normal(inside, below - project(below))[0]

    def _inverse(self, s: Array, A: Operator) -> Array:
        """1 / s, or 0 where s counts as zero."""
        rcond = max(A.shape) * jnp.finfo(s.dtype).eps if self.rcond is None else self.rcond
        kept = s > rcond * jnp.max(s, initial=0)
        # NaN is kept, to be seen.
        return jnp.where(kept | jnp.isnan(s), 1 / jnp.where(kept, s, jnp.nan), 0)
