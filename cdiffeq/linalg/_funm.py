r"""Functions of Hermitian matrices, and all their derivatives, by divided differences.

With H = U diag(w) U^H and E~ = U^H E U, the derivative of order k along E1, ..., Ek is

    D^k f(H) [E1, ..., Ek] = U S U^H,
    S_ij = sum over a, ..., b and the orders of E:  f[w_i, w_a, ..., w_b, w_j] E1~_ia ... Ek~_bj,

f(H) itself for k = 0 and the formula of Daleckii and Krein for k = 1 (1965; N. J. Higham 2008,
doi:10.1137/1.9780898717778, theorem 3.11). One rule holds for every k, since

    tangent    D^k f [dE1, E2, ...] + ... + D^(k+1) f [E1, ..., dH] + D^k (df/dp dp) [E1, ...],
    adjoint    g_Ej = (D^k f [..., g^H in the place of Ej, ...])^H,
               g_H  = herm((D^(k+1) f [E1, ..., Ek, g^H])^H),

for f with parameters p. No eigenvector is ever differentiated, so the spectrum may be any. What p receives,
g_p = (p -> D^k f)* g, is a rule of its own: as a function of H it is the adjoint of the same family.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from cdiffeq._errors import is_traced
from cdiffeq.linalg._divided_differences import divided_difference
from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._gauge import hermitian
from cdiffeq.linalg._square import all_finite, as_square, matmul
from cdiffeq.wirtinger._linear_map import hoist, pull_back
from cdiffeq.wirtinger._rule import adjoint_rule

# (x, parameters, other traced values) -> f(x), of one real x.
Function = Callable[[Array, PyTree[Array], list[Array]], Array]


def funm(
    f: Callable[[Float[Array, ""]], Inexact[Array, ""]],
    H: Inexact[Array | np.ndarray, "... n n"],
) -> Inexact[Array, "... n n"]:
    r"""A function of a batch of Hermitian matrices, f(H) = U diag(f(w)) U^H.

    `H` stands for its Hermitian part, (H + H^H) / 2: of any H that is a function, and its gradient is
    Hermitian.

    **Arguments**

    - `f`: of one real eigenvalue, a scalar, to a real or complex scalar, of JAX operations:
      `lambda x: jnp.exp(-1j * t * x)`. Traced values that it closes over, like t, are differentiated too.
      Where f(H) is differentiated k times, f must have k derivatives at eigenvalues that are equal, and
      JAX k + 1 or more of them in forward mode: at a kink or a pole what comes out is what JAX makes of it.
    - `H`: real or complex, shape (..., n, n), n at least 1.

    **Returns** f(H), (..., n, n), in the precision of H, real where H and f are; NaN alone for a matrix that
    holds NaN or infinity. **Raises** `ValueError` where H isn't square or has no rows, or f doesn't return a
    scalar; `TypeError` where H isn't floating or complex, in single or double precision, or f returns
    another precision.

    **Derivatives** of every order are right for any spectrum: equal, close or far eigenvalues, in any
    mixture, without a tolerance that says which is which. Divided differences are good to some eps each
    (`_divided_differences.py`; the usual switch to f' leaves eps^(2/3)).

    **Cost**: a decomposition, about 10 n^3, shared by value and derivatives; the first derivative takes four
    products of n x n matrices and 8 n^2 evaluations of f and f', the second some 64 n^3 of f, f' and f''.
    **Memory**: some n^2 numbers for the first, 64 n^2 for the second.

    >>> import jax, jax.numpy as jnp
    >>> H = jnp.array([[0.0, -1j], [1j, 0.0]])
    >>> funm(lambda x: jnp.exp(-0.5j * jnp.pi * x), H).round(12) + 0.0
    Array([[ 0.+0.j, -1.+0.j],
           [ 1.+0.j,  0.+0.j]], dtype=complex128)
    >>> entropy = lambda rho: -jnp.trace(funm(lambda x: x * jnp.log(x), rho)).real
    >>> jax.grad(entropy)(jnp.eye(2) / 2)  # both eigenvalues are 1/2
    Array([[-0.30685282,  0.        ],
           [ 0.        , -0.30685282]], dtype=float64)
    >>> jax.grad(lambda t: funm(lambda x: jnp.exp(-1j * t * x), H)[0, 1].real)(0.0).round(12)
    Array(-1., dtype=float64)
    """
    H = as_square("funm", "H", H)
    if H.shape[-1] == 0:
        raise ValueError(f"funm: H must have at least one row; got shape {H.shape}.")
    function, params, others = with_parameters("funm", f, H.dtype)
    of_one = lambda H: of_matrix(function, H, params, others)
    for _ in range(H.ndim - 2):
        of_one = jax.vmap(of_one)
    return of_one(H)


def of_matrix(
    f: Function, H: Inexact[Array, "n n"], params: PyTree[Array], others: list[Array]
) -> Inexact[Array, "n n"]:
    """f(H) of one matrix, with what `with_parameters` gives."""
    finite = all_finite(H)
    still = jnp.where(finite, hermitian(jax.lax.stop_gradient(H)), 0)
    w, U = jnp.linalg.eigh(still, symmetrize_input=False)
    fixed = jnp.where(finite, w, jnp.nan), U, others
    return derivative_of(f, fixed, H, (), params)


def with_parameters(
    name: str, f: Callable[[Array], Array], dtype: Any
) -> tuple[Function, list[Array], list[Array]]:
    """f with what it closes over as arguments: traced values with derivatives, and others."""
    real = jnp.finfo(dtype).dtype

    def of_scalar(x):
        y = f(x)
        # A number of Python's, as from `lambda x: 1.0`, has no precision of its own.
        return jnp.asarray(y, jnp.result_type(x, y)) if isinstance(y, float | complex) else y

    pure, out, consts = hoist(of_scalar, jax.ShapeDtypeStruct((), real))
    if getattr(out, "shape", None) != ():
        raise ValueError(f"{name}: f must return a scalar for a scalar; got {out}.")
    if not jnp.issubdtype(out.dtype, jnp.inexact) or jnp.finfo(out.dtype).dtype != real:
        raise TypeError(
            f"{name}: f must return {real} or {jnp.result_type(real, jnp.complex64)} for a matrix of "
            f"{dtype}; got {out.dtype}. Values that f closes over may be of another precision."
        )
    moves = [is_traced(c) and jnp.issubdtype(c.dtype, jnp.inexact) for c in consts]
    known = [None if is_traced(c) else c for c in consts]

    def function(x, params, others):
        params, others = iter(params), iter(others)
        fill = lambda c, m: c if c is not None else next(params if m else others)
        return pure([fill(c, m) for c, m in zip(known, moves, strict=True)], x)

    params = [c for c, m in zip(consts, moves, strict=True) if m]
    others = [c for c, m in zip(consts, moves, strict=True) if is_traced(c) and not m]
    return function, params, others


# fixed: the eigenvalues and eigenvectors of H, and what else f needs. They follow H, but the rules never
# differentiate them: they say themselves how their values move with H.
Fixed = tuple[Float[Array, " n"], Inexact[Array, "n n"], list[Array]]


@adjoint_rule(nondiff=("f", "fixed"))
def derivative_of(
    f: Function,
    fixed: Fixed,
    H: Inexact[Array, "n n"],
    E: tuple[Inexact[Array, "n n"], ...],
    params: PyTree[Array],
) -> Inexact[Array, "n n"]:
    """D^k f(H) [E1, ..., Ek] of a matrix H whose Hermitian part has the eigenvectors in `fixed`."""
    return _evaluate(f, fixed, E, params)


@derivative_of.def_tangent
def _tangent(args, out, dargs):
    f, fixed, H, E, params = _still(args)
    _, _, dH, dE, dparams = dargs
    terms = [derivative_of(f, fixed, H, (*E, hermitian(dH)), params)]
    terms += [derivative_of(f, fixed, H, _replace(E, j, dEj), params) for j, dEj in enumerate(dE)]
    if jax.tree.leaves(params):
        terms.append(derivative_of(_rate(f), fixed, H, E, (params, dparams)))
    return sum(terms[1:], terms[0])


@derivative_of.def_adjoint
def _adjoint(args, out, g):
    f, fixed, H, E, params = _still(args)
    gH, gE = _pull_matrices(f, fixed, H, E, params, g)
    if jax.tree.leaves(params):
        params = parameter_gradient(f, fixed, H, E, params, g)
    return gH, gE, params


def _pull_matrices(f, fixed, H, E, params, g):
    """The adjoint of D^k f(H) [E] in H and in E."""
    gh = adjoint(g)
    gH = hermitian(adjoint(derivative_of(f, fixed, H, (*E, gh), params)))
    gE = tuple(
        adjoint(derivative_of(f, fixed, H, _replace(E, j, gh), params)) for j in range(len(E))
    )
    return gH, gE


@adjoint_rule(nondiff=("f", "fixed"))
def parameter_gradient(
    f: Function,
    fixed: Fixed,
    H: Inexact[Array, "n n"],
    E: tuple[Inexact[Array, "n n"], ...],
    params: PyTree[Array],
    g: Inexact[Array, "n n"],
) -> PyTree[Array]:
    """The adjoint of D^k f(H) [E] in the parameters: <q, this> = <D^k (df/dp q) [E], g> for all q."""
    return pull_back(lambda params: _evaluate(f, fixed, E, params), params)[1](g)[0]


@parameter_gradient.def_tangent
def _tangent_of_gradient(args, out, dargs):
    f, fixed, H, E, params, g = _still(args)
    _, _, dH, dE, dparams, dg = dargs
    terms = [
        parameter_gradient(f, fixed, H, (*E, hermitian(dH)), params, g),
        *[
            parameter_gradient(f, fixed, H, _replace(E, j, dEj), params, g)
            for j, dEj in enumerate(dE)
        ],
        parameter_gradient(_rate(f), fixed, H, E, (params, dparams), g)[0],
        parameter_gradient(f, fixed, H, E, params, dg),
    ]
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *terms)


@parameter_gradient.def_adjoint
def _adjoint_of_gradient(args, out, q):
    f, fixed, H, E, params, g = _still(args)
    rate = (_rate(f), fixed, H, E, (params, q))
    gH, gE = _pull_matrices(*rate, g)
    gparams, _ = parameter_gradient(*rate, g)
    return gH, gE, gparams, derivative_of(*rate)


def _rate(f: Function) -> Function:
    """df/dp dp, a function with the parameters (p, dp)."""

    def rate(x, params, others):
        of_params = lambda p: f(x, p, others)
        return jax.jvp(of_params, (params[0],), (params[1],))[1]

    return rate


def _still(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with `fixed` out of the way of third derivatives, which are JAX's own."""
    f, fixed, *rest = args
    return f, jax.lax.stop_gradient(fixed), *rest


def _replace(E: tuple[Array, ...], j: int, Ej: Array) -> tuple[Array, ...]:
    return (*E[:j], Ej, *E[j + 1 :])


def _evaluate(
    f: Function, fixed: Fixed, E: tuple[Inexact[Array, "n n"], ...], params: PyTree[Array]
) -> Inexact[Array, "n n"]:
    """U S U^H, the module's first formula."""
    w, U, others = fixed
    of_one = jax.vmap(lambda x: f(x, params, others))
    of_all = lambda x: of_one(x.ravel()).reshape(x.shape)
    if not E:
        return matmul(U * of_all(w)[None, :], adjoint(U))
    E = tuple(matmul(matmul(adjoint(U), Ej), U) for Ej in E)
    return matmul(matmul(U, _chains(of_all, w, E)), adjoint(U))


def _chains(
    f: Callable[[Array], Array], w: Float[Array, " n"], E: tuple[Inexact[Array, "n n"], ...]
) -> Inexact[Array, "n n"]:
    """S of the module's first formula, from the E~: a sum over the points between i and j."""
    n, between = len(w), len(E) - 1

    def term(count):
        middle = jnp.unravel_index(count, (n,) * between) if between else ()
        points = [w[:, None], *(w[a][None, None] for a in middle), w[None, :]]
        x = jnp.sort(jnp.stack(jnp.broadcast_arrays(*points)), axis=0)
        products = [_chain(order, middle) for order in itertools.permutations(E)]
        return divided_difference(f, x) * sum(products[1:], products[0])

    if not between:
        return term(0)
    add = lambda S, count: (S + term(count), None)
    start = jnp.zeros_like(jax.eval_shape(term, 0))
    return jax.lax.scan(add, start, jnp.arange(n**between))[0]


def _chain(E: tuple[Array, ...], middle: tuple[Array, ...]) -> Inexact[Array, "n n"]:
    """E1_ia E2_ab ... Ek_cj as a matrix in i and j."""
    if not middle:
        return E[0]
    factor = E[0][:, middle[0]][:, None] * E[-1][middle[-1], :][None, :]
    for Ej, a, b in zip(E[1:-1], middle[:-1], middle[1:], strict=True):
        factor = factor * Ej[a, b]
    return factor
