r"""The singular value decomposition of dense matrices, batched.

    A = U W V^H,        U^H U = V^H V = 1,        W = diag(s), descending.

Inside, W is a matrix of diagonal blocks, one for each group of equal singular values, as in `_eigh.py`: the
vectors of a group are carried along without turning within it, except against each other. With
P = U^H dA V, W^-1 that of the singular values which aren't zero, and R = W - s, which is zero but moves where
a singular value splits,

    dU = U X + (1 - U U^H) dA V W^-1,        X = a o herm(N) + b o skew(N),
    dV = V Y + (1 - V V^H) dA^H U W^-H,      Y = a o herm(N) - b o skew(N),      N = P - X R + R Y,
    dW = herm(P) in the blocks (P itself in that of the zeros),

a_ij = 1 / (s_j - s_i) and 0 in a block, b_ij = 1 / (s_i + s_j) and 0 in that of the zeros; o multiplies
entry by entry. The differences of squares of the usual formula would lose the digits of small singular
values. Last, u_k and v_k turn together such that the pivot of u_k stays real (`_gauge.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact

from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._gauge import (
    blocks,
    diagonal,
    diagonal_matrix,
    hermitian,
    imaginary_overlaps,
    phases,
    poison_split,
    skew,
    turn,
    turn_adjoint,
)
from cdiffeq.linalg._square import all_finite, matmul
from cdiffeq.wirtinger._rule import adjoint_rule


class SVDResult(NamedTuple):
    """What `svd` returns: U (..., m, k), S real and descending (..., k), Vh (..., k, n)."""

    U: Inexact[Array, "... m k"]
    S: Float[Array, "... k"]
    Vh: Inexact[Array, "... k n"]


def svd(A: Inexact[Array | np.ndarray, "... m n"]) -> SVDResult:
    r"""The thin singular value decomposition of a batch of matrices, A = U diag(S) Vh.

    By LAPACK (cuSOLVER on a GPU); k = min(m, n).

    **Phases**: u_k and v_k share one. In each u_k the first entry whose modulus is more than 0.55 of the
    largest is real and positive. Derivatives are those of the vectors so fixed. Where another entry takes
    over, both vectors jump by a phase, a sign if A is real: there they have no derivative though the singular
    value is simple. Nothing that shared phases leave alone notices, like u_k v_k^H.

    **Arguments**: `A`, real or complex, shape (..., m, n), m and n at least 1. **Returns** `U`, (..., m, k),
    and `Vh`, (..., k, n), of A's dtype, and `S`, real, descending, (..., k); NaN alone for a matrix that
    holds NaN or infinity. **Raises** `ValueError` where A isn't a matrix or has no entries, `TypeError` where
    it isn't floating or complex, in single or double precision.

    **Equal singular values.** Those whose neighbours are within 32 max(m, n) eps max(S) of each other make a
    block. One of equal nonzero values determines its projectors U_b U_b^H and V_b V_b^H, U_b V_b^H and
    symmetric functions of its values, like their sum: their first derivatives are right, and so are the
    second ones of all but other symmetric functions than the sum. A single vector or value of a block has no
    derivative, and U_b diag(S_b) V_b^H none through its parts. Where a function tells the values of a block
    apart, as these do, its gradient is NaN; in forward mode, and where only vectors are told apart, what
    comes out is finite and describes vectors that aren't turned within the block.

    **Zero singular values** (a block with 0, by the same tolerance) have none either: |s| has a kink. Where
    m = n their projectors are determined, and so is the projector of whichever factor is square; the others'
    columns are arbitrary and stay where they are. What belongs to the other singular values, like their
    projectors and the matrix without the null part, is right; U diag(S) Vh as a whole is not: its derivative
    lacks (1 - U U^H) dA v for null vectors v. Second derivatives beside zeros are right where m = n, and not
    finite where not. Values close to each other or to 0 but beyond the tolerance are
    differentiated as they are, with a relative error of eps max(S) / gap.

    **Derivatives** (J. Townsend 2016, Differentiating the singular value decomposition; Z.-Q. Wan and S.-X.
    Zhang 2019, arXiv:1909.02659, for complex matrices; here of fixed phase): any order where the singular
    values are distinct and not 0, from no more than products. **Cost**: about 20 m n k; a derivative takes
    some ten products like U^H A V. **Memory**: the vectors, and A and U in the derivative.

    >>> import jax, jax.numpy as jnp
    >>> U, S, Vh = svd(jnp.array([[0.0, 2j], [-1.0, 0.0], [0.0, 0.0]]))
    >>> S.round(12)
    Array([2., 1.], dtype=float64)
    >>> Vh.round(12) + 0.0
    Array([[ 0.+0.j,  0.+1.j],
           [-1.+0.j,  0.+0.j]], dtype=complex128)
    >>> unitary = lambda A: (lambda U, S, Vh: U @ Vh)(*svd(A))  # the nearest unitary matrix
    >>> jax.jvp(unitary, (jnp.eye(2),), (jnp.array([[1.0, 2.0], [0.0, 3.0]]),))[1].round(12) + 0.0
    Array([[ 0.,  1.],
           [-1.,  0.]], dtype=float64)
    """
    A = jnp.asarray(A)
    if not jnp.issubdtype(A.dtype, jnp.inexact) or jnp.finfo(A.dtype).bits < 32:
        raise TypeError(
            f"svd: A must be floating or complex, in single or double precision; got {A.dtype}."
        )
    if A.ndim < 2 or 0 in A.shape[-2:]:
        raise ValueError(f"svd: A must be a matrix with entries, (..., m, n); got shape {A.shape}.")
    U, W, V = block_svd(A)
    return SVDResult(U, diagonal(W).real, adjoint(V))


@adjoint_rule
def block_svd(
    A: Inexact[Array, "... m n"],
) -> tuple[Inexact[Array, "... m k"], Inexact[Array, "... k k"], Inexact[Array, "... n k"]]:
    """(U, W, V); W is diagonal, its derivative has blocks."""
    finite = all_finite(A)[..., None, None]
    U, s, Vh = jnp.linalg.svd(jnp.where(finite, A, 0), full_matrices=False)
    phase = phases(U)[..., None, :]
    W = diagonal_matrix(s).astype(A.dtype)
    or_nan = lambda x: jnp.where(finite, x, jnp.nan)
    return or_nan(U * phase), or_nan(W), or_nan(adjoint(Vh) * phase)


class _Couplings(NamedTuple):
    """What the formulas take from W: see the module's equations."""

    a: Float[Array, "... k k"]
    b: Float[Array, "... k k"]
    R: Inexact[Array, "... k k"]
    inverse: Inexact[Array, "... k k"]  # W^-1 to first order in R
    same: Bool[Array, "... k k"]
    null: Bool[Array, "... k k"]
    # 1; its derivative isn't finite where the formulas' lack a term: at zeros, where m differs from n.
    one: Float[Array, "... 1 1"]

    def turns(self, N: Array) -> tuple[Array, Array]:
        """X and Y of N."""
        even, odd = self.a * hermitian(N), self.b * skew(N)
        return even + odd, even - odd

    def turns_adjoint(self, gX: Array, gY: Array) -> Array:
        """The adjoint of `turns`."""
        return hermitian(self.a * (gX + gY)) + skew(self.b * (gX - gY))

    def rates(self, P: Array) -> Array:
        """dW of P, an orthogonal projection: its own adjoint."""
        blocks = jnp.where(self.same, P, 0)
        return jnp.where(self.null, blocks, hermitian(blocks))


