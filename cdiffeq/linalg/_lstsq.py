r"""Least squares ``x = A^+ b``: one rule for every shape, every rank and every algorithm.

    primal     x = A^+ b,   r = b - A x,   p = A^+H x
    tangent    dx = A^+ (db - dA x) + A^+ A^+H dA^H r + (1 - A^+ A) dA^H p
    adjoint    w = A^+H g,   v = A^+ w,   u = g - A^H w,
               g_b = w,      g_A = - w x^H + r v^H + p u^H

(G. H. Golub, V. Pereyra 1973, doi:10.1137/0710036). The last term vanishes where A has full column rank, the
one before it where A has full row rank. ``(A^+)^H = (A^H)^+``, so all of these are again least squares, with
A or with A^H, and have this rule. With damping A stands for ``[A; mu 1]`` and b for ``[b; 0]``.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, PyTree

from cdiffeq._arrays import as_array, as_real, require_finite
from cdiffeq._errors import is_traced
from cdiffeq.linalg._damped import Damped
from cdiffeq.linalg._lsmr import LSMR
from cdiffeq.linalg._operator import Dense, Operator, apply, as_operator, hold, is_dense
from cdiffeq.linalg._solver import REASONS, Report, Solver, checked, compute
from cdiffeq.linalg._svd_solver import SVD
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule


@adjoint_rule(nondiff=("fixed", "state", "solver", "adjoint", "throw"))
def _pseudo_inverse(
    params: PyTree[Inexact[Array, "..."]],
    b: Inexact[Array, "m k"],
    fixed: Any,
    state: Any,
    solver: Any,
    adjoint: bool,
    throw: bool,
) -> tuple[Inexact[Array, "n k"], Report]:
    """A^+ b, or A^+H b, for the operator A of `params` and `fixed`; unchecked.

    `throw` is for the derivatives' solves.
    """
    return compute(solver, eqx.combine(params, fixed), state, b, None, adjoint)


@_pseudo_inverse.def_tangent
def _tangent(args, out, dargs):
    params, b, fixed, *_, adjoint, _ = args
    dparams, db = dargs[:2]
    x, report = out
    M = lambda p, X: apply(eqx.combine(p, fixed), X, adjoint)
    MH = lambda p, Y: apply(eqx.combine(p, fixed), Y, not adjoint)
    along = lambda f, X: jax.jvp(lambda p: f(p, X), (params,), (dparams,))[1]

    u = along(MH, _solve_adjoint(args, x))
    dr = _solve_adjoint(args, along(MH, b - M(params, x)))
    dx = u + _solve(args, db - along(M, x) + dr - M(params, u))
    return dx, jax.tree.map(jnp.zeros_like, report)


@_pseudo_inverse.def_adjoint
def _adjoint(args, out, g):
    params, b, fixed, *_, adjoint, _ = args
    x, g = out[0], g[0]
    A = eqx.combine(params, fixed)
    w = _solve_adjoint(args, g)
    v = _solve(args, w)
    u = g - apply(A, w, not adjoint)
    p = _solve_adjoint(args, x)
    r = b - apply(A, x, adjoint)
    columns = lambda *parts: jnp.concatenate(parts, axis=1)
    of = lambda params: apply(eqx.combine(params, fixed), columns(x, v, u), adjoint)
    _, pull = pull_back(of, params)
    return pull(columns(-w, r, p))[0], w


def _solve(args: Any, b: Inexact[Array, "m k"]) -> Inexact[Array, "n k"]:
    """What `_pseudo_inverse` does with these arguments, to another b."""
    params, _, *rest = args
    return _apply_pseudo_inverse(params, b, *rest)[0]


def _solve_adjoint(args: Any, b: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
    """The adjoint of that."""
    params, _, fixed, state, solver, adjoint, throw = args
    return _apply_pseudo_inverse(params, b, fixed, state, solver, not adjoint, throw)[0]


def _apply_pseudo_inverse(*args: Any) -> tuple[Inexact[Array, "n k"], Report]:
    """`_pseudo_inverse`, checked: a failed solve raises, or gives NaN where `throw` is false."""
    x, report = _pseudo_inverse(*args)

    def error(code, residual, iterations):
        how = (
            f" after {int(iterations)} steps; relative gradient {residual:.1e}"
            if iterations
            else ""
        )
        return RuntimeError(f"linalg.lstsq: {REASONS[int(code)]}{how}.")

    return checked(x, report, args[-1], error), report


def lstsq(
    A: Any, b: Any, damping: Any = 0.0, solver: Solver | None = None, *, throw: bool = True
) -> Any:
    r"""The x that minimises ``norm(A x - b)^2 + damping^2 norm(x)^2``.

    Where there are many, the one of least norm: ``A^+ b``.

    **Arguments**

    - `A`: real or complex, of any shape and rank. A dense array (..., m, n), a matrix of `scipy.sparse`, a
      BCOO or BCSR matrix, or an operator of lineax: a function is one with the form of what it takes,
      `lineax.FunctionLinearOperator(fn, jax.ShapeDtypeStruct((n,), dtype))`.
    - `b`: of shape (m,), or (..., m, k) for k columns; leading axes of A and b broadcast.
    - `damping`: a real scalar, of which the square counts, as `damp` in `scipy.sparse.linalg.lsmr`.
    - `solver`: `SVD(rcond)`, the default for dense A, with a cut-off of small singular values; or
      `LSMR(rtol)`, the default for the others.
    - `throw`: whether a solve that fails raises. If not, x is NaN then, and ``(x, report)`` is returned.

    **Returns** x, (n,) or (..., n, k), in the common dtype of A and b. **Raises** `ValueError` and
    `TypeError` for shapes and dtypes that don't fit; when run, an error where the iteration doesn't converge,
    or something isn't finite.

    **Derivatives**, first and second: of x in A, b and the damping, by three more solves with the same
    factors. They are right where A, or A with its damping, has full rank, tall or wide. At a lower rank x has
    no derivative: the smallest change of A makes the rank full, and x jump. What is returned there is the
    derivative along changes that keep the rank, and of what others do the part that keeps it.

    **Cost, memory**: see the solvers.

    >>> A = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    >>> lstsq(A, np.array([1.0, 0.0, 2.0])).round(12)
    Array([0.5, 0.5], dtype=float64)
    >>> lstsq(A.T + 0j, np.array([3.0, 3.0])).round(12)  # the least of many solutions
    Array([1.+0.j, 1.+0.j, 1.+0.j], dtype=complex128)
    >>> jax.grad(lambda mu: lstsq(jnp.ones((1, 1)), jnp.ones(1), mu)[0])(1.0)  # 1 / (1 + mu^2)
    Array(-0.5, dtype=float64, weak_type=True)
    """
    b = as_array("b", b)
    if is_dense(A):
        if callable(A):
            raise TypeError(
                "lstsq: A is a function, and nothing says what it acts on: pass "
                "lineax.FunctionLinearOperator(A, jax.ShapeDtypeStruct((n,), dtype))."
            )
        return _lstsq_dense(as_array("A", A), b, damping, solver, throw)
    operator = as_operator("A", A)
    if b.ndim not in (1, 2) or b.shape[0] != operator.shape[0]:
        raise _wrong_shapes(operator.shape, b)
    x, report = _lstsq(operator, b.reshape(len(b), -1), damping, solver or LSMR(), throw)
    x = x if b.ndim == 2 else x[:, 0]
    return x if throw else (x, report)


def _lstsq_dense(A: Array, b: Array, damping: Any, solver: Solver | None, throw: bool) -> Any:
    if A.ndim < 2 or b.ndim == 0 or b.shape[0 if b.ndim == 1 else -2] != A.shape[-2]:
        raise _wrong_shapes(A.shape, b)
    require_finite("A", A)
    A = A.astype(jnp.result_type(A, jnp.finfo(b.dtype).dtype))
    solver = SVD() if solver is None else solver
    single = lambda A, b: _lstsq(Dense(A), b, damping, solver, throw)
    over_batches = jnp.vectorize(
        lambda A, b: tuple(jax.tree.leaves(single(A, b))), signature="(m,n),(m,k)->(n,k),(),(),()"
    )
    B = b[:, None] if b.ndim == 1 else b
    ndim = max(A.ndim, B.ndim)
    same_rank = lambda X: X.reshape((1,) * (ndim - X.ndim) + X.shape)
    x, *report = over_batches(same_rank(A), same_rank(B))
    x = x[..., 0] if b.ndim == 1 else x
    return x if throw else (x, Report(*report))


def _lstsq(
    A: Operator, b: Inexact[Array, "m k"], damping: Any, solver: Solver, throw: bool
) -> tuple[Inexact[Array, "n k"], Report]:
    if not isinstance(solver, Solver):
        raise TypeError(f"lstsq: solver must be one such as cd.linalg.SVD(), got {solver!r}.")
    require_finite("b", b)
    b = b.astype(jnp.result_type(A.dtype, b.dtype))
    if is_traced(damping) or np.any(damping):
        mu = as_real("damping", damping)
        if mu.ndim:
            raise ValueError(f"lstsq: damping must be a scalar, got shape {mu.shape}.")
        require_finite("damping", mu)
        A = Damped(A, mu.astype(jnp.finfo(b.dtype).dtype))
        b = jnp.concatenate([b, jnp.zeros((A.shape[1], b.shape[1]), b.dtype)])
    state = solver.init(hold(A))
    params, fixed = eqx.partition(A, eqx.is_inexact_array)
    x, report = _apply_pseudo_inverse(
        params, b, fixed, jax.lax.stop_gradient(state), solver, False, throw
    )
    return x, jax.lax.stop_gradient(report)


def _wrong_shapes(shape: tuple[int, ...], b: Array) -> ValueError:
    return ValueError(
        f"lstsq: A must be (..., m, n), and b (m,) or (..., m, k), got shapes {shape} and {b.shape}; a "
        "batch of vectors is b[..., None]."
    )
