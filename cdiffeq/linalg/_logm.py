r"""The principal logarithm of dense matrices, batched.

    primal     exp(X) = A,     eigenvalues of X with imaginary parts in (-pi, pi)
    tangent    dX = L(A, dA),    the Fréchet derivative of the logarithm at A
    adjoint    g_A = L(A^H, g) = L(A, g^H)^H

With the Schur form ``A = U T U^H`` it is ``U log(T) U^H``, and by inverse scaling and squaring

    log(T) = 2^s r(T^(1/2^s) - I),      r(Z) = sum_j w_j Z (I + x_j Z)^-1,

where r is the Padé approximant of log(I + Z) of degree 7, with nodes and weights of Gauss and Legendre on
[0, 1] (Al-Mohy and Higham 2012, doi:10.1137/110852553). The Fréchet derivative comes of the same function:

    log [[A, E], [0, A]] = [[log A, L(A, E)], [0, log A]],

a matrix whose Schur form is known with that of A, so that all of it stays triangular. To the matrix of
twice the size it does what Al-Mohy, Higham and Relton 2013, doi:10.1137/120885991, do to its blocks; and
as the derivative is a logarithm itself, so is each further one.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._schur import Schur, from_schur_basis, schur, to_schur_basis
from cdiffeq.linalg._sqrtm import require_principal, sqrt_of_triangular
from cdiffeq.linalg._square import as_square, frobenius, matmul
from cdiffeq.wirtinger._rule import adjoint_rule


def logm(A: Inexact[Array | np.ndarray, "... n n"]) -> Inexact[Array, "... n n"]:
    r"""The principal logarithm of a batch of dense matrices.

    It exists, and is unique and differentiable, where no eigenvalue of A lies on the closed negative real
    axis. Real matrices have real logarithms then.

    **Arguments**: `A`, real or complex, shape (..., n, n). **Returns** X with exp(X) = A, same shape and
    dtype; NaN for a matrix that holds NaN or infinity. **Raises** `ValueError` where A isn't square,
    `TypeError` where it isn't floating or complex, in single or double precision; and, when run, an error
    with the eigenvalue if one is within ``n eps norm(A)`` (Frobenius) of the closed negative real axis.

    **Derivatives**: the Fréchet derivative L(A, dA), with the adjoint L(A^H, g), as a logarithm of twice the
    size. **Method**: inverse scaling and squaring of the Schur form (Al-Mohy and Higham 2012,
    doi:10.1137/110852553; for the derivative 2013, doi:10.1137/120885991), in complex arithmetic also for
    real matrices. The Schur form is LAPACK's: on a GPU it is computed on the host. **Cost**: about
    (30 + 2 s) n^3 operations with s square roots, a derivative up to 8 times the second part.
    **Memory**: some 20 complex matrices for each in the batch, some 70 in a derivative.

    >>> logm(jnp.array([[1.0, 2j], [0.0, 1.0]]))
    Array([[0.+0.j, 0.+2.j],
           [0.+0.j, 0.+0.j]], dtype=complex128)
    >>> jax.grad(lambda a: logm(jnp.array([[a, 1.0], [0.0, a]]))[0, 1])(2.0).round(12)
    Array(-0.25, dtype=float64, weak_type=True)
    """
    A = as_square("logm", "A", A)
    factors = schur(A)
    return require_principal("logm", "logarithm", A, factors.T, _logm(A, factors))


@adjoint_rule(nondiff=("factors",))
def _logm(A: Inexact[Array, "... n n"], factors: Schur) -> Inexact[Array, "... n n"]:
    return from_schur_basis(log_of_triangular(factors.T), factors, factors, A.dtype)


@_logm.def_tangent
def _(args, X, dargs):
    A, factors = args
    return _frechet(A, factors, dargs[0])


@_logm.def_adjoint
def _(args, X, g):
    A, factors = args
    return (adjoint(_frechet(A, factors, adjoint(g))),)


def _frechet(A: Array, factors: Schur, E: Array) -> Inexact[Array, "... n n"]:
    """L(A, E), from the logarithm of [[A, E], [0, A]]."""
    n = A.shape[-1]
    if A.size == 0:
        return E
    # In the triangle E has no part in anything but what is linear in it: small, it does not call for
    # more square roots either.
    F = to_schur_basis(jax.lax.stop_gradient(E), factors, factors)
    size = frobenius(F)
    scale = (frobenius(factors.T) / jnp.where(size == 0, 1, size) * 2.0**-20)[..., None, None]
    zero = jnp.zeros_like(F)
    block = Schur(_block(factors.U, zero), _block(factors.T, scale * F))
    return _logm(_block(A, scale * E), block)[..., :n, n:] / scale


def _block(A: Array, E: Array) -> Inexact[Array, "... m m"]:
    """[[A, E], [0, A]]."""
    upper, lower = jnp.concatenate([A, E], -1), jnp.concatenate([jnp.zeros_like(A), A], -1)
    return jnp.concatenate([upper, lower], -2)


# Where the approximant of degree 7 is the logarithm to rounding: Al-Mohy and Higham 2012, table 2.1.
_THETA = 0.288
_NODES, _WEIGHTS = (np.array(x) / 2 for x in np.polynomial.legendre.leggauss(7))
_NODES += 0.5

# Of square roots, which in the end halve the distance to the identity. That of a matrix with a
# logarithm to working precision is below its smallest eigenvalue over n eps.
_MOST = 120


@jax.jit  # compiled once, outside of any other jit as well
@functools.partial(jnp.vectorize, signature="(n,n)->(n,n)")
def log_of_triangular(T: Complex[Array, "n n"]) -> Complex[Array, "n n"]:
    """log(T) of an upper triangular T; NaN if after `_MOST` square roots it is not near the identity.

    What is subtracted from a root is 1, on the diagonal alone, and there a recurrence does it without
    cancellation: sqrt(x) - 1 = (x - 1) / (sqrt(x) + 1) (Al-Mohy 2012, doi:10.1007/s11075-011-9487-7).
    """
    if T.size == 0:
        return T
    minus_one = lambda R, z: jnp.triu(R, 1) + jnp.diag(z)

    def far(state):
        R, z, s = state
        return (_size(minus_one(R, z)) > _THETA) & (s < _MOST)

    def root(state):
        R, z, s = state
        R = sqrt_of_triangular(R)
        return R, z / (1 + jnp.diagonal(R)), s + 1

    eigenvalues = jnp.diagonal(T)
    R, z, s = jax.lax.while_loop(far, root, (T, eigenvalues - 1, jnp.zeros((), jnp.int32)))
    Z = minus_one(R, z)

    def term(node, weight):
        shifted = jnp.eye(len(Z), dtype=Z.dtype) + node * Z
        return weight * jax.lax.linalg.triangular_solve(shifted, Z, left_side=True)

    nodes, weights = jnp.asarray(_NODES, Z.real.dtype), jnp.asarray(_WEIGHTS, Z.real.dtype)
    power = jnp.ldexp(jnp.ones((), Z.real.dtype), s)
    log = power * jnp.sum(jax.vmap(term)(nodes, weights), axis=0)
    log = jnp.triu(log, 1) + jnp.diag(jnp.log(eigenvalues))
    return jnp.where(_size(Z) <= _THETA, log, jnp.nan)


def _size(Z: Complex[Array, "n n"]) -> Float[Array, ""]:
    """A bound of what the powers of Z do, which for a matrix far from normal is well below its norm."""
    norm = lambda Z: jnp.max(jnp.sum(jnp.abs(Z), axis=0))
    size = norm(Z)
    unit = Z / jnp.where(size > 0, size, 1)
    square = matmul(unit, unit)
    return size * jnp.maximum(norm(square) ** (1 / 2), norm(matmul(square, unit)) ** (1 / 3))
