r"""The action of a function of a Hermitian matrix by Lanczos' process, and all its derivatives.

    y = f(A) v ~ W f(W^H A W) W^H v,

for an orthonormal W whose span holds the Krylov space of A and v: equal where f is a polynomial of a degree
below its dimension (Saad 1992, doi:10.1137/0729014). Of the derivatives the same is true,

    D^k y [d1, ..., dk] ~ W D^k (f(W^H A W) W^H v) [d1, ..., dk]      with W held still,

where W holds the Krylov space of the operator of dual numbers, [[A, 0], [dA, A]] for k = 1, and [v; dv],
each half by itself; and of the gradients ``g -> (D^k y)* g`` where it holds that of g, too. What is left is
a small matrix, which `funm` differentiates; nothing here is derived from the steps of the process. Hence
two functions, D^k and its gradients, whose rules lead from k to k + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from cdiffeq._arrays import as_array, require_finite
from cdiffeq._errors import check_tolerance, raise_if
from cdiffeq.linalg._arnoldi import Basis, arnoldi, orthogonalise, two_norm
from cdiffeq.linalg._funm import of_matrix, with_parameters
from cdiffeq.linalg._gauge import hermitian
from cdiffeq.linalg._operator import as_operator, flatten, is_function
from cdiffeq.linalg._padded import padded
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule

# A's parameters, those of f, and the vector: what y depends on. A direction in which it moves is another.
Point: TypeAlias = Any


class Problem(eqx.Module):
    """What is never differentiated: f, what else it and A need, and the dimension of the Krylov spaces."""

    f: Callable[..., Array] = eqx.field(static=True)
    others: list[Array]
    fixed: Any
    dimension: int = eqx.field(static=True)

    def product(self, params: Any, x: Array) -> Array:
        return eqx.combine(params, self.fixed).mv(x)

    def hermitian_product(self, params: Any, x: Array) -> Array:
        A = eqx.combine(params, self.fixed)
        return (A.mv(x) + A.adjoint().mv(x)) / 2


def funm_multiply(
    f: Callable[[Float[Array, ""]], Inexact[Array, ""]],
    A: Any,
    v: Any,
    *,
    dimension: int = 50,
    tol: float | None = None,
) -> Any:
    r"""f(A) v for a Hermitian A, large, sparse or matrix-free, without forming f(A).

    **Arguments**

    - `f`: of one real eigenvalue to a real or complex scalar, of JAX operations, smooth between the least
      and the greatest eigenvalue: `lambda x: jnp.sqrt(x)`. Traced values that it closes over are
      differentiated too. See `funm`; for exponentials see `expm_multiply`, which takes any norm of A.
    - `A`: real symmetric or complex Hermitian, (n, n): an array, a matrix of `scipy.sparse`, a BCOO or BCSR
      matrix, an operator of lineax, or a function x -> A x, which may close over traced values.
    - `v`: (n,), or (n, k) for k columns; for a function a pytree of what it acts on, of one dtype.
    - `dimension`: of the Krylov space of each column.
    - `tol`: how much the last eighth of the space may change the result, relative to its norm, for it to
      count as converged; eps^(3/4) by default. As the series converges, the error is less.

    **Returns** f(A) v, shaped like v, in the common dtype of A, v and f's results.
    **Raises** `ValueError` and `TypeError` for arguments that don't fit; when run, an error where A isn't
    Hermitian, or the space is too small for `tol`.

    **Derivatives** of every order in A, v and what f closes over, as exact as f(A) v itself, of spaces of the
    same dimension. The gradient in A is that of f((A + A^H) / 2) v.
    **Cost**: `dimension` products with A; the gradient twice as many, and as many pull-backs, and each
    further order twice that; and `funm` of a matrix of `dimension`, for the gradient twice that.
    **Memory**: `dimension` vectors, for a gradient six times as many.

    >>> A = np.diag(np.arange(100.0, 300.0))
    >>> y = funm_multiply(lambda x: 1 / jnp.sqrt(x), A, np.ones(200))
    >>> np.allclose(y, 1 / np.sqrt(np.arange(100, 300)), rtol=1e-12)
    True
    >>> f = lambda a: funm_multiply(lambda x: x**a, A[:10, :10], np.ones(10))
    >>> jax.grad(lambda a: f(a)[0])(0.5).round(6)  # 10 log(100)
    Array(46.051702, dtype=float64, weak_type=True)
    """
    if is_function(A):
        flat, unflatten = flatten("v", v)
        operator = as_operator("A", A, like=v)
        columns, back = flat[:, None], lambda y: unflatten(y[:, 0])
    else:
        operator = padded(as_operator("A", A))
        v = as_array("v", v)
        if v.ndim not in (1, 2) or v.shape[0] != operator.shape[1]:
            n = operator.shape[1]
            raise ValueError(f"funm_multiply: v must be ({n},) or ({n}, k), got shape {v.shape}.")
        columns, back = (v, lambda y: y) if v.ndim == 2 else (v[:, None], lambda y: y[:, 0])
    require_finite("v", columns)
    if operator.shape[0] != operator.shape[1]:
        raise ValueError(f"funm_multiply: A must be square, got shape {operator.shape}.")
    if not isinstance(dimension, int) or dimension < 1:
        raise ValueError(f"funm_multiply: dimension must be a positive integer, got {dimension!r}.")
    dtype = jnp.result_type(operator.dtype, columns.dtype)
    tol = float(jnp.finfo(dtype).eps) ** 0.75 if tol is None else tol
    check_tolerance("tol", tol, dtype)
    function, f_params, others = with_parameters("funm_multiply", f, dtype)

    params, fixed = eqx.partition(operator, eqx.is_inexact_array)
    problem = Problem(function, others, fixed, min(dimension, columns.shape[0]))

    def column(v):
        v = _converged(problem, jax.lax.stop_gradient((params, f_params)), v, tol)
        return derivative(problem, (params, f_params, v), ())

    return back(jax.lax.map(column, columns.astype(dtype).T).T)


def _converged(problem: Problem, params: Any, v: Inexact[Array, " n"], tol: float) -> Array:
    """v, after a look at whether the space is large enough."""
    A_params, f_params = params
    basis = _basis(problem, A_params, jax.lax.stop_gradient(v))
    K = problem.dimension
    T = _filled(hermitian(basis.H), basis.Q[:-1])
    one = lambda size: of_matrix(problem.f, T[:size, :size], f_params, problem.others)[:, 0]
    fewer = K - max(K // 8, 1)
    whole, part = one(K), jnp.pad(one(fewer) if fewer else jnp.zeros(0), (0, K - fewer))
    size = two_norm(whole)
    change = two_norm(whole - part) / jnp.where(size > 0, size, 1)
    # A space that A doesn't lead out of is large enough, and there everything else may be.
    change = jnp.where((basis.beta == 0) | (v.shape[0] == K), 0, change)

    skew = jnp.max(jnp.abs(basis.H - jnp.conj(basis.H.T)))
    skewed = skew > jnp.finfo(v.dtype).eps ** 0.5 * jnp.max(jnp.abs(basis.H))
    message = "funm_multiply: A isn't Hermitian."
    v = raise_if(v, skewed, lambda: ValueError(message))
    text = (
        "funm_multiply: the last vectors of a Krylov space of dimension {} change f(A) v by {:.1e} of its "
        "norm, beyond tol = {:.1e}: give a greater dimension."
    )
    error = lambda change: RuntimeError(text.format(K, change, tol))
    return raise_if(v, ~(change <= tol), error, change)


def _basis(problem: Problem, params: Any, v: Array) -> Basis:
    return arnoldi(lambda x: problem.product(params, x), v, problem.dimension)


@adjoint_rule(nondiff=("problem",))
def derivative(
    problem: Problem, point: Point, directions: tuple[Point, ...]
) -> Inexact[Array, " n"]:
    """D^k (f(A) v) [directions] at a point."""
    W = _orthonormal(_krylov(problem, point, directions, point[2]))
    return _projected(problem, W, point, directions)


def _moved(
    problem: Problem,
    point: Point,
    directions: tuple[Point, ...],
    dpoint: Point,
    ddirections: tuple[Point, ...],
) -> Inexact[Array, " n"]:
    """How D^k moves with the point and with the directions."""
    terms = [derivative(problem, point, (*directions, dpoint))]
    for j, direction in enumerate(ddirections):
        terms.append(derivative(problem, point, _replace(directions, j, direction)))
    return sum(terms[1:], terms[0])


@derivative.def_tangent
def _tangent(args, out, dargs):
    problem, point, directions = args
    _, dpoint, ddirections = dargs
    return _moved(problem, point, directions, dpoint, ddirections)


@derivative.def_adjoint
def _adjoint(args, out, g):
    return gradients(*args, g)


@adjoint_rule(nondiff=("problem",))
def gradients(
    problem: Problem, point: Point, directions: tuple[Point, ...], g: Inexact[Array, " n"]
) -> tuple[Point, tuple[Point, ...]]:
    """The gradients of <g, D^k (f(A) v) [directions]> in the point and in the directions."""
    left = _krylov(problem, point, directions, g, moving=False)
    W = _orthonormal(_krylov(problem, point, directions, point[2]), left)
    return pull_back(lambda *where: _projected(problem, W, *where), point, directions)[1](g)


@gradients.def_tangent
def _tangent_of_gradients(args, out, dargs):
    problem, point, directions, g = args
    _, dpoint, ddirections, dg = dargs
    first, (*second, _) = gradients(problem, point, (*directions, dpoint), g)
    terms = [(first, tuple(second)), gradients(problem, point, directions, dg)]
    for j, direction in enumerate(ddirections):
        first, second = gradients(problem, point, _replace(directions, j, direction), g)
        # D^k is linear in the direction that was replaced.
        terms.append((first, _replace(second, j, _zeros(direction))))
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *terms)


@gradients.def_adjoint
def _adjoint_of_gradients(args, out, u):
    # <u, gradients> = <g, D^(k+1) (f(A) v) [.., u] + ...>, of which the first is symmetric in its directions.
    problem, point, directions, g = args
    zero = jax.tree.map(jnp.zeros_like, g)
    in_point = _tangent_of_gradients(args, out, (None, *u, zero))
    return *in_point, _moved(problem, point, directions, *u)


def _replace(directions: tuple[Point, ...], j: int, direction: Point) -> tuple[Point, ...]:
    return (*directions[:j], direction, *directions[j + 1 :])


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def _projected(
    problem: Problem, W: Inexact[Array, "m n"], point: Point, directions: tuple[Point, ...]
) -> Inexact[Array, " n"]:
    """D^k of W f(W^H A W) W^H v with W, in rows, held still."""

    def value(params, f_params, v):
        products = jax.vmap(lambda x: problem.product(params, x))(W)
        T = hermitian(jnp.conj(W) @ products.T)
        small = of_matrix(problem.f, _filled(T, W), f_params, problem.others)
        return (small @ (jnp.conj(W) @ v)) @ W

    for direction in directions:
        value = _along(value, direction)
    return value(*point)


def _filled(T: Inexact[Array, "m m"], W: Inexact[Array, "m n"]) -> Inexact[Array, "m m"]:
    """T with a value from its range where W has no vector, which f may not be defined for."""
    spare = jnp.sum(jnp.abs(W), axis=1) == 0
    return T + jnp.diag(jnp.where(spare, jax.lax.stop_gradient(T[0, 0].real), 0)).astype(T.dtype)


def _along(value: Callable[..., Any], direction: Point) -> Callable[..., Any]:
    return lambda *point: jax.jvp(value, point, direction)[1]


def _krylov(
    problem: Problem,
    point: Point,
    directions: tuple[Point, ...],
    start: Inexact[Array, " n"],
    moving: bool = True,
) -> Inexact[Array, "m n"]:
    """The Krylov space of the operator of dual numbers and of `start`, each part of a vector in a row.

    Where `moving` is true, `start` moves with the directions, as v does.
    """
    params = point[0]
    # Any space will do for a vector that is zero.
    start = jnp.where(two_norm(start) == 0, jnp.ones_like(start), start)
    if not directions:
        return _basis(problem, params, start).Q[:-1]
    product = lambda params, x: problem.hermitian_product(params, x[0])[None]
    parts = start[None]
    for dparams, _, dv in directions:
        # A direction as large as the point itself leaves the parts with all their digits.
        moved = jax.jvp(lambda p: problem.product(p, start), (params,), (dparams,))[1]
        size = two_norm(moved) + (two_norm(dv) if moving else 0)
        scale = jnp.where(size > 0, two_norm(start) / jnp.where(size > 0, size, 1), 1)
        product = _dual(product, _times(scale, dparams))
        below = jnp.zeros_like(parts)
        parts = jnp.concatenate([parts, below.at[0].set(_times(scale, dv)) if moving else below])
    whole = lambda x: product(params, x.reshape(parts.shape)).reshape(-1)
    Q = arnoldi(whole, parts.reshape(-1), problem.dimension).Q[:-1]
    return Q.reshape(-1, start.shape[0])


def _times(scale: Float[Array, ""], tree: Any) -> Any:
    return jax.tree.map(lambda x: (scale * x).astype(x.dtype), tree)


def _dual(product: Callable[[Any, Array], Array], dparams: Any) -> Callable[[Any, Array], Array]:
    """The product with [[A, 0], [dA, A]] of twice as many parts."""

    def dual(params, x):
        y, dy = jnp.split(x, 2)
        return jnp.concatenate(jax.jvp(product, (params, y), (dparams, dy)))

    return dual


def _orthonormal(*spaces: Inexact[Array, "k n"]) -> Inexact[Array, "m n"]:
    """An orthonormal basis of what all rows span, in rows, of which those that aren't needed are zero."""
    rows = jnp.concatenate(spaces)
    tiny = 10 * jnp.finfo(rows.dtype).eps

    def step(j, Q):
        w = rows[j]
        before = two_norm(w)
        w, _ = orthogonalise(Q, w)
        after = two_norm(w)
        there = after > tiny * before
        return Q.at[j].set(w * jnp.where(there, 1 / jnp.where(there, after, 1), 0))

    return jax.lax.stop_gradient(jax.lax.fori_loop(0, len(rows), step, jnp.zeros_like(rows)))
