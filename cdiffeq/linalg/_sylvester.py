r"""Sylvester's equation for dense matrices, batched, and Lyapunov's.

    primal     A X + X B = C
    tangent    A dX + dX B = dC - dA X - X dB
    adjoint    A^H Y + Y B^H = g,      g_A = - Y X^H,   g_B = - X^H Y,   g_C = Y

With Schur forms ``A = U T U^H`` and ``B = V S V^H`` it is ``T Z + Z S = U^H C V`` for ``X = U Z V^H``,
which is solved column by column (Bartels and Stewart 1972, doi:10.1145/361573.361582). The forms of A and
B serve every derivative: those of A^H and B^H are had from them by reversing an order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Inexact

from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._schur import Schur, adjoint_schur, from_schur_basis, schur, to_schur_basis
from cdiffeq.linalg._square import (
    all_finite,
    as_matrix,
    as_square,
    frobenius,
    matmul,
    poison_each,
    raise_for_any,
)
from cdiffeq.wirtinger._rule import adjoint_rule


def sylvester(
    A: Inexact[Array | np.ndarray, "... m m"],
    B: Inexact[Array | np.ndarray, "... n n"],
    C: Inexact[Array | np.ndarray, "... m n"],
) -> Inexact[Array, "... m n"]:
    r"""X with ``A X + X B = C``, for a batch of dense matrices.

    **Arguments**: `A` (..., m, m), `B` (..., n, n), `C` (..., m, n), real or complex; leading axes
    broadcast. **Returns** X (..., m, n), in their common dtype; NaN where a matrix holds NaN or infinity.

    **Raises** `ValueError` and `TypeError` for shapes and dtypes that don't fit; and, when run, an error if
    an equation is singular to working precision: where A and -B have an eigenvalue in common, or nearly,
    so that relative changes of A and B by (m + n) eps can make it singular. That is judged by one more solve,
    for a right-hand side of its own.

    **Derivatives**: one more solve each, with A and B or with A^H and B^H, by the same Schur forms.
    **Method**: Bartels and Stewart 1972, doi:10.1145/361573.361582, in complex arithmetic also for real
    matrices. The Schur forms are LAPACK's: on a GPU they are computed on the host. **Cost**: about
    25 (m^3 + n^3) + 5 (m^2 n + m n^2) operations, of which a derivative repeats the second part.
    **Memory**: about ten matrices, in a derivative 15.

    >>> A, B = jnp.array([[1.0, 1j], [0.0, 2.0]]), jnp.array([[3.0]])
    >>> sylvester(A, B, jnp.array([[4.0], [5.0]]))
    Array([[1.-0.25j],
           [1.+0.j  ]], dtype=complex128)
    >>> jax.grad(lambda b: sylvester(A, jnp.array([[b]]), jnp.ones((2, 1)))[1, 0].real)(3.0)
    Array(-0.04, dtype=float64, weak_type=True)
    """
    A, B = as_square("sylvester", "A", A), as_square("sylvester", "B", B)
    C = as_matrix("sylvester", "C", C)
    m, n = A.shape[-1], B.shape[-1]
    if C.shape[-2:] != (m, n):
        raise ValueError(
            f"sylvester: with A of shape {A.shape} and B of shape {B.shape}, C must be "
            f"(..., {m}, {n}); got shape {C.shape}."
        )
    return _solve("sylvester", A, B, C, schur(A), schur(B))


def lyapunov(
    A: Inexact[Array | np.ndarray, "... n n"], Q: Inexact[Array | np.ndarray, "... n n"]
) -> Inexact[Array, "... n n"]:
    r"""X with ``A X + X A^H = Q``, for a batch of dense matrices.

    **Arguments**: `A` and `Q` (..., n, n), real or complex; leading axes broadcast. **Returns** X
    (..., n, n), in their common dtype, Hermitian to rounding where Q is Hermitian; NaN where a matrix holds
    NaN or infinity. **Raises** what `sylvester` does; the equation is singular where the sum of an
    eigenvalue of A and the conjugate of another is zero.

    **Derivatives**: with ``A^H Y + Y A = g``, ``g_Q = Y`` and ``g_A = - (Y X^H + Y^H X)``.
    **Method, cost and memory**: those of `sylvester`, with one Schur form.

    >>> lyapunov(jnp.array([[-1.0, 1j], [0.0, -2.0]]), -jnp.diag(jnp.array([6.0, 12.0])))
    Array([[4.+0.j, 0.+1.j],
           [0.-1.j, 3.+0.j]], dtype=complex128)
    """
    A, Q = as_square("lyapunov", "A", A), as_square("lyapunov", "Q", Q)
    if A.shape[-1] != Q.shape[-1]:
        raise ValueError(
            f"lyapunov: A and Q must be of one size; got shapes {A.shape} and {Q.shape}."
        )
    factors = schur(A)
    return _solve("lyapunov", A, adjoint(A), Q, factors, adjoint_schur(factors))


def _solve(function: str, A: Array, B: Array, C: Array, left: Schur, right: Schur) -> Array:
    """The equation of the public functions, whose matrices fit in all but dtype and batch."""
    dtype = jnp.result_type(A.dtype, B.dtype, C.dtype)
    batch = jnp.broadcast_shapes(A.shape[:-2], B.shape[:-2], C.shape[:-2])
    spread = lambda x: jnp.broadcast_to(x, (*batch, *x.shape[-2:]))
    A, B, C = (spread(x.astype(dtype)) for x in (A, B, C))
    cast = jnp.result_type(dtype, jnp.complex64)
    left, right = jax.tree.map(lambda x: spread(x.astype(cast)), (left, right))
    X = solve_sylvester(A, B, C, left, right)

    finite = all_finite(A) & all_finite(B) & all_finite(C)
    nearness = _nearness(left.T, right.T)
    rounding = (A.shape[-1] + B.shape[-1]) * float(jnp.finfo(dtype).eps)
    failed = finite & ~(nearness * rounding < 1)
    other = "A and -A^H" if function == "lyapunov" else "A and -B"
    message = lambda nearness: (
        f"{function}: the equation is singular to working precision: relative changes of "
        f"{1 / nearness:.1e} can give {other} an eigenvalue in common."
    )
    return raise_for_any(poison_each(X, ~finite), failed, message, nearness)


@adjoint_rule(nondiff=("left", "right"))
def solve_sylvester(
    A: Inexact[Array, "... m m"],
    B: Inexact[Array, "... n n"],
    C: Inexact[Array, "... m n"],
    left: Schur,
    right: Schur,
) -> Inexact[Array, "... m n"]:
    """X with A X + X B = C, all of one dtype and batch, from the Schur forms of A and B.

    Infinity or NaN where the equation is singular: whoever calls this checks.
    """
    Z = _triangular(left.T, right.T, to_schur_basis(C, left, right))
    return from_schur_basis(Z, left, right, C.dtype)


@solve_sylvester.def_tangent
def _(args, X, dargs):
    A, B, _, left, right = args
    dA, dB, dC, *_ = dargs
    return solve_sylvester(A, B, dC - matmul(dA, X) - matmul(X, dB), left, right)


@solve_sylvester.def_adjoint
def _(args, X, g):
    A, B, _, left, right = args
    Y = solve_sylvester(adjoint(A), adjoint(B), g, adjoint_schur(left), adjoint_schur(right))
    return -matmul(Y, adjoint(X)), -matmul(adjoint(X), Y), Y


@jax.jit  # compiled once, outside of any other jit as well
@functools.partial(jnp.vectorize, signature="(m,m),(n,n),(m,n)->(m,n)")
def _triangular(
    T: Complex[Array, "m m"], S: Complex[Array, "n n"], F: Complex[Array, "m n"]
) -> Complex[Array, "m n"]:
    """Z with T Z + Z S = F for upper triangular T and S."""
    eye = jnp.eye(len(T), dtype=T.dtype)

    def column(k, Z):
        rest = F[:, k] - matmul(Z, S[:, k])  # Z is zero from its column k on
        z = jax.lax.linalg.triangular_solve(T + S[k, k] * eye, rest[:, None], left_side=True)
        return Z.at[:, k].set(z[:, 0])

    return jax.lax.fori_loop(0, F.shape[1], column, jnp.zeros_like(F)) if F.size else F


def _nearness(T: Complex[Array, "... m m"], S: Complex[Array, "... n n"]) -> Array:
    """1 / the least relative change of T and S that makes the equation singular, within some factor.

    That is (norm T + norm S) times the norm of the inverse. A right-hand side without any structure
    understates the latter by about sqrt(m n), its own norm where each entry has modulus 1.
    """
    m, n = T.shape[-1], S.shape[-1]
    i = jnp.arange(m, dtype=T.real.dtype)[:, None] + 1
    j = jnp.arange(n, dtype=T.real.dtype)[None, :] + 1
    phase = jnp.sqrt(2.0) * i + jnp.sqrt(3.0) * j + jnp.sqrt(5.0) * i * j
    W = jnp.broadcast_to(jnp.exp(2j * phase).astype(T.dtype), (*T.shape[:-2], m, n))
    nearness = (frobenius(T) + frobenius(S)) * frobenius(_triangular(T, S, W))
    return jnp.where(jnp.isfinite(nearness), nearness, jnp.inf)
