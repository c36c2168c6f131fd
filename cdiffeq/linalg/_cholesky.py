r"""The Cholesky factor of dense Hermitian matrices, batched.

    primal     L L^H = H = (A + A^H) / 2,      L lower triangular with a positive diagonal
    tangent    dL = L Phi(L^-1 dH L^-H)
    adjoint    g_A = herm(L^-H Phi(L^H g_L) L^-1),      herm(M) = (M + M^H) / 2

Phi takes the lower triangle, with half of the diagonal's real part (Murray 2016, arXiv:1602.07527, for
real matrices).
"""

from __future__ import annotations

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact

from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._gauge import diagonal, diagonal_matrix, hermitian
from cdiffeq.linalg._square import all_finite, as_square, matmul, poison_each, raise_for_any
from cdiffeq.wirtinger._rule import adjoint_rule


def cholesky(A: Inexact[Array | np.ndarray, "... n n"]) -> Inexact[Array, "... n n"]:
    r"""The lower Cholesky factor L of a batch of Hermitian positive definite matrices, ``L L^H = A``.

    **Which matrix**: only the Hermitian part (A + A^H) / 2 is read (of a real A the symmetric part). So any
    A may be perturbed, and the gradient is Hermitian: the entries (i, j) and (j, i) share it.

    **Arguments**: `A`, real or complex, shape (..., n, n). **Returns** L, same shape and dtype, zero above
    its diagonal, which is positive; NaN for a matrix that holds NaN or infinity.
    **Raises** `ValueError` where A isn't square, `TypeError` where it isn't floating or complex, in
    single or double precision; and, when run, an error with the smallest eigenvalue if a matrix is not
    positive definite.

    **Derivatives**: ``dL = L Phi(L^-1 dH L^-H)``, where Phi takes the lower triangle with half of the
    diagonal, and the adjoint of it. **Cost**: one factorization; a derivative takes two triangular solves
    with n columns and a product. **Memory**: three matrices for each in the batch.

    >>> cholesky(jnp.array([[4.0, 2j], [-2j, 5.0]]))
    Array([[2.+0.j, 0.+0.j],
           [0.-1.j, 2.+0.j]], dtype=complex128)
    >>> jax.grad(lambda A: cholesky(A)[1, 0])(jnp.array([[4.0, 2.0], [2.0, 5.0]]))
    Array([[-0.125,  0.25 ],
           [ 0.25 ,  0.   ]], dtype=float64)
    """
    A = as_square("cholesky", "A", A)
    L = _cholesky(A)
    finite = all_finite(A)
    failed = finite & ~all_finite(L)
    message = lambda smallest: (
        "cholesky: the Hermitian part of A must be positive definite; its smallest eigenvalue is "
        f"{smallest:.3g}."
    )
    smallest = _smallest_eigenvalue(jax.lax.stop_gradient(A), failed)
    return raise_for_any(poison_each(L, ~finite), failed, message, smallest)


@adjoint_rule
def _cholesky(A: Inexact[Array, "... n n"]) -> Inexact[Array, "... n n"]:
    """NaN where A is not positive definite."""
    return jax.lax.linalg.cholesky(hermitian(A), symmetrize_input=False)


@_cholesky.def_tangent
def _(args, L, dargs):
    E = _divide(hermitian(dargs[0]), L)
    return matmul(L, _phi(adjoint(_divide(adjoint(E), L))))


@_cholesky.def_adjoint
def _(args, L, g):
    E = _divide(_phi(matmul(adjoint(L), g)), L, left_side=False)
    return (hermitian(_divide(E, L, transpose_a=True, conjugate_a=True)),)


def _divide(
    B: Inexact[Array, "... n n"],
    L: Inexact[Array, "... n n"],
    *,
    left_side: bool = True,
    transpose_a: bool = False,
    conjugate_a: bool = False,
) -> Inexact[Array, "... n n"]:
    """L^-1 B, B L^-1 or L^-H B."""
    return jax.lax.linalg.triangular_solve(
        L, B, left_side=left_side, lower=True, transpose_a=transpose_a, conjugate_a=conjugate_a
    )


def _phi(E: Inexact[Array, "... n n"]) -> Inexact[Array, "... n n"]:
    """The lower triangle, with half of the diagonal's real part: it is its own adjoint."""
    half = diagonal(E).real / 2
    return jnp.tril(E, -1) + diagonal_matrix(half.astype(E.dtype))


@jax.jit
def _smallest_eigenvalue(
    A: Inexact[Array, "... n n"], failed: Bool[Array, "..."]
) -> Float[Array, "..."]:
    """That of the Hermitian part, computed only if a matrix of the batch failed."""
    if A.size == 0:
        return jnp.zeros(failed.shape, A.real.dtype)
    smallest = lambda: jnp.min(jnp.linalg.eigvalsh(hermitian(A)), axis=-1)
    none = lambda: jnp.zeros(failed.shape, A.real.dtype)
    return jax.lax.cond(eqxi.unvmap_any(failed), smallest, none)