def _couplings(W: Inexact[Array, "... k k"], m: int, n: int) -> _Couplings:
    s = diagonal(W).real
    # With a zero behind them, what belongs to its block is zero.
    same, a = blocks(jnp.concatenate([s, jnp.zeros_like(s[..., :1])], -1), max(m, n))
    zero = same[..., :-1, -1]
    null = zero[..., :, None] & zero[..., None, :]
    b = jnp.where(null, 0, 1 / jnp.where(null, 1, s[..., :, None] + s[..., None, :]))
    inverse = jnp.where(zero, 0, 1 / jnp.where(zero, 1, s))
    R = W - diagonal_matrix(s).astype(W.dtype)
    to_first_order = diagonal_matrix(inverse) - inverse[..., :, None] * R * inverse[..., None, :]
    root = jnp.where(zero, jnp.sqrt(jnp.where(zero, s - jax.lax.stop_gradient(s), 1)), 0)
    one = 1 + (jnp.sum(root, axis=-1) if m != n else 0 * s[..., 0])[..., None, None]
    return _Couplings(a[..., :-1, :-1], b, R, to_first_order, same[..., :-1, :-1], null, one)


@block_svd.def_tangent
def _tangent(args, out, dargs):
    (dA,) = dargs
    U, W, V = out
    m, n, k = U.shape[-2], V.shape[-2], W.shape[-1]
    c = _couplings(W, m, n)
    dA = dA * c.one
    AV, AU = matmul(dA, V), matmul(adjoint(dA), U)
    P = matmul(adjoint(U), AV)
    X, Y = c.turns(P)
    X, Y = c.turns(P - matmul(X, c.R) + matmul(c.R, Y))
    dU, dV = matmul(U, X), matmul(V, Y)
    if m > k:
        dU = dU + matmul(AV - matmul(U, P), c.inverse)
    if n > k:
        dV = dV + matmul(AU - matmul(V, adjoint(P)), adjoint(c.inverse))
    if jnp.iscomplexobj(U):
        angle = 1j * turn(U, dU)[..., None, :]
        dU, dV = dU + U * angle, dV + V * angle
    return dU, c.rates(P), dV


@block_svd.def_adjoint
def _adjoint(args, out, g):
    U, W, V = out
    gU, gW, gV = g
    m, n, k = U.shape[-2], V.shape[-2], W.shape[-1]
    c = _couplings(W, m, n)
    gU = gU + turn_adjoint(U, imaginary_overlaps(U, gU) + imaginary_overlaps(V, gV))
    GU, GV = matmul(adjoint(U), gU), matmul(adjoint(V), gV)
    gN = c.turns_adjoint(GU, GV)
    Rh = adjoint(c.R)
    gP = c.rates(gW) + gN + c.turns_adjoint(-matmul(gN, Rh), matmul(Rh, gN))
    left = matmul(U, gP)
    if m > k:
        left = left + matmul(gU - matmul(U, GU), adjoint(c.inverse))
    gA = matmul(left, adjoint(V))
    if n > k:
        gA = gA + matmul(U, adjoint(matmul(gV - matmul(V, GV), c.inverse)))
    return (poison_split(gA * c.one, c.same, diagonal(gW).real),)
