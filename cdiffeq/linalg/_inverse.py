r"""Inverse and determinant of dense matrices, batched, each from one LU factorization.

    Y = A^-1               dY = - Y dA Y                        g_A = - Y^H g Y^H
    d = det A              dd = sum(C o dA)                     g_A = g conj(C)
    (s, l) = slogdet A     dl + i Im(conj(s) ds) = tr(Y dA)     g_A = (g_l + i Im(conj(s) g_s)) Y^H

C is the matrix of cofactors, ``det(A) A^-T``, a polynomial in the entries of A that exists where A^-1
doesn't. With ``A = U S V^H``, ``phi = det(U) det(V^H)`` and ``F = U^H E V``,

    C     =  phi conj(U) diag(p) V^T,                           p_i  = prod of s_l over l != i,
    DC[E] =  phi conj(U) (diag(q diag(F)) - q o F^T) V^T,       q_ij = prod of s_l over l != i, j,

with ``q_ii = 0``: nothing is divided by, so both are right for every rank of A.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Int

from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._square import all_finite, as_square, matmul, poison_each, raise_for_any
from cdiffeq.wirtinger._rule import adjoint_rule


class Slogdet(NamedTuple):
    """``det A = sign * exp(logabsdet)``, with ``abs(sign) = 1``; or 0 and -inf.

    - `sign`: (...,), with the dtype of A.
    - `logabsdet`: (...,), real.
    """

    sign: Inexact[Array, "..."]
    logabsdet: Float[Array, "..."]


def inv(A: Inexact[Array | np.ndarray, "... n n"]) -> Inexact[Array, "... n n"]:
    r"""The inverse of a batch of dense matrices. To solve equations, take `solve`.

    **Arguments**: `A`, real or complex, shape (..., n, n). **Returns** A^-1, same shape and dtype; NaN
    for a matrix that holds NaN or infinity.

    **Raises** `ValueError` where A isn't square, `TypeError` where it isn't floating or complex, in
    single or double precision; and, when run, an error if a matrix is singular to working precision:
    if relative changes by n eps of its entries could make it so, which is where
    ``n eps sum_ij |(A^-1)_ij A_ji|`` exceeds 1. That measure is blind to the scaling of rows and columns.

    **Derivatives**: ``dY = - Y dA Y``, with the adjoint ``- Y^H g Y^H``. **Cost**: one LU factorization
    and n solves; a derivative takes two products. **Memory**: three matrices for each in the batch.

    >>> inv(jnp.array([[2.0, 1j], [0.0, 1.0]]))
    Array([[0.5+0.j , 0. -0.5j],
           [0. +0.j , 1. +0.j ]], dtype=complex128)
    >>> jax.grad(lambda a: inv(jnp.array([[a, 1.0], [0.0, 1.0]]))[0, 0])(2.0)
    Array(-0.25, dtype=float64, weak_type=True)
    """
    A = as_square("inv", "A", A)
    Y = _inverse(A, _factorize(A))
    regular, nearness = _regular(A, Y)
    message = lambda nearness: (
        "inv: A is singular to working precision: changes of its entries by "
        f"{1 / nearness:.1e} of their size can make it exactly so."
    )
    return raise_for_any(Y, ~regular & all_finite(A), message, nearness)


def det(A: Inexact[Array | np.ndarray, "... n n"]) -> Inexact[Array, "..."]:
    r"""The determinant of a batch of dense matrices.

    **Arguments**: `A`, real or complex, shape (..., n, n). **Returns** det A, shape (...,), same dtype; 1
    for n = 0, NaN for a matrix that holds NaN or infinity. **Raises** `ValueError` where A isn't square,
    `TypeError` where it isn't floating or complex, in single or double precision.

    **Derivatives**, the first and the second, are those of the polynomial that det is, right for every A:
    where A is singular the derivative is the matrix of cofactors, from its singular values, and it is
    zero for a rank below n - 1. A third derivative raises `TypeError`.

    **Cost**: one LU factorization, and for a gradient n solves with it; a singular value decomposition
    where one matrix of the batch is singular to working precision, and for every second derivative.
    **Memory**: two matrices for each in the batch, in a gradient seven.

    >>> det(jnp.array([[1.0, 1j], [1j, 1.0]]))
    Array(2.+0.j, dtype=complex128)
    >>> jax.grad(det)(jnp.array([[1.0, 2.0], [2.0, 4.0]])).round(12)  # a singular matrix
    Array([[ 4., -2.],
           [-2.,  1.]], dtype=float64)
    """
    A = as_square("det", "A", A)
    return _det(A, _factorize(A))


def slogdet(A: Inexact[Array | np.ndarray, "... n n"]) -> Slogdet:
    r"""Phase and logarithm of the modulus of the determinants of a batch of dense matrices.

    **Arguments**: `A`, real or complex, shape (..., n, n). **Returns** a `Slogdet`, ``(sign, logabsdet)``,
    with ``det A = sign exp(logabsdet)``: (0, -inf) for an exactly singular matrix, as in NumPy, (1, 0) for
    n = 0, NaN for a matrix that holds NaN or infinity. **Raises** what `det` does.

    **Derivatives**: ``tr(A^-1 dA)`` is that of the logarithm: its real part is d logabsdet, i sign times its
    imaginary part d sign. NaN where A is singular to working precision, as `inv` measures it: there is
    none. **Cost**: one LU factorization, and for a gradient n solves with it. **Memory**: three matrices
    for each in the batch.

    >>> slogdet(jnp.array([[0.0, -2j], [2.0, 0.0]]))
    Slogdet(sign=Array(0.+1.j, dtype=complex128), logabsdet=Array(1.38629436, dtype=float64))
    >>> jax.grad(lambda A: slogdet(A).logabsdet)(jnp.array([[2.0, 1j], [0.0, 1.0]]))
    Array([[0.5+0.j , 0. +0.j ],
           [0. -0.5j, 1. +0.j ]], dtype=complex128)
    """
    A = as_square("slogdet", "A", A)
    return _slogdet(A, _factorize(A))


class _Factors(NamedTuple):
    """A[perm] = L U, both in one array, and the parity of perm, 1 or -1."""

    lu: Inexact[Array, "... n n"]
    perm: Int[Array, "... n"]
    parity: Int[Array, "..."]


def _factorize(A: Inexact[Array, "... n n"]) -> _Factors:
    """The factorization that a value shares with its derivatives, itself without any."""
    lu, pivots, perm = jax.lax.linalg.lu(jax.lax.stop_gradient(A))
    unmoved = jax.lax.broadcasted_iota(pivots.dtype, pivots.shape, pivots.ndim - 1)
    swaps = jnp.sum(pivots != unmoved, axis=-1)
    return _Factors(lu, perm, 1 - 2 * (swaps % 2))


# The inverse.


@adjoint_rule(nondiff=("factors",))
def _inverse(A: Inexact[Array, "... n n"], factors: _Factors) -> Inexact[Array, "... n n"]:
    """A^-1 by substitution; NaN or infinity from a pivot that is zero."""
    n = A.shape[-1]
    solve = jax.lax.linalg.triangular_solve
    Y = jnp.eye(n, dtype=A.dtype)[factors.perm]
    Y = solve(factors.lu, Y, left_side=True, lower=True, unit_diagonal=True)
    Y = solve(factors.lu, Y, left_side=True, lower=False)
    return poison_each(Y, ~all_finite(A))


@_inverse.def_tangent
def _(args, Y, dargs):
    return -matmul(matmul(Y, dargs[0]), Y)


@_inverse.def_adjoint
def _(args, Y, g):
    return (-matmul(matmul(adjoint(Y), g), adjoint(Y)),)


def _regular(A: Array, Y: Array) -> tuple[Bool[Array, "..."], Float[Array, "..."]]:
    """Whether A is regular to working precision, and 1 / the least relative change that ends it.

    A change of A_ji alone makes A singular if it is -1 / (A^-1)_ij; changes of all entries by a fraction
    1 / sum_ij |(A^-1)_ij A_ji|, with suitable phases, do so to first order.
    """
    A, Y = jax.lax.stop_gradient((A, Y))
    nearness = jnp.sum(jnp.abs(Y) * jnp.abs(jnp.swapaxes(A, -1, -2)), axis=(-2, -1))
    nearness = jnp.where(jnp.isnan(nearness), jnp.inf, nearness)  # of 0 times infinity
    return nearness * (A.shape[-1] * float(jnp.finfo(A.dtype).eps)) <= 1, nearness


# The logarithm of the determinant.


@adjoint_rule(nondiff=("factors",))
def _slogdet(A: Inexact[Array, "... n n"], factors: _Factors) -> Slogdet:
    pivots = jnp.diagonal(factors.lu, axis1=-2, axis2=-1)
    size = jnp.abs(pivots)
    phases = pivots / jnp.where(size == 0, 1, size)
    sign = factors.parity * jnp.prod(phases, axis=-1)
    return poison_each(Slogdet(sign, jnp.sum(jnp.log(size), axis=-1)), ~all_finite(A))


@_slogdet.def_tangent
def _(args, out, dargs):
    Y = _inverse_or_nan(*args)
    dlog = jnp.sum(jnp.swapaxes(Y, -1, -2) * dargs[0], axis=(-2, -1))
    if not jnp.iscomplexobj(Y):
        return Slogdet(jnp.zeros_like(out.sign), dlog)
    return Slogdet(1j * out.sign * dlog.imag, dlog.real)


@_slogdet.def_adjoint
def _(args, out, g):
    Y = _inverse_or_nan(*args)
    g_log = g.logabsdet
    if jnp.iscomplexobj(Y):
        g_log = jax.lax.complex(g_log, jnp.imag(jnp.conj(out.sign) * g.sign))
    return (g_log[..., None, None] * adjoint(Y),)


def _inverse_or_nan(A: Array, factors: _Factors) -> Inexact[Array, "... n n"]:
    Y = _inverse(A, factors)
    return poison_each(Y, ~_regular(A, Y)[0])


# The determinant.


@adjoint_rule(nondiff=("factors",))
def _det(A: Inexact[Array, "... n n"], factors: _Factors) -> Inexact[Array, "..."]:
    d = factors.parity * _product(jnp.diagonal(factors.lu, axis1=-2, axis2=-1))
    return poison_each(d, ~all_finite(A))


@_det.def_tangent
def _(args, d, dargs):
    return jnp.sum(_cofactors(*args) * dargs[0], axis=(-2, -1))


@_det.def_adjoint
def _(args, d, g):
    return (g[..., None, None] * jnp.conj(_cofactors(*args)),)


@adjoint_rule(nondiff=("factors",))
def _cofactors(A: Inexact[Array, "... n n"], factors: _Factors) -> Inexact[Array, "... n n"]:
    """C, the derivative of det: ``det(A) A^-T`` where A is regular, else by singular values."""
    d, Y = _det(A, factors), _inverse(A, factors)
    tiny = 2 * float(jnp.finfo(A.dtype).tiny)
    regular = _regular(A, Y)[0] & (jnp.abs(d) > tiny) & jnp.isfinite(d)
    of_regular = d[..., None, None] * jnp.swapaxes(Y, -1, -2)
    return _cofactors_where(~regular, A, of_regular) if A.size else Y


@jax.jit  # compiled once, outside of any other jit as well
def _cofactors_where(singular: Bool[Array, "..."], A: Array, otherwise: Array) -> Array:
    """The cofactors by singular values for some matrices of the batch, and `otherwise` for others."""

    def by_singular_values():
        U, s, Vh, phi = _svd(A)
        left, right = _products_outside(s)
        C = phi * jnp.conj(matmul(U * (left * right)[..., None, :], Vh))
        return jnp.where(singular[..., None, None], C, otherwise)

    # A condition that isn't mapped, so that under vmap, too, no regular batch is decomposed.
    return jax.lax.cond(eqxi.unvmap_any(singular), by_singular_values, lambda: otherwise)


@_cofactors.def_tangent
def _(args, C, dargs):
    return _derivative_of_cofactors(args[0], dargs[0])


@_cofactors.def_adjoint
def _(args, C, g):
    # sum(G o DC[E]) is symmetric in E and G.
    return (jnp.conj(_derivative_of_cofactors(args[0], jnp.conj(g))),)


def _derivative_of_cofactors(A: Array, E: Array) -> Inexact[Array, "... n n"]:
    """DC[E], the derivative of the cofactors of A along E."""
    if A.size == 0:
        return E
    U, s, Vh, phi = _svd(A)
    q = _products_without_two(s)
    F = matmul(matmul(adjoint(U), E), adjoint(Vh))
    f = jnp.diagonal(F, axis1=-2, axis2=-1)
    core = _diagonal(matmul(q.astype(f.dtype), f[..., None])[..., 0]) - q * jnp.swapaxes(F, -1, -2)
    return phi * matmul(matmul(jnp.conj(U), core), jnp.conj(Vh))


def _svd(A: Array) -> tuple[Array, Array, Array, Array]:
    """U, s, V^H, and det(U) det(V^H), of shape (..., 1, 1)."""
    U, s, Vh = jnp.linalg.svd(A, full_matrices=False)
    phi = _det(U, _factorize(U)) * _det(Vh, _factorize(Vh))
    return U, s, Vh, poison_each(phi, ~all_finite(A))[..., None, None]


def _product(x: Inexact[Array, "... n"]) -> Inexact[Array, "..."]:
    """The product of all x, to which no partial product does harm by overflow or underflow."""
    size = jnp.abs(x)
    usual = (size > 0) & jnp.isfinite(size)
    # Powers of two are taken out, which rounds nothing, so that each product of neighbours is near 1.
    log = jnp.cumsum(jnp.log2(jnp.where(usual, size, 1)), axis=-1)
    exponent = jnp.diff(jnp.round(log).astype(jnp.int32), axis=-1, prepend=0)
    largest = jnp.finfo(x.dtype).maxexp - 2
    exponent = jnp.clip(exponent, -largest, largest)
    power = lambda k: jnp.ldexp(jnp.ones((), size.dtype), k)
    total = jnp.sum(exponent, axis=-1)
    half = total // 2
    return jnp.prod(x * power(-exponent), axis=-1) * power(half) * power(total - half)


def _products_outside(s: Float[Array, "... n"]) -> tuple[Array, Array]:
    """For each i the products of s_l over l < i and over l > i."""
    before = lambda s: jnp.cumprod(
        jnp.concatenate([jnp.ones_like(s[..., :1]), s[..., :-1]], -1), -1
    )
    return before(s), jnp.flip(before(jnp.flip(s, -1)), -1)


@functools.partial(jnp.vectorize, signature="(n)->(n,n)")
def _products_without_two(s: Float[Array, " n"]) -> Float[Array, "n n"]:
    """q_ij, the product of s_l over l != i, j; zero for i = j."""
    n = s.shape[0]
    above = jnp.triu(jnp.ones((n, n), bool), 1)
    s_above = jnp.where(above, s[None, :], 1)
    between = jnp.cumprod(jnp.concatenate([jnp.ones((n, 1), s.dtype), s_above[:, :-1]], 1), 1)
    left, right = _products_outside(s)
    q = jnp.where(above, left[:, None] * between * right[None, :], 0)
    return q + q.T


_diagonal = jnp.vectorize(jnp.diag, signature="(n)->(n,n)")
