"""Minimal residuals, for Hermitian A, definite or not."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from cdiffeq.linalg._arnoldi import two_norm as norm
from cdiffeq.linalg._krylov import Cycle, KrylovSolver, Map, real_product
from cdiffeq.linalg._solver import Code


class MINRES(KrylovSolver):
    """Preconditioned MINRES (Paige and Saunders 1975, doi:10.1137/0712047), for A Hermitian, definite or not;
    the preconditioner has to be Hermitian and positive definite.

    A product ``v^H A v`` that isn't real ends the solve with `Code.NOT_HERMITIAN`. A real A that isn't
    symmetric can't be told so; then, too, the true residual decides what is returned. The derivative with
    respect to the entries of A is that of A^-1 b for any change of A, Hermitian or not.
    Cost of a step: one product with A, one with the preconditioner. Memory: eight vectors.

    >>> A = np.array([[0.0, 2j], [-2j, 1.0]])
    >>> cd.linalg.solve(A, np.array([2.0, 0.0]), cd.linalg.MINRES(rtol=1e-10)).round(8)
    Array([-0.5+0.j,  0. -1.j], dtype=complex128)
    """

    def cycle(
        self, A: Map, M: Map, r: Inexact[Array, " n"], tol: Float[Array, ""], steps: Int[Array, ""]
    ) -> Cycle:
        def going(s):
            return (norm(s.r) > tol) & (s.k < steps) & s.hermitian

        end = jax.lax.while_loop(going, lambda s: _step(A, M, s), _start(M, r, steps))
        return Cycle(end.d, end.k, jnp.where(end.hermitian, Code.SUCCESS, Code.NOT_HERMITIAN))


class _State(NamedTuple):
    """Of Lanczos' recursion v and z = M(v) with z^H v = gamma^2, now and before; of the rotations that make
    its tridiagonal matrix triangular c and s, now and before; the directions w, now and before.
    """

    d: Inexact[Array, " n"]
    r: Inexact[Array, " n"]
    eta: Float[Array, ""]
    v: Inexact[Array, " n"]
    v_before: Inexact[Array, " n"]
    z: Inexact[Array, " n"]
    gamma: Float[Array, ""]
    gamma_before: Float[Array, ""]
    c: Float[Array, ""]
    c_before: Float[Array, ""]
    s: Float[Array, ""]
    s_before: Float[Array, ""]
    w: Inexact[Array, " n"]
    w_before: Inexact[Array, " n"]
    k: Int[Array, ""]
    hermitian: Bool[Array, ""]


def _start(M: Map, r: Array, steps: Array) -> _State:
    z = M(r)
    gamma, hermitian = _length(z, r)
    o, one, zero = jnp.zeros_like(r), jnp.ones_like(gamma), jnp.zeros_like(gamma)
    return _State(
        o,
        r,
        gamma,
        r,
        o,
        z,
        gamma,
        one,
        one,
        one,
        zero,
        zero,
        o,
        o,
        jnp.zeros_like(steps),
        hermitian,
    )


def _step(A: Map, M: Map, t: _State) -> _State:
    z = t.z / t.gamma
    Az = A(z)
    delta, real = real_product(z, Az)
    v = Az - (delta / t.gamma) * t.v - (t.gamma / t.gamma_before) * t.v_before
    z_new = M(v)
    gamma, hermitian = _length(z_new, v)
    # The new column of the tridiagonal matrix under the rotations so far, and the next rotation.
    a0 = t.c * delta - t.c_before * t.s * t.gamma
    a1 = jnp.hypot(a0, gamma)
    a1 = jnp.where(a1 == 0, jnp.inf, a1)  # A is singular, and this direction of no use
    a2 = t.s * delta + t.c_before * t.c * t.gamma
    a3 = t.s_before * t.gamma
    c, s = a0 / a1, gamma / a1
    w = (z - a3 * t.w_before - a2 * t.w) / a1
    d = t.d + (c * t.eta) * w
    r = s**2 * t.r - (c * t.eta / a1) * v
    return _State(
        d,
        r,
        -s * t.eta,
        v,
        t.v,
        z_new,
        jnp.where(gamma == 0, 1, gamma),  # then r = 0, and nothing follows
        t.gamma,
        c,
        t.c,
        s,
        t.s,
        w,
        t.w,
        t.k + 1,
        t.hermitian & real & hermitian,
    )


def _length(z: Array, v: Array) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """sqrt(z^H v) with z = M^-1 v, and whether that is the square of a norm."""
    zv, real = real_product(z, v)
    return jnp.sqrt(jnp.maximum(zv, 0)), real & (zv >= 0)
