r"""The principal square root of dense matrices, batched.

    primal     X^2 = A,     eigenvalues of X in the open right half plane
    tangent    X dX + dX X = dA
    adjoint    X^H Y + Y X^H = g,     g_A = Y

With the Schur form ``A = U T U^H`` it is ``X = U R U^H``, ``R^2 = T``, where R is computed column by column
(Björck and Hammarling 1983, doi:10.1016/0024-3795(83)80010-X); and that is the Schur form of X, by which the
derivatives' equations are solved.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Inexact

from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._schur import Schur, adjoint_schur, from_schur_basis, schur
from cdiffeq.linalg._square import all_finite, as_square, frobenius, poison_each, raise_for_any
from cdiffeq.linalg._sylvester import solve_sylvester
from cdiffeq.wirtinger._rule import adjoint_rule


def sqrtm(A: Inexact[Array | np.ndarray, "... n n"]) -> Inexact[Array, "... n n"]:
    r"""The principal square root of a batch of dense matrices.

    It exists, and is unique and differentiable, where no eigenvalue of A lies on the closed negative real
    axis. Real matrices have real roots then. For a positive semidefinite A with an eigenvalue zero, such as
    a pure state, take a function of Hermitian matrices.

    **Arguments**: `A`, real or complex, shape (..., n, n). **Returns** X with X X = A, same shape and
    dtype; NaN for a matrix that holds NaN or infinity. **Raises** `ValueError` where A isn't square,
    `TypeError` where it isn't floating or complex, in single or double precision; and, when run, an error
    with the eigenvalue if one is within ``n eps norm(A)`` (Frobenius) of the closed negative real axis.

    **Derivatives**: one Sylvester equation each, by the Schur form of the value. **Method**: Björck and
    Hammarling 1983, doi:10.1016/0024-3795(83)80010-X, in complex arithmetic also for real matrices. The Schur
    form is LAPACK's: on a GPU it is computed on the host. **Cost**: about 30 n^3 operations, a derivative
    10 n^3. **Memory**: about five complex matrices for each in
    the batch, in a derivative eight.

    >>> sqrtm(jnp.array([[1.0, 2j], [0.0, 9.0]]))
    Array([[1.+0.j , 0.+0.5j],
           [0.+0.j , 3.+0.j ]], dtype=complex128)
    >>> jax.grad(lambda a: sqrtm(jnp.array([[a, 1.0], [0.0, 4.0]]))[0, 1])(4.0)
    Array(-0.015625, dtype=float64, weak_type=True)
    """
    A = as_square("sqrtm", "A", A)
    U, T = schur(A)
    X = _sqrtm(A, Schur(U, sqrt_of_triangular(T)))
    return require_principal("sqrtm", "square root", A, T, X)


@adjoint_rule(nondiff=("root",))
def _sqrtm(A: Inexact[Array, "... n n"], root: Schur) -> Inexact[Array, "... n n"]:
    """The root, whose Schur form is known."""
    return from_schur_basis(root.T, root, root, A.dtype)


@_sqrtm.def_tangent
def _(args, X, dargs):
    root = args[1]
    return solve_sylvester(X, X, dargs[0], root, root)


@_sqrtm.def_adjoint
def _(args, X, g):
    root = adjoint_schur(args[1])
    return (solve_sylvester(adjoint(X), adjoint(X), g, root, root),)


@jax.jit  # compiled once, outside of any other jit as well
@functools.partial(jnp.vectorize, signature="(n,n)->(n,n)")
def sqrt_of_triangular(T: Complex[Array, "n n"]) -> Complex[Array, "n n"]:
    """R with R R = T, both upper triangular.

    Its column r above r_kk solves ``(R + r_kk I) r = t``, with the columns of R before it.
    """
    n = len(T)
    if n == 0:
        return T
    roots = jnp.sqrt(jnp.diagonal(T))
    above = jnp.triu(T, 1)
    eye = jnp.eye(n, dtype=T.dtype)

    def column(k, R):
        r = jax.lax.linalg.triangular_solve(R + roots[k] * eye, above[:, k, None], left_side=True)
        return R.at[:, k].add(r[:, 0])

    return jax.lax.fori_loop(1, n, column, jnp.diag(roots))


def require_principal(
    function: str,
    what: str,
    A: Inexact[Array, "... n n"],
    T: Complex[Array, "... n n"],
    result: Inexact[Array, "... n n"],
) -> Inexact[Array, "... n n"]:
    """`result`, unless the triangular T has an eigenvalue on the closed negative real axis."""
    n = T.shape[-1]
    finite = all_finite(A)
    result = poison_each(result, ~finite)
    if T.size == 0:
        return result
    eigenvalues = jnp.diagonal(T, axis1=-2, axis2=-1)
    distance = jnp.where(eigenvalues.real > 0, jnp.abs(eigenvalues), jnp.abs(eigenvalues.imag))
    nearest = jnp.argmin(distance, axis=-1)[..., None]
    pick = lambda x: jnp.take_along_axis(x, nearest, axis=-1)[..., 0]
    failed = finite & ~(pick(distance) > n * float(jnp.finfo(T.dtype).eps) * frobenius(T))
    message = lambda re, im: (
        f"{function}: A has the eigenvalue {re:.3g}{im:+.3g}j, to working precision on the closed "
        f"negative real axis, where there is no principal {what}."
    )
    return raise_for_any(result, failed, message, pick(eigenvalues.real), pick(eigenvalues.imag))
