r"""What the decompositions share: the phase of an eigenvector, and the blocks of equal eigenvalues.

    u -> u conj(u_p) / |u_p|,      p = the first entry with |u_p| > 0.55 max |u|.

A vector whose entries are alike in modulus (one of a matrix with some symmetry) keeps its p in a
neighbourhood, which it would not if p were the largest entry: 0.55 is no ratio of simple numbers.
With r any tangent of a unit vector that leaves the phase open, that of the fixed vector is

    P r = r - i u Im(r_p) / u_p,      P* g = g - i e_p Im(u^H g) / u_p.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._square import poison_each


def pivots(U: Inexact[Array, "... m k"]) -> Bool[Array, "... m k"]:
    """Marks one entry in each column: the one that is made real and positive."""
    size = jnp.abs(jax.lax.stop_gradient(U))
    large = size > 0.55 * jnp.max(size, axis=-2, keepdims=True)
    first = jnp.argmax(large, axis=-2)[..., None, :]
    return jax.lax.broadcasted_iota(first.dtype, U.shape, U.ndim - 2) == first


def phases(U: Inexact[Array, "... m k"]) -> Inexact[Array, "... k"]:
    """The factors of modulus 1, or signs, that make the pivots real and positive."""
    pivot = _at(pivots(U), U)
    return jnp.conj(pivot) / jnp.abs(pivot)


def turn(U: Inexact[Array, "... m k"], dU: Inexact[Array, "... m k"]) -> Float[Array, "... k"]:
    """By which angles the columns of U turn, that dU + i U angle keeps the pivots real."""
    at = pivots(U)
    return -_at(at, dU).imag / _at(at, U).real


def turn_adjoint(
    U: Inexact[Array, "... m k"], g: Float[Array, "... k"]
) -> Inexact[Array, "... m k"]:
    """The adjoint of `turn` in dU: -i e_p g / u_p; zero for real vectors."""
    if not jnp.iscomplexobj(U):
        return jnp.zeros_like(U)
    at = pivots(U)
    return jnp.where(at, -1j * (g / _at(at, U).real)[..., None, :], 0).astype(U.dtype)


def _at(at: Bool[Array, "... m k"], U: Inexact[Array, "... m k"]) -> Inexact[Array, "... k"]:
    return jnp.sum(jnp.where(at, U, 0), axis=-2)


def imaginary_overlaps(
    U: Inexact[Array, "... m k"], g: Inexact[Array, "... m k"]
) -> Float[Array, "... k"]:
    """Im(u^H g), the adjoint of angle -> i u angle up to its sign: <g, i u a> = Im(u^H g) a."""
    return jnp.sum(jnp.conj(U) * g, axis=-2).imag


def blocks(
    values: Float[Array, "... n"], rows: int
) -> tuple[Bool[Array, "... n n"], Float[Array, "... n n"]]:
    """Which sorted values belong to one block, and F_ij = 1 / (value_j - value_i) where they don't.

    A new block begins where neighbours are further apart than 32 rows eps max|value|: several times what
    rounding does to equal ones. F is 0 in a block.
    """
    fixed = jax.lax.stop_gradient(values)
    eps = jnp.finfo(values.dtype).eps
    tolerance = 32 * rows * eps * jnp.max(jnp.abs(fixed), axis=-1, keepdims=True)
    jumps = jnp.abs(jnp.diff(fixed, axis=-1)) > tolerance
    number = jnp.cumsum(jumps, axis=-1)
    number = jnp.concatenate([jnp.zeros_like(number, shape=(*values.shape[:-1], 1)), number], -1)
    same = number[..., :, None] == number[..., None, :]
    gaps = values[..., None, :] - values[..., :, None]
    return same, jnp.where(same, 0, 1 / jnp.where(same, 1, gaps))


def poison_split(
    gradient: Inexact[Array, "... m n"], same: Bool[Array, "... k k"], g: Inexact[Array, "... k"]
) -> Inexact[Array, "... m n"]:
    """The gradient, NaN where the cotangents g of the values in one block differ.

    Then the function tells them apart, as w_1 does, or U diag(f(w)) U^H put together from its parts. The
    one has no derivative; the other has one, which the derivatives of the parts don't determine.
    """
    size = jnp.max(jnp.abs(g), axis=-1)[..., None, None]
    differ = jnp.abs(g[..., :, None] - g[..., None, :]) > jnp.finfo(g.dtype).eps ** 0.5 * size
    return poison_each(gradient, jnp.any(same & differ, axis=(-2, -1)))


def hermitian(A: Inexact[Array, "... n n"]) -> Inexact[Array, "... n n"]:
    """The Hermitian part (A + A^H) / 2."""
    return (A + adjoint(A)) / 2


def skew(A: Inexact[Array, "... n n"]) -> Inexact[Array, "... n n"]:
    """The anti-Hermitian part (A - A^H) / 2."""
    return (A - adjoint(A)) / 2


def diagonal(A: Inexact[Array, "... n n"]) -> Inexact[Array, "... n"]:
    """The diagonal, as a vector."""
    return jnp.diagonal(A, axis1=-2, axis2=-1)


def diagonal_matrix(d: Inexact[Array, "... n"]) -> Inexact[Array, "... n n"]:
    """The matrix with the diagonal d."""
    return d[..., None] * jnp.eye(d.shape[-1], dtype=d.dtype).reshape(
        (1,) * (d.ndim - 1) + (d.shape[-1],) * 2
    )
