r"""Eigenvalues and eigenvectors of Hermitian matrices, batched.

    H U = U W,        U^H U = 1,        W = diag(w), ascending.

Inside, W is a matrix of diagonal blocks, one for each group of equal eigenvalues. As H moves, W_b moves
as a whole, dW_b = (U^H dH U)_b, and U_b is carried along without turning within the group:

    dU = U X,      X w - w X = M + R X - X R,      M = U^H dH U,      R = W - w,      X_b = 0,

so X = F o (M + R X - X R) with F_ij = 1 / (w_j - w_i) and 0 in a block. R is zero, but where an eigenvalue
splits it moves, and derivatives of X need it. Here o multiplies entry by entry. Last, each vector turns
such that its pivot stays real (`_gauge.py`). The adjoint is

    g_H = herm(U (g_W in the blocks + B + F o (R B - B R)) U^H),      B = F o (U^H P* g_U).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._gauge import (
    blocks,
    diagonal,
    diagonal_matrix,
    hermitian,
    imaginary_overlaps,
    phases,
    poison_split,
    turn,
    turn_adjoint,
)
from cdiffeq.linalg._square import all_finite, as_square, matmul
from cdiffeq.wirtinger._rule import adjoint_rule


class EighResult(NamedTuple):
    """What `eigh` returns: real ascending eigenvalues (..., n), unit vectors in columns (..., n, n)."""

    eigenvalues: Float[Array, "... n"]
    eigenvectors: Inexact[Array, "... n n"]


def eigh(H: Inexact[Array | np.ndarray, "... n n"]) -> EighResult:
    r"""Eigenvalues and orthonormal eigenvectors of a batch of Hermitian matrices.

    `H U = U diag(w)`, by LAPACK's divide and conquer (cuSOLVER on a GPU). `H` stands for its Hermitian
    part, (H + H^H) / 2: of any H that is a function, and its gradient is Hermitian.

    **Phases**: in each vector the first entry whose modulus is more than 0.55 of the largest is real and
    positive. Derivatives are those of the vectors so fixed. Where another entry takes over, the vector
    jumps by a phase, a sign if H is real: there and only there it has no derivative though its eigenvalue
    is simple, and what is given is the derivative on one side. Nothing that phases leave alone notices.

    **Arguments**: `H`, real or complex, shape (..., n, n), n at least 1. **Returns** `eigenvalues`, real,
    ascending, (..., n), and `eigenvectors`, in columns, (..., n, n), of H's dtype; NaN alone for a matrix
    that holds NaN or infinity. **Raises** `ValueError` where H isn't square or has no rows, `TypeError`
    where it isn't floating or complex, in single or double precision.

    **Equal eigenvalues.** Those whose neighbours are within 32 n eps max|w| of each other make a block. A
    block determines its projector U_b U_b^H and symmetric functions of its eigenvalues, like their sum:
    their first derivatives are right, at exactly equal eigenvalues too, and so are the second ones of
    projectors and of the sum. Eigenvalues close to each other but beyond the tolerance are differentiated
    as they are, with a relative error of eps norm(H) / gap.

    What else is made of a block is not right there. A single eigenvalue or eigenvector has no derivative.
    A matrix function U diag(f(w)) U^H has one, but not through its parts, nor have the second derivatives
    of other symmetric functions than the sum: use `funm`, and its trace, which are right at any spectrum.
    Where a function tells the eigenvalues of a block apart, as these do, its gradient is NaN; in forward
    mode, and where only the vectors of a block are told apart, what comes out is finite and describes
    vectors that aren't turned within the block.

    **Derivatives** (Magnus 1985, doi:10.1017/S0266466600011129; M. Giles 2008,
    doi:10.1007/978-3-540-68942-3_4; here for complex vectors of fixed phase): any order at simple
    eigenvalues, from no more than products. **Cost**: about 10 n^3; a derivative takes five products of
    n x n matrices. **Memory**: the matrix, the vectors and n^2 numbers more.

    >>> import jax, jax.numpy as jnp
    >>> w, U = eigh(jnp.array([[0.0, -1j], [1j, 0.0]]))
    >>> w.round(12)
    Array([-1.,  1.], dtype=float64)
    >>> (U * jnp.sqrt(2)).round(12) + 0.0
    Array([[1.+0.j, 1.+0.j],
           [0.-1.j, 0.+1.j]], dtype=complex128)
    >>> ground = lambda t: jnp.sum(eigh(jnp.diag(jnp.array([0.0, t, 3.0]))).eigenvalues[:2])
    >>> jax.grad(ground)(0.0)  # the eigenvalue 0 is double there
    Array(1., dtype=float64, weak_type=True)
    """
    H = as_square("eigh", "H", H)
    if H.shape[-1] == 0:
        raise ValueError(f"eigh: H must have at least one row; got shape {H.shape}.")
    W, U = block_eigh(H)
    return EighResult(diagonal(W).real, U)


@adjoint_rule
def block_eigh(
    H: Inexact[Array, "... n n"],
) -> tuple[Inexact[Array, "... n n"], Inexact[Array, "... n n"]]:
    """(W, U) of the Hermitian part of H; W is diagonal, its derivative has blocks."""
    finite = all_finite(H)[..., None, None]
    w, U = jnp.linalg.eigh(jnp.where(finite, hermitian(H), 0), symmetrize_input=False)
    U = U * phases(U)[..., None, :]
    W = diagonal_matrix(w).astype(U.dtype)
    return jnp.where(finite, W, jnp.nan), jnp.where(finite, U, jnp.nan)


@block_eigh.def_tangent
def _tangent(args, out, dargs):
    W, U = out
    same, F, R = _blocks(W)
    M = matmul(matmul(adjoint(U), hermitian(dargs[0])), U)
    X = F * M
    dU = matmul(U, X + F * _commutator(R, X))
    dU = dU + 1j * U * turn(U, dU)[..., None, :] if jnp.iscomplexobj(U) else dU
    return jnp.where(same, M, 0), dU


@block_eigh.def_adjoint
def _adjoint(args, out, g):
    W, U = out
    gW, gU = g
    same, F, R = _blocks(W)
    gU = gU + turn_adjoint(U, imaginary_overlaps(U, gU))
    B = F * matmul(adjoint(U), gU)
    gM = jnp.where(same, gW, 0) + B + F * _commutator(R, B)
    gH = hermitian(matmul(matmul(U, gM), adjoint(U)))
    return (poison_split(gH, same, diagonal(gW).real),)


def _blocks(W: Inexact[Array, "... n n"]) -> tuple[Array, Array, Array]:
    """Which entries lie in the blocks, F, and R = W - diag(w)."""
    w = diagonal(W).real
    same, F = blocks(w, W.shape[-1])
    return same, F, W - diagonal_matrix(w).astype(W.dtype)


def _commutator(R: Inexact[Array, "... n n"], X: Inexact[Array, "... n n"]) -> Array:
    return matmul(R, X) - matmul(X, R)
