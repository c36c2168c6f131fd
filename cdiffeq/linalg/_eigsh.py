r"""The lowest or the highest eigenpairs of a large Hermitian operator: ``A U = U diag(w)``, U (n, k).

With B = dA U, P = 1 - U U^H and F_ij = 1 / (w_j - w_i), zero where the two are equal,

    dw_i = Re(U^H B)_ii,      dU = U (F o U^H B) + X,      P (A - w_i) P x_i = - P b_i,
    g_B = U diag(g_w) + U (F o U^H g_U) + Y,               P (A - w_i) P y_i = - P (g_U)_i,

and the parameters of A get the pull-back of g_B along ``p -> A(p) U``. On the complement of the outermost
vectors A - w_i is definite, so that conjugate gradients solve for x_i and y_i.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from cdiffeq._arrays import as_array, require_finite
from cdiffeq._errors import raise_if
from cdiffeq.linalg._arnoldi import orthogonalise, two_norm
from cdiffeq.linalg._cg import CG
from cdiffeq.linalg._gauge import blocks, imaginary_overlaps, phases, turn, turn_adjoint
from cdiffeq.linalg._operator import Function, Operator, as_operator
from cdiffeq.linalg._padded import padded
from cdiffeq.linalg._solve import solve
from cdiffeq.linalg._solver import Solver
from cdiffeq.linalg._spectrum import adjoint_sign
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule


class EigshResult(NamedTuple):
    """What `eigsh` returns: real ascending eigenvalues (k,), unit vectors in columns (n, k)."""

    eigenvalues: Float[Array, " k"]
    eigenvectors: Inexact[Array, "n k"]


class _Options(NamedTuple):
    k: int
    highest: bool
    dimension: int
    tol: float
    max_restarts: int
    solver: Solver


def eigsh(
    A: Any,
    k: int,
    which: Literal["SA", "LA"] = "SA",
    *,
    v0: Any = None,
    dimension: int | None = None,
    tol: float | None = None,
    max_restarts: int = 300,
    solver: Solver | None = None,
) -> EigshResult:
    r"""The k lowest or highest eigenvalues of a Hermitian operator, and their eigenvectors.

    Lanczos' process with thick restarts (Wu and Simon 2000, doi:10.1137/S0895479898334605), all vectors kept
    orthogonal. An eigenvalue of which there are several is found as often as it is among the k where the
    process ends in it by itself, or rounding shows the others; as in every Krylov method that isn't certain.

    **Arguments**

    - `A`: real symmetric or complex Hermitian, (n, n): an array, a matrix of `scipy.sparse`, a BCOO or BCSR
      matrix, an operator of lineax, or a function x -> A x of vectors like `v0`, which may close over traced
      values.
    - `k`: how many, 1 to n. `which`: "SA", the lowest, or "LA", the highest.
    - `v0`: where the process starts, (n,); random, and always the same, by default. For a function it is
      needed, and says its shape and dtype.
    - `dimension`: of the space; by default 2 k + 10, at least 24. `max_restarts`: more is an error.
    - `tol`: what ``norm(A u - w u)`` is at most, relative to the largest Ritz value; 100 eps by default.
    - `solver`: for the derivatives, of the definite systems above; ``CG(rtol=eps^(2/3))`` by default.

    **Phases** are those of `eigh`: in each vector the first entry whose modulus is more than 0.55 of the
    largest is real and positive, and derivatives are those of the vectors so fixed.

    **Raises** `ValueError` and `TypeError` for arguments that don't fit; when run, an error where A isn't
    Hermitian, the residuals don't come below `tol`, or a derivative's solve fails.

    **Derivatives** of every order, one solve for each pair and order. The values' alone need no solve in
    the first order, and none is done where the vectors aren't used. Of equal eigenvalues among the k those
    of symmetric functions and of the projector are right, as for `eigh`; where the eigenvalue next to the
    k is equal to one of these, the vectors have no derivative, and the solve raises.

    **Cost**: `dimension` products with A, then half as many for each restart. **Memory**: `dimension`
    vectors.

    >>> H = np.diag([3.0, 1.0, 2.0, 5.0])
    >>> w, U = eigsh(H, 2)
    >>> w.round(12)
    Array([1., 2.], dtype=float64)
    >>> jax.grad(lambda H: eigsh(H, 1).eigenvalues[0])(H).round(12)[1] + 0.0
    Array([0., 1., 0., 0.], dtype=float64)
    """
    if v0 is not None:
        v0 = as_array("v0", v0)
        require_finite("v0", v0)
    operator = padded(as_operator("A", A, like=v0))
    m, n = operator.shape
    if m != n:
        raise ValueError(f"eigsh: A must be square, got shape {operator.shape}.")
    if not isinstance(k, int) or not 1 <= k <= n:
        raise ValueError(f"eigsh: k must be an integer from 1 to {n}, got {k!r}.")
    if which not in ("SA", "LA"):
        raise ValueError(f'eigsh: which must be "SA" or "LA", got {which!r}.')
    if v0 is not None and v0.shape != (n,):
        raise ValueError(f"eigsh: v0 must be of shape ({n},), got {v0.shape}.")
    dimension = max(2 * k + 10, 24) if dimension is None else dimension
    if dimension < min(k + 2, n):
        raise ValueError(f"eigsh: dimension must be at least k + 2 = {k + 2}, got {dimension}.")
    if v0 is None:
        v0 = jax.random.normal(jax.random.key(0), (n,), operator.dtype)
    eps = float(jnp.finfo(operator.dtype).eps)
    options = _Options(
        k,
        which == "LA",
        min(dimension, n),
        100 * eps if tol is None else tol,
        max_restarts,
        CG(rtol=eps ** (2 / 3)) if solver is None else solver,
    )
    params, fixed = eqx.partition(operator, eqx.is_inexact_array)
    v0 = jax.lax.stop_gradient(v0).astype(operator.dtype)
    # Of a function there is nothing by which the same program could be found again.
    run = _pairs if isinstance(operator, Function) else _compiled_pairs
    return EigshResult(*run(params, fixed, v0, options))


@adjoint_rule(nondiff=("fixed", "v0", "options"))
def _pairs(
    params: Any, fixed: Any, v0: Inexact[Array, " n"], options: Any
) -> tuple[Float[Array, " k"], Inexact[Array, "n k"]]:
    A = eqx.combine(params, fixed)
    message = "eigsh: A isn't Hermitian."
    v0 = raise_if(v0, ~(adjoint_sign(A) == 1), lambda: ValueError(message))
    w, U = _lanczos(A, v0, options)
    return w, U * phases(U)[None]


_compiled_pairs = eqx.filter_jit(lambda *args: _pairs(*args))


@_pairs.def_tangent
def _tangent(args, out, dargs):
    params, fixed, _, options = args
    w, U = out
    along = lambda params: eqx.combine(params, fixed).mm(U)
    B = jax.jvp(along, (params,), (dargs[0],))[1]
    M = jnp.conj(U.T) @ B
    dU = _move(params, fixed, options, w, U, B)
    dU = dU + 1j * U * turn(U, dU)[None] if jnp.iscomplexobj(U) else dU
    return jnp.diagonal(M).real, dU


@_pairs.def_adjoint
def _adjoint(args, out, g):
    params, fixed, _, options = args
    w, U = out
    g_w, g_U = g
    g_U = g_U + turn_adjoint(U, imaginary_overlaps(U, g_U))
    g_B = U * g_w[None] + _move(params, fixed, options, w, U, g_U)
    _, pull = pull_back(lambda params: eqx.combine(params, fixed).mm(U), params)
    return pull(g_B)


def _move(params: Any, fixed: Any, options: _Options, w: Array, U: Array, B: Array) -> Array:
    """U (F o U^H B) + X, linear in B and its own adjoint."""
    _, F = blocks(w, U.shape[0])
    inside = jnp.conj(U.T) @ B
    return U @ (F * inside) + _complement(params, fixed, options, w, U, B - U @ inside)


def _complement(
    params: Any, fixed: Any, options: _Options, w: Array, U: Array, R: Array
) -> Inexact[Array, "n k"]:
    """x_i with P (A - w_i) P x_i = - r_i, for r_i = P r_i."""
    sign = -1 if options.highest else 1
    project = lambda x: x - U @ (jnp.conj(U.T) @ x)
    # Within the span of U anything that is definite will do.
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(w)))
    size = jnp.where(size > 0, size, 1)

    def single(w, r):
        def definite(x):
            Px = project(x)
            outside = project(eqx.combine(params, fixed).mv(Px) - w * Px)
            return sign * outside + size * (x - Px)

        return -sign * project(solve(definite, r, options.solver))

    return jax.vmap(single, (0, 1), 1)(w, R)


# Lanczos' process with thick restarts.


class _State(NamedTuple):
    """The basis Q, A in it, how many vectors are kept, and what came of the last round."""

    Q: Inexact[Array, "rows n"]
    H: Inexact[Array, "m m"]
    kept: Int[Array, ""]
    restarts: Int[Array, ""]
    residual: Float[Array, ""]  # of the worst pair, relative to the largest Ritz value
    theta: Float[Array, " m"]


def _lanczos(
    A: Operator, v0: Array, options: _Options
) -> tuple[Float[Array, " k"], Inexact[Array, "n k"]]:
    k, m = options.k, options.dimension
    sign = -1 if options.highest else 1
    mv = lambda x: sign * A.mv(x)
    keep = k + (m - k) // 2
    real = jnp.finfo(v0.dtype).dtype

    def going(state):
        # Not a number compares false.
        return (state.residual > options.tol) & (state.restarts <= options.max_restarts)

    def round_(state):
        Q, H, beta = _expand(mv, state.Q, state.H, state.kept)
        theta, S = jnp.linalg.eigh(H)
        largest = jnp.max(jnp.abs(theta))
        residual = beta * jnp.max(jnp.abs(S[-1, :k])) / jnp.where(largest > 0, largest, 1)
        # The Ritz vectors, and the vector that leads on.
        kept = S[:, :keep].T @ Q[:m]
        rest = jnp.zeros((m - keep, Q.shape[1]), Q.dtype).at[:1].set(Q[m:])
        Q = jnp.concatenate([kept, rest, jnp.zeros_like(Q[:1])]) if m > keep else Q.at[:m].set(kept)
        H = jnp.diag(jnp.where(jnp.arange(m) < keep, theta, 0)).astype(H.dtype)
        kept = jnp.asarray(keep, jnp.int32)
        return _State(Q, H, kept, state.restarts + 1, residual, theta)

    norm = two_norm(v0)
    Q = jnp.zeros((m + 1, v0.shape[0]), v0.dtype).at[0].set(v0 / norm)
    zero = jnp.asarray(0, jnp.int32)
    start = _State(
        Q, jnp.zeros((m, m), v0.dtype), zero, zero, jnp.full((), jnp.inf, real), jnp.zeros(m, real)
    )
    end = jax.lax.while_loop(going, round_, start)

    w, U = sign * end.theta[:k], end.Q[:k].T
    w, U = (w[::-1], U[:, ::-1]) if options.highest else (w, U)
    # Whatever the recursion says, this is what is promised.
    left = jnp.max(jnp.sqrt(jnp.sum(jnp.abs(A.mm(U) - U * w[None]) ** 2, axis=0)))
    largest = jnp.max(jnp.abs(end.theta))
    failed = ~((end.residual <= options.tol) & (left <= 10 * options.tol * largest))
    message = "eigsh: after {} restarts a residual is {:.1e} of the largest Ritz value, beyond tol = {:.1e}."
    error = lambda restarts, left: RuntimeError(message.format(restarts, left, options.tol))
    return raise_if((w, U), failed, error, end.restarts, left / largest)


def _expand(
    mv: Any, Q: Array, H: Array, kept: Int[Array, ""]
) -> tuple[Inexact[Array, "rows n"], Inexact[Array, "m m"], Float[Array, ""]]:
    """The basis with m vectors and the one after; A in it; and the norm of what leads out of it."""
    m, n = H.shape[0], Q.shape[1]
    tiny = 10 * jnp.finfo(Q.dtype).eps

    def step(j, state):
        Q, H, _ = state
        w = mv(Q[j])
        before = two_norm(w)
        w, h = orthogonalise(Q, w)
        beta = two_norm(w)
        # A space that A doesn't lead out of goes on in a new direction.
        ends = ~(beta > tiny * before)
        fresh = jax.random.normal(jax.random.fold_in(jax.random.key(1), j), (n,), Q.dtype)
        w = jax.lax.cond(ends, lambda: orthogonalise(Q, fresh)[0], lambda: w)
        length = two_norm(w)
        Q = Q.at[j + 1].set(w / jnp.where(length > 0, length, 1))
        return Q, H.at[:, j].set(h[:m]), jnp.where(ends, 0, beta)

    Q, H, beta = jax.lax.fori_loop(kept, m, step, (Q, H, jnp.zeros((), jnp.finfo(Q.dtype).dtype)))
    upper = jnp.triu(H, 1)
    return Q, upper + jnp.conj(upper.T) + jnp.diag(jnp.diagonal(H).real).astype(H.dtype), beta
