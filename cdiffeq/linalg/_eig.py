r"""Eigenvalues and eigenvectors of general matrices, batched.

    A V = V L,        L = diag(l),        |v_k| = 1.

Inside, L is a matrix of blocks, one for each group of equal eigenvalues, as in `_eigh.py`, and W = V^-1 comes
along: its rows are the left eigenvectors. With M = W dA V,

    dL = M in the blocks,      dV = G (V X),      dW = -W dV W,
    X = F o (M + R X - X R),   R = L - diag(l),   F_ij = 1 / (l_j - l_i) and 0 in a block,

and G keeps each vector's norm and phase, G r = r - v Re(v^H r) - i v Im(r_p) / v_p (`_gauge.py`). R is zero,
but where an eigenvalue splits it moves. The adjoint, o multiplying entry by entry, is

    g_A = W^H (g_L in the blocks + B + F* o (R^H B - B R^H)) V^H,      B = F* o (V^H G* (g_V - W^H g_W W^H)).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Inexact

from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._gauge import (
    diagonal,
    diagonal_matrix,
    imaginary_overlaps,
    phases,
    poison_split,
    turn,
    turn_adjoint,
)
from cdiffeq.linalg._square import all_finite, as_square, matmul, raise_for_any
from cdiffeq.wirtinger._rule import adjoint_rule


class EigResult(NamedTuple):
    """What `eig` returns: complex eigenvalues (..., n), unit vectors in the columns of (..., n, n)."""

    eigenvalues: Complex[Array, "... n"]
    eigenvectors: Complex[Array, "... n n"]


def eig(A: Inexact[Array | np.ndarray, "... n n"]) -> EigResult:
    r"""Eigenvalues and right eigenvectors of a batch of square matrices, A V = V diag(l).

    By LAPACK's QR iteration, in its order. On a GPU by cuSOLVER from 11.7.1 on, else on the host, as
    `jax.lax.linalg.eig` chooses. The left eigenvectors, with y^H A = l y^H, are the rows of V^-1.

    **Gauge**: each vector has norm 1, and the first entry whose modulus is more than 0.55 of the largest is
    real and positive. Derivatives are those of the vectors so fixed. Where another entry takes over, the
    vector jumps by a phase: there it has no derivative though its eigenvalue is simple.

    **Arguments**: `A`, real or complex, shape (..., n, n), n at least 1. **Returns** `eigenvalues`, (..., n),
    and `eigenvectors`, in columns, (..., n, n), both complex in A's precision; NaN alone for a matrix that
    holds NaN or infinity. **Raises** `RuntimeError` at a matrix that is defective to working precision: where
    the condition number of V is above 1 / (8 sqrt(eps)), 8.4e6 in double and 362 in single precision (for
    blocks of Jordan's form, turned at random, it comes out 2 to 10 times that or more). Eigenvalues may be
    off by that number times eps norm(A), and their derivatives, with its square, have no digit left.
    `ValueError` where A isn't square or has no rows, `TypeError` where it isn't floating or complex, in
    single or double precision.

    **Equal eigenvalues** of a matrix that isn't defective: those within 32 n eps max|l| max|y| of each other,
    y the rows of V^-1, make a block. A block determines its projector V_b (V^-1)_b and symmetric functions of
    its eigenvalues, like their sum: their first derivatives are right, and so are the second ones of
    projectors and of the sum. Single eigenvectors and eigenvalues of a block have no derivative, and a matrix
    function V diag(f(l)) V^-1 none through its parts: where a function tells the eigenvalues of a block
    apart, its gradient is NaN; in forward mode, and where only vectors are told apart, what comes out is
    finite and describes vectors that aren't mixed within the block.

    **Derivatives** (Magnus 1985, doi:10.1017/S0266466600011129; C. Boeddeker, P. Hanebrink, L. Drude, J.
    Heymann, R. Haeb-Umbach 2017, arXiv:1701.00392; here for unit vectors of fixed phase): any order at simple
    eigenvalues. **Cost**: about 25 n^3, and 5 n^3 for V^-1 and the condition number; a derivative takes seven
    products of n x n matrices. **Memory**: A, V, V^-1 and n^2 numbers more.

    >>> import jax, jax.numpy as jnp
    >>> l, V = eig(jnp.array([[1.0, 1.0], [0.0, 2.0]]))
    >>> l
    Array([1.+0.j, 2.+0.j], dtype=complex128)
    >>> (V[:, 1] * jnp.sqrt(2)).round(12)
    Array([1.+0.j, 1.+0.j], dtype=complex128)
    >>> slope = lambda t: eig(jnp.array([[1.0, t], [0.0, 2.0]])).eigenvectors[1, 1].real
    >>> print(jax.grad(slope)(1.0).round(6))
    -0.353553
    >>> eig(jnp.array([[1.0, 1.0], [0.0, 1.0]]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    RuntimeError: eig: A is defective to working precision: the eigenvectors have condition number ...
    """
    A = as_square("eig", "A", A)
    if A.shape[-1] == 0:
        raise ValueError(f"eig: A must have at least one row; got shape {A.shape}.")
    L, V, _ = block_eig(A)
    condition = _condition(V)
    limit = 1 / (8 * float(jnp.finfo(A.dtype).eps) ** 0.5)
    failed = all_finite(A) & ~(condition <= limit)
    message = lambda condition: (
        f"eig: A is defective to working precision: the eigenvectors have condition number "
        f"{condition:.2g}, of which at most {limit:.2g} is allowed for {A.dtype}."
    )
    return EigResult(*raise_for_any((diagonal(L), V), failed, message, condition))


def _condition(V: Complex[Array, "... n n"]) -> Array:
    s = jnp.linalg.svd(jax.lax.stop_gradient(V), compute_uv=False)
    return s[..., 0] / s[..., -1]


@adjoint_rule
def block_eig(
    A: Inexact[Array, "... n n"],
) -> tuple[Complex[Array, "... n n"], Complex[Array, "... n n"], Complex[Array, "... n n"]]:
    """(L, V, V^-1); L is diagonal, its derivative has blocks."""
    finite = all_finite(A)[..., None, None]
    l, V = jnp.linalg.eig(jnp.where(finite, A, 0))
    V = V / jnp.linalg.norm(V, axis=-2, keepdims=True)
    V = V * phases(V)[..., None, :]
    L, W = diagonal_matrix(l), jnp.linalg.inv(V)
    or_nan = lambda x: jnp.where(finite, x, jnp.nan)
    return or_nan(L), or_nan(V), or_nan(W)


@block_eig.def_tangent
def _tangent(args, out, dargs):
    L, V, W = out
    same, F, R = _blocks(L, W)
    M = matmul(matmul(W, dargs[0].astype(V.dtype)), V)
    X = F * M
    r = matmul(V, X + F * _commutator(R, X))
    along = jnp.sum(jnp.conj(V) * r, axis=-2).real + 0j
    dV = r - V * along[..., None, :] + 1j * V * turn(V, r)[..., None, :]
    return jnp.where(same, M, 0), dV, -matmul(W, matmul(dV, W))


@block_eig.def_adjoint
def _adjoint(args, out, g):
    L, V, W = out
    gL, gV, gW = g
    same, F, R = _blocks(L, W)
    Wh, Vh, Fh, Rh = adjoint(W), adjoint(V), jnp.conj(F), adjoint(R)
    gV = gV - matmul(Wh, matmul(gW, Wh))
    along = jnp.sum(jnp.conj(V) * gV, axis=-2).real
    gr = gV - V * along[..., None, :] + turn_adjoint(V, imaginary_overlaps(V, gV))
    B = Fh * matmul(Vh, gr)
    gM = jnp.where(same, gL, 0) + B + Fh * _commutator(Rh, B)
    return (poison_split(matmul(matmul(Wh, gM), Vh), same, diagonal(gL)),)


def _blocks(
    L: Complex[Array, "... n n"], W: Complex[Array, "... n n"]
) -> tuple[Bool[Array, "... n n"], Array, Array]:
    """Which eigenvalues are equal, F, and R = L - diag(l)."""
    l = diagonal(L)
    fixed, sensitivity = jax.lax.stop_gradient((l, jnp.linalg.norm(W, axis=-1)))
    eps = jnp.finfo(L.dtype).eps
    tolerance = (
        32 * l.shape[-1] * eps * jnp.max(jnp.abs(fixed), axis=-1) * jnp.max(sensitivity, axis=-1)
    )
    gaps = lambda l: l[..., None, :] - l[..., :, None]
    same = ~(jnp.abs(gaps(fixed)) > tolerance[..., None, None])  # and so is what is NaN
    F = jnp.where(same, 0, 1 / jnp.where(same, 1, gaps(l)))
    return same, F, L - diagonal_matrix(l)


def _commutator(R: Complex[Array, "... n n"], X: Complex[Array, "... n n"]) -> Array:
    return matmul(R, X) - matmul(X, R)
