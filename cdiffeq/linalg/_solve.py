r"""Linear systems ``A x = b``: one rule for every operator and every algorithm.

    primal     x = A^-1 b
    tangent    dx = A^-1 (db - dA x)
    adjoint    g_b = A^-H g,      g_A = - g_b x^H,

where ``g_A`` is never formed as a matrix: the parameters p of A get ``- (d(A(p) x)/dp)* g_b``. An algorithm
is a `Solver`: it factors A, if it does such a thing, and solves with A or with A^H. It writes no derivative;
the derivatives' own solves use the same factors.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Inexact, PyTree

from cdiffeq._arrays import as_array, require_finite
from cdiffeq._errors import is_traced
from cdiffeq.linalg._banded import Banded
from cdiffeq.linalg._cholesky_solver import Cholesky
from cdiffeq.linalg._diagonal import Diagonal
from cdiffeq.linalg._gmres import GMRES
from cdiffeq.linalg._lu import LU
from cdiffeq.linalg._operator import (
    Dense,
    Operator,
    Sparse,
    apply,
    as_operator,
    flatten,
    hold,
    is_dense,
    is_function,
)
from cdiffeq.linalg._solver import REASONS, Report, Solver, checked, compute
from cdiffeq.linalg._sparse_direct import Sparse as SparseLU
from cdiffeq.linalg._triangular import Triangular
from cdiffeq.linalg._tridiagonal import Tridiagonal
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule


@adjoint_rule(nondiff=("fixed", "state", "guess", "solver", "adjoint", "throw"))
def _inverse(
    params: PyTree[Inexact[Array, "..."]],
    b: Inexact[Array, "n k"],
    fixed: Any,
    state: Any,
    guess: Any,
    solver: Any,
    adjoint: bool,
    throw: bool,
) -> tuple[Inexact[Array, "n k"], Report]:
    """A^-1 b, or A^-H b, for the operator A of `params` and `fixed`; unchecked.

    `throw` is for the derivatives' solves.
    """
    return compute(solver, eqx.combine(params, fixed), state, b, guess, adjoint)


@_inverse.def_tangent
def _tangent(args, out, dargs):
    params, _, fixed, state, _, solver, adjoint, throw = args
    x, report = out
    along = lambda p: apply(eqx.combine(p, fixed), x, adjoint)
    dAx = jax.jvp(along, (params,), (dargs[0],))[1]
    dx, _ = _apply_inverse(params, dargs[1] - dAx, fixed, state, None, solver, adjoint, throw)
    return dx, jax.tree.map(jnp.zeros_like, report)


@_inverse.def_adjoint
def _adjoint(args, out, g):
    params, _, fixed, state, _, solver, adjoint, throw = args
    x, _ = out
    g_b, _ = _apply_inverse(params, g[0], fixed, state, None, solver, not adjoint, throw)
    _, pull = pull_back(lambda p: apply(eqx.combine(p, fixed), x, adjoint), params)
    return pull(-g_b)[0], g_b


def _apply_inverse(*args: Any) -> tuple[Inexact[Array, "n k"], Report]:
    """`_inverse`, checked: a failed solve raises, or gives NaN where `throw`, the last argument, is false."""
    x, report = _inverse(*args)

    def error(code, residual, iterations):
        steps = f" after {int(iterations)} steps" if iterations else ""
        left = f"; relative residual {residual:.1e}" if np.isfinite(residual) else ""
        return RuntimeError(f"linalg.solve: {REASONS[int(code)]}{steps}{left}.")

    return checked(x, report, args[-1], error), report


def solve(
    A: Any, b: Any, solver: Solver | None = None, *, guess: Any = None, throw: bool = True
) -> Any:
    r"""x with A x = b, by a direct or an iterative solver.

    **Arguments**

    - `A`: real or complex, square. A dense array (..., n, n), a matrix of `scipy.sparse`, a BCOO or BCSR
      matrix of `jax.experimental.sparse`, an operator of lineax, or a function x -> A x, linear over the
      complex numbers (for one that isn't: `real_linear_solve`). A function may close over traced values.
    - `b`: of shape (n,), or (..., n, k) for k columns, as in `numpy.linalg.solve`; leading axes of A and b
      broadcast. For a function: a pytree of what it acts on, of one dtype.
    - `solver`: by default what suits the structure of A:

      | A | solver |
      |---|---|
      | dense | `LU()`; `Diagonal()` or `Triangular()` where its zeros are known and say so |
      | operator of lineax, by type and tags | `Diagonal()`, `Tridiagonal()`, `Triangular()`, `Cholesky()` |
      | sparse, pattern known | `Diagonal()`, `Tridiagonal()`; `Banded()` where the band is a quarter full |
      | any other sparse one | `Sparse()`; up to a size of 128 `LU()` |
      | function, and any other operator of lineax | `GMRES()`, to its own tolerance |

      Others are `QR()`, `KLU()`, `CG()`, `MINRES()` and `BiCGStab()`.
    - `guess`: where an iterative solver starts, shaped like b; zero by default. It has no derivative.
    - `throw`: whether a solve that fails raises. If not, x is NaN then, and ``(x, report)`` is returned with
      the report's `code`, `residual` and `iterations`.

    **Returns** x, shaped like b (broadcast against A), in the common dtype of A and b.
    **Raises** `ValueError` and `TypeError` for shapes and dtypes that don't fit; when run, an error that
    holds the reason and the relative residual if A is singular to working precision or the iteration doesn't
    converge.

    **Derivatives**: the tangent is one more solve, ``A^-1 (db - dA x)``, the adjoint one with A^H; both use
    the same factors or preconditioner. A gradient in A exists on its entries alone: of a sparse matrix those
    that are stored.

    >>> A = jnp.array([[2.0, 1j], [0.0, 1.0]])
    >>> solve(A, jnp.array([1.0, 2.0]))
    Array([0.5-1.j, 2. +0.j], dtype=complex128)
    >>> jax.grad(lambda b: jnp.sum(jnp.abs(solve(A, b)) ** 2))(jnp.array([1.0 + 0j, 2.0]))
    Array([0.5+1.j , 5. -0.5j], dtype=complex128)
    """
    if is_function(A):
        return _solve_of_pytrees(A, b, solver, guess, throw)
    if is_dense(A):
        return _solve_dense(as_array("A", A), as_array("b", b), solver, guess, throw)
    operator, b = as_operator("A", A), as_array("b", b)
    solver = default_solver(A, operator) if solver is None else solver
    return factorize(_widen(operator, b.dtype), solver)._apply(b, False, throw, guess)


def factorize(A: Any, solver: Solver | None = None) -> Factorization:
    """A factorization of A, for many solves with A, A^T and A^H.

    **Arguments**: `A` as in `solve`, but one matrix or operator, no function; `solver` as there.
    **Returns** a `Factorization`, with `solve(b)`, `solve_transposed(b)` and `solve_conjugate_transposed(b)`.
    **Raises** what `solve` does; of a singular A the first solve says so.

    >>> A = factorize(jnp.array([[2.0, 1j], [0.0, 1.0]]))
    >>> A.solve_transposed(jnp.array([2.0, 0.0]))
    Array([1.-0.j, 0.-1.j], dtype=complex128)
    """
    operator = as_operator("A", A)
    m, n = operator.shape
    if m != n:
        raise ValueError(f"solve: A must be square, got shape {operator.shape}; see `lstsq`.")
    solver = default_solver(A, operator) if solver is None else solver
    if not isinstance(solver, Solver):
        raise TypeError(f"solve: solver must be one such as cd.linalg.LU(), got {solver!r}.")
    return Factorization(operator, solver.init(hold(operator)), solver)


def default_solver(A: Any, operator: Operator) -> Solver:
    """What suits the structure of A, `operator` being what it stands for: see `solve`."""
    if isinstance(A, lx.AbstractLinearOperator):
        # Of what lineax knows of A, all is checked by the solvers.
        known = (
            (lx.is_diagonal, Diagonal()),
            (lx.is_tridiagonal, Tridiagonal()),
            (lx.is_lower_triangular, Triangular(lower=True)),
            (lx.is_upper_triangular, Triangular(lower=False)),
            (lx.is_positive_semidefinite, Cholesky()),
        )
        for has, solver in known:
            if has(A):
                return solver
    if isinstance(operator, Sparse):
        return _for_pattern(operator)
    return _for_matrix(operator.matrix) if isinstance(operator, Dense) else GMRES()


def _for_matrix(A: Inexact[Array, "n n"]) -> Solver:
    """A solver for a dense matrix, by its zeros where they are known."""
    if is_traced(A):
        return LU()
    above, below = np.any(np.triu(A, 1)), np.any(np.tril(A, -1))
    if above and below:
        return LU()
    return Triangular(lower=not above) if above or below else Diagonal()


def _for_pattern(A: Sparse) -> Solver:
    """A solver for a sparse matrix, by its pattern."""
    n = A.shape[0]
    if not (is_traced(A.row) or is_traced(A.column)):
        below = np.asarray(A.row).astype(np.int64) - np.asarray(A.column)
        lower, upper = (int(max(side.max(initial=0), 0)) for side in (below, -below))
        if lower + upper == 0:
            return Diagonal()
        if max(lower, upper) == 1:
            return Tridiagonal()
        if (lower + upper + 1) * n <= _BAND_PER_ENTRY * len(below):
            return Banded(lower, upper)
    return LU() if n <= _DENSE_SIZE else SparseLU()


# As measured: so much more of a band is worth it, for factors without any bookkeeping; and a dense
# factorization for so small a matrix.
_BAND_PER_ENTRY = 4
_DENSE_SIZE = 128


def _common(of_A: Any, of_b: Any) -> Any:
    """The dtype that A takes in a solve with b: real or complex as before, in the wider precision."""
    return jnp.result_type(of_A, jnp.finfo(of_b).dtype)


def _widen(A: Operator, of_b: Any) -> Operator:
    """A in the precision of b, if that is wider."""
    dtype = _common(A.dtype, of_b)
    if dtype == A.dtype:
        return A
    if not isinstance(A, Dense | Sparse):
        raise TypeError(f"solve: A is an operator of {A.dtype}, which can't be made {dtype} for b.")
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, A)


def _solve_dense(A: Array, b: Array, solver: Solver | None, guess: Any, throw: bool) -> Any:
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"solve: A must be square, (..., n, n), got shape {A.shape}; see `lstsq`.")
    if b.ndim == 0 or b.shape[0 if b.ndim == 1 else -2] != A.shape[-1]:
        raise ValueError(
            f"solve: with A of shape {A.shape}, b must be of shape ({A.shape[-1]},) or "
            f"(..., {A.shape[-1]}, k), got {b.shape}; a batch of vectors is b[..., None]."
        )
    require_finite("A", A)
    A = A.astype(_common(A.dtype, b.dtype))
    if solver is None:
        solver = _for_matrix(A) if A.ndim == 2 else LU()

    single = lambda A, b, guess: factorize(A, solver)._apply(b, False, throw, guess)
    n = A.shape[-1]
    if guess is not None:
        guess = jnp.broadcast_to(as_array("guess", guess), b.shape)
    if A.ndim == 2 and b.ndim <= 2:
        return single(A, b, guess)
    if A.ndim == 2:  # one factorization, and all the columns of b
        columns = lambda y: y if y is None else jnp.moveaxis(y, -2, 0).reshape(n, -1)
        out = single(A, columns(b), columns(guess))
        x, *rest = (out,) if throw else out
        x = jnp.moveaxis(x.reshape(n, *b.shape[:-2], b.shape[-1]), 0, -2)
        return x if throw else (x, *rest)
    core = (n,) if b.ndim == 1 else b.shape[-2:]
    batch = jnp.broadcast_shapes(A.shape[:-2], b.shape[: -len(core)])
    lanes = lambda y, core: jnp.broadcast_to(y, (*batch, *core)).reshape(-1, *core)
    guess = None if guess is None else lanes(guess, core)
    operands = lanes(A, (n, n)), lanes(b, core), guess
    if math.prod(batch) == 1:  # the pivots of a batch are sorted more slowly
        out = jax.tree.map(lambda y: y[None], single(*jax.tree.map(lambda y: y[0], operands)))
    else:
        out = jax.vmap(single)(*operands)
    return jax.tree.map(lambda y: y.reshape(*batch, *y.shape[1:]), out)


def _solve_of_pytrees(A: Any, b: Any, solver: Solver | None, guess: Any, throw: bool) -> Any:
    """`solve` for a function of what looks like b."""
    operator = as_operator("A", A, like=b)
    flat, unflatten = flatten("b", b)
    if guess is not None:
        guess, _ = flatten("guess", guess)
    out = factorize(operator, solver)._apply(flat, False, throw, guess)
    return unflatten(out) if throw else (unflatten(out[0]), out[1])


class Factorization(eqx.Module):
    """A with what its solves share; made by `factorize`.

    A pytree: it can be passed into and out of jitted functions. Its solves are differentiable in A and in b.
    """

    operator: Operator
    state: PyTree[Any]
    solver: Solver

    def solve(self, b: Any, *, throw: bool = True) -> Any:
        """x with A x = b, for b (n,) or (n, k)."""
        return self._apply(b, False, throw)

    def solve_transposed(self, b: Any, *, throw: bool = True) -> Any:
        """x with A^T x = b, for b (n,) or (n, k)."""
        conj = lambda x: jnp.conj(as_array("b", x))
        out = self._apply(conj(b), True, throw)
        return conj(out) if throw else (conj(out[0]), out[1])

    def solve_conjugate_transposed(self, b: Any, *, throw: bool = True) -> Any:
        """x with A^H x = b, for b (n,) or (n, k)."""
        return self._apply(b, True, throw)

    def _apply(self, b: Any, adjoint: bool, throw: bool, guess: Any = None) -> Any:
        b = as_array("b", b)
        n = self.operator.shape[0]
        if b.ndim not in (1, 2) or b.shape[0] != n:
            raise ValueError(f"solve: b must be of shape ({n},) or ({n}, k), got {b.shape}.")
        require_finite("b", b)
        if _common(self.operator.dtype, b.dtype) != self.operator.dtype:
            raise TypeError(
                f"solve: A was factorized in {self.operator.dtype}, and b is {b.dtype}; convert one."
            )
        columns = lambda y: y if y is None or b.ndim == 2 else y[:, None]
        dtype = jnp.result_type(self.operator.dtype, b.dtype)
        if guess is not None:
            guess = jax.lax.stop_gradient(as_array("guess", guess)).astype(dtype)
        params, fixed = eqx.partition(self.operator, eqx.is_inexact_array)
        state = jax.lax.stop_gradient(self.state)
        x, report = _apply_inverse(
            params,
            columns(b).astype(dtype),
            fixed,
            state,
            columns(guess),
            self.solver,
            adjoint,
            throw,
        )
        x = x if b.ndim == 2 else x[:, 0]
        return x if throw else (x, jax.lax.stop_gradient(report))
