r"""Least squares by Golub and Kahan's bidiagonalisation, for sparse and matrix-free A of any shape.

    A v_k = beta_(k+1) u_(k+1) + alpha_k u_k,      A^H u_(k+1) = alpha_(k+1) v_(k+1) + beta_(k+1) v_k,

with real alpha and beta, and the x of each step minimises norm(A^H r), r = b - A x, over the span of the v.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from cdiffeq._errors import check_tolerance
from cdiffeq.linalg._arnoldi import two_norm as norm
from cdiffeq.linalg._krylov import Map, over_columns, scaled
from cdiffeq.linalg._operator import Operator
from cdiffeq.linalg._solver import Code, Report, Solver


class LSMR(Solver):
    """LSMR (Fong and Saunders 2011, doi:10.1137/10079687X) for `lstsq`, of sparse and matrix-free A.

    - `rtol`, `atol`: what is reached, for each column of b with the true r = b - A x, is
      ``norm(A^H r) <= rtol norm(A) norm(r)`` or ``norm(r) <= max(rtol norm(b), atol)``. norm(A) is estimated
      by the bidiagonal matrix. The three solves of a derivative reach the same, for their right sides.
    - `max_steps`: 10 min(m, n) by default.

    The least of all solutions where there are many. An error grows with the square of A's condition number
    where r isn't small, as the solution itself is as sensitive. Cost of a step: one product with A, one with
    A^H. Memory: four vectors of each size. The report's residual is the lesser of norm(r) / norm(b)
    and norm(A^H r) / (norm(A) norm(r)).

    >>> import scipy.sparse
    >>> A = scipy.sparse.csr_array(np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]))
    >>> cd.linalg.lstsq(A, np.array([1.0, 0.0, 2.0]), solver=cd.linalg.LSMR(rtol=1e-10)).round(8)
    Array([0.5, 0.5], dtype=float64)
    """

    rtol: float = eqx.field(default=1e-5, static=True)
    atol: float = eqx.field(default=0.0, static=True)
    max_steps: int | None = eqx.field(default=None, static=True)

    def init(self, A: Operator) -> None:
        return None

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "m k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        check_tolerance("rtol", self.rtol, b.dtype)
        maps = A.mv, A.adjoint().mv
        M, MH = maps[::-1] if adjoint else maps
        max_steps = 10 * min(A.shape) if self.max_steps is None else self.max_steps

        def single(b, _):
            b, _, scale = scaled(b, None)
            tol = jnp.maximum(self.rtol * norm(b), self.atol / scale)
            x, report = _iterate(M, MH, b, self.rtol, tol, max_steps)
            return scale * x, report

        return over_columns(single, b, None)


class _State(NamedTuple):
    x: Inexact[Array, " n"]
    r: Inexact[Array, " m"]
    gradient: Float[Array, ""]
    relative: Float[Array, ""]
    steps: Int[Array, ""]
    code: Int[Array, ""]


def _iterate(
    A: Map, AH: Map, b: Array, rtol: float, tol: Float[Array, ""], max_steps: int
) -> tuple[Inexact[Array, " n"], Report]:
    """Bidiagonalisations that start anew from the true residual, until it is as it should be."""

    def going(t):
        return (t.code == Code.NOT_CONVERGED) & (t.steps < max_steps)

    def step(t):
        d, steps, size_of_A = _bidiagonalise(A, AH, t.r, rtol, tol, max_steps - t.steps)
        x = t.x + d
        r = b - A(x)
        gradient, scale = norm(AH(r)), size_of_A * norm(r)
        done = (norm(r) <= tol) | (gradient <= rtol * scale)
        more = jnp.where(gradient < t.gradient, Code.NOT_CONVERGED, Code.STAGNATED)
        code = jnp.where(done, Code.SUCCESS, more)
        code = jnp.where(jnp.isfinite(gradient), code, Code.NOT_FINITE)
        of_nothing = lambda size: jnp.where(size == 0, 1, size)
        relative = jnp.minimum(gradient / of_nothing(scale), norm(r) / of_nothing(norm(b)))
        return _State(x, r, gradient, relative, t.steps + steps, code)

    x = jnp.zeros_like(AH(b))
    infinite = jnp.full((), jnp.inf, norm(b).dtype)
    start = _State(x, b, infinite, infinite, jnp.asarray(0), jnp.asarray(Code.NOT_CONVERGED))
    end = jax.lax.while_loop(going, step, start)
    return end.x, Report(*(y.astype(infinite.dtype) for y in (end.code, end.relative, end.steps)))


class _Bidiagonal(NamedTuple):
    """One step's vectors and rotations, in the paper's letters; Ah and Ah_bar are A h and A h_bar."""

    d: Inexact[Array, " n"]
    r: Inexact[Array, " m"]
    u: Inexact[Array, " m"]
    v: Inexact[Array, " n"]
    h: Inexact[Array, " n"]
    h_bar: Inexact[Array, " n"]
    Ah: Inexact[Array, " m"]
    Ah_bar: Inexact[Array, " m"]
    alpha: Float[Array, ""]
    alpha_bar: Float[Array, ""]
    theta_over_rho: Float[Array, ""]
    rho: Float[Array, ""]
    rho_bar: Float[Array, ""]
    c_bar: Float[Array, ""]
    s_bar: Float[Array, ""]
    zeta_bar: Float[Array, ""]  # norm(A^H r), but for its sign
    size: Float[Array, ""]  # norm(A), by Frobenius' norm of the bidiagonal matrix, squared
    k: Int[Array, ""]


def _bidiagonalise(
    A: Map, AH: Map, b: Array, rtol: float, tol: Array, steps: Array
) -> tuple[Inexact[Array, " n"], Int[Array, ""], Float[Array, ""]]:
    """d with the least norm(A^H (b - A d)), the steps taken, and the norm of A."""
    u, beta = _unit(b)
    v, alpha = _unit(AH(u))
    o_n, o_m = jnp.zeros_like(v), jnp.zeros_like(u)
    one, zero = jnp.ones_like(beta), jnp.zeros_like(beta)
    start = _Bidiagonal(
        d=o_n,
        r=b,
        u=u,
        v=v,
        h=v,
        h_bar=o_n,
        Ah=o_m,
        Ah_bar=o_m,
        alpha=alpha,
        alpha_bar=alpha,
        theta_over_rho=zero,
        rho=one,
        rho_bar=one,
        c_bar=one,
        s_bar=zero,
        zeta_bar=alpha * beta,
        size=alpha**2,
        k=jnp.zeros_like(steps),
    )

    def going(t):
        solved = jnp.abs(t.zeta_bar) <= rtol * jnp.sqrt(t.size) * norm(t.r)
        return ~(solved | (norm(t.r) <= tol)) & (t.k < steps)

    end = jax.lax.while_loop(going, lambda t: _step(A, AH, t), start)
    return end.d, end.k, jnp.sqrt(end.size)


def _step(A: Map, AH: Map, t: _Bidiagonal) -> _Bidiagonal:
    Av = A(t.v)
    u, beta = _unit(Av - t.alpha * t.u)
    v, alpha = _unit(AH(u) - beta * t.v)
    # The rotation that makes the bidiagonal matrix upper triangular, and the one of its transpose.
    rho = jnp.hypot(t.alpha_bar, beta)
    c, s = t.alpha_bar / rho, beta / rho
    theta = s * alpha
    theta_bar = t.s_bar * rho
    rho_bar = jnp.hypot(t.c_bar * rho, theta)
    c_bar, s_bar = t.c_bar * rho / rho_bar, theta / rho_bar
    zeta = c_bar * t.zeta_bar

    back = theta_bar * rho / (t.rho * t.rho_bar)
    Ah = Av - t.theta_over_rho * t.Ah
    h_bar, Ah_bar = t.h - back * t.h_bar, Ah - back * t.Ah_bar
    length = zeta / (rho * rho_bar)
    return _Bidiagonal(
        d=t.d + length * h_bar,
        r=t.r - length * Ah_bar,
        u=u,
        v=v,
        h=v - (theta / rho) * t.h,
        h_bar=h_bar,
        Ah=Ah,
        Ah_bar=Ah_bar,
        alpha=alpha,
        alpha_bar=c * alpha,
        theta_over_rho=theta / rho,
        rho=rho,
        rho_bar=rho_bar,
        c_bar=c_bar,
        s_bar=s_bar,
        zeta_bar=-s_bar * t.zeta_bar,
        size=t.size + alpha**2 + beta**2,
        k=t.k + 1,
    )


def _unit(x: Inexact[Array, " n"]) -> tuple[Inexact[Array, " n"], Float[Array, ""]]:
    """x / norm(x), or 0 for x = 0, and norm(x)."""
    size = norm(x)
    return x / jnp.where(size == 0, 1, size), size
