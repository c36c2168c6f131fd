r"""The complex Schur form ``A = U T U^H`` of dense matrices, batched: U unitary, T upper triangular.

It has no derivative here: what is computed from it (`sylvester`, `sqrtm`, `logm`) has one of its own. Its
adjoint is the form of A^H, with ``J`` the reversal of an order: ``A^H = (U J) (J T^H J) (U J)^H``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Complex, Inexact

from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._square import all_finite, matmul


class Schur(NamedTuple):
    """``A = U T U^H``."""

    U: Complex[Array, "... n n"]
    T: Complex[Array, "... n n"]


@jax.jit
def schur(A: Inexact[Array, "... n n"]) -> Schur:
    """The complex Schur form of A, by LAPACK: on the host where there is no such routine.

    JAX has it on a CPU; elsewhere the matrix goes to the host and back. Of a matrix that holds NaN
    or infinity it is that of zero: callers mark their result.
    """
    A = jax.lax.stop_gradient(A)
    A = jnp.where(all_finite(A)[..., None, None], A, 0)
    A = A.astype(jnp.result_type(A.dtype, jnp.complex64))
    return Schur(*jax.lax.platform_dependent(A, cpu=_by_jax, default=_on_the_host))


def adjoint_schur(factors: Schur) -> Schur:
    """The Schur form of A^H."""
    return Schur(jnp.flip(factors.U, -1), jnp.flip(adjoint(factors.T), (-2, -1)))


def to_schur_basis(C: Array, left: Schur, right: Schur) -> Complex[Array, "... m n"]:
    """U^H C V."""
    return matmul(matmul(adjoint(left.U), C), right.U)


def from_schur_basis(C: Array, left: Schur, right: Schur, dtype: np.dtype) -> Array:
    """U C V^H, of which the real part is all there is where the problem is real."""
    C = matmul(matmul(left.U, C), adjoint(right.U))
    return C if jnp.issubdtype(dtype, jnp.complexfloating) else C.real


def _by_jax(A: Complex[Array, "... n n"]) -> tuple[Array, Array]:
    T, U = jax.lax.linalg.schur(A)
    return U, T


def _on_the_host(A: Complex[Array, "... n n"]) -> tuple[Array, Array]:
    shape = jax.ShapeDtypeStruct(A.shape, A.dtype)
    return jax.pure_callback(_of_batch, (shape, shape), A, vmap_method="broadcast_all")


def _of_batch(A: np.ndarray | Array) -> tuple[np.ndarray, np.ndarray]:
    A = np.asarray(A)
    U, T = np.empty_like(A), np.empty_like(A)
    for i in np.ndindex(A.shape[:-2]):
        T[i], U[i] = scipy.linalg.schur(A[i], output="complex") if A[i].size else (A[i], A[i])
    return U, T
