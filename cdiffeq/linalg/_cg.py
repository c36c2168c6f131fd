"""Conjugate gradients, for Hermitian positive definite A."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from cdiffeq.linalg._arnoldi import two_norm as norm
from cdiffeq.linalg._krylov import Cycle, KrylovSolver, Map, real_product
from cdiffeq.linalg._solver import Code


class CG(KrylovSolver):
    """Preconditioned conjugate gradients (Hestenes and Stiefel 1952, doi:10.6028/jres.049.044), for A
    Hermitian and positive definite; the preconditioner has to be that, too.

    A curvature ``p^H A p`` that isn't real and positive ends the solve with `Code.NOT_HERMITIAN`. A real A
    that isn't symmetric can't be told so; then, too, the true residual decides what is returned. The
    derivative with respect to the entries of A is that of A^-1 b for any change of A, Hermitian or not.
    Cost of a step: one product with A, one with the preconditioner. Memory: four vectors.

    >>> A = np.array([[2.0, 1j], [-1j, 3.0]])
    >>> cd.linalg.solve(A, np.array([1.0, 0.0]), cd.linalg.CG(rtol=1e-10)).round(8)
    Array([0.6+0.j , 0. +0.2j], dtype=complex128)
    """

    def cycle(
        self, A: Map, M: Map, r: Inexact[Array, " n"], tol: Float[Array, ""], steps: Int[Array, ""]
    ) -> Cycle:
        z = M(r)
        rz, definite = positive_product(r, z)

        def going(state):
            _, r, _, _, k, definite = state
            return (norm(r) > tol) & (k < steps) & definite

        def step(state):
            d, r, p, rz, k, _ = state
            q = A(p)
            curvature, definite = positive_product(p, q)
            alpha = jnp.where(definite, rz / curvature, 0)
            d, r = d + alpha * p, r - alpha * q
            z = M(r)
            rz_new, of_M = positive_product(r, z)
            p = z + (rz_new / rz) * p
            return d, r, p, rz_new, k + 1, definite & (of_M | (norm(r) <= tol))

        start = jnp.zeros_like(r), r, z, rz, jnp.zeros_like(steps), definite
        d, _, _, _, k, definite = jax.lax.while_loop(going, step, start)
        return Cycle(d, k, jnp.where(definite, Code.SUCCESS, Code.NOT_HERMITIAN))


def positive_product(x: Array, y: Array) -> tuple[Float[Array, ""], Array]:
    """x^H y, and whether it is real and positive."""
    xy, real = real_product(x, y)
    return xy, real & (xy > 0)
