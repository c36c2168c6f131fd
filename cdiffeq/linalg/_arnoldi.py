r"""Arnoldi's process: an orthonormal basis Q of the Krylov space of A and v, with

    A Q = Q H + beta q e_K^T,     Q^H Q = 1,     Q e_1 = v / |v|.

Of a Hermitian A it is Lanczos' process, with all vectors kept orthogonal to one another (Paige 1972 explains
what comes of leaving that out, doi:10.1093/imamat/10.3.373).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact


class Basis(NamedTuple):
    """What Arnoldi's process gives.

    - `Q`: the basis, one vector in each row, the next one q in the last; zero after a breakdown.
    - `H`: A in the basis; Hermitian and tridiagonal only up to rounding, where A is Hermitian.
    - `beta`: the norm of what leads out of the space; zero after a breakdown.
    - `norm`: the norm of v.
    """

    Q: Inexact[Array, "rows n"]
    H: Inexact[Array, "K K"]
    beta: Float[Array, ""]
    norm: Float[Array, ""]


def arnoldi(
    mv: Callable[[Inexact[Array, " n"]], Inexact[Array, " n"]], v: Inexact[Array, " n"], K: int
) -> Basis:
    """K steps of Arnoldi's process, each vector orthogonalised twice against all before it."""
    norm = two_norm(v)
    dtype = jax.eval_shape(mv, v).dtype
    Q = jnp.zeros((K + 1, v.shape[0]), dtype).at[0].set(v / jnp.where(norm == 0, 1, norm))
    H = jnp.zeros((K + 1, K), dtype)
    tiny = 10 * jnp.finfo(dtype).eps

    def step(j, state):
        Q, H = state
        w = mv(Q[j])
        before = two_norm(w)
        w, h = orthogonalise(Q, w)
        beta = two_norm(w)
        beta = jnp.where(beta > tiny * before, beta, 0)  # the rest would be rounding alone
        Q = Q.at[j + 1].set(w * jnp.where(beta > 0, 1 / jnp.where(beta > 0, beta, 1), 0))
        return Q, H.at[:, j].set(h.at[j + 1].set(beta.astype(dtype)))

    Q, H = jax.lax.fori_loop(0, K, step, (Q, H))
    return Basis(Q, H[:K], H[K, K - 1].real, norm)


def orthogonalise(
    Q: Inexact[Array, "m n"], w: Inexact[Array, " n"]
) -> tuple[Inexact[Array, " n"], Inexact[Array, " m"]]:
    """w less its parts h along the rows of Q, which are orthonormal or zero; and h.

    Twice, since the first time leaves rounding of w as a whole (Giraud, Langou and Rozloznik 2005,
    doi:10.1016/j.camwa.2005.08.009).
    """
    h = jnp.zeros(Q.shape[0], Q.dtype)
    for _ in range(2):
        part = jnp.conj(Q) @ w
        w, h = w - part @ Q, h + part
    return w, h


def two_norm(x: Inexact[Array, "..."]) -> Float[Array, ""]:
    """The Euclidean norm of all entries."""
    return jnp.sqrt(jnp.sum(jnp.real(x) ** 2 + jnp.imag(x) ** 2))
