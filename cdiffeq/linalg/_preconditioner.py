"""Preconditioners: maps ``r -> M^-1 r`` that are cheap, with M close to A.

Of no solution does any derivative depend on them, so they have none. A solve with A^H takes ``M^-H``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PyTree

from cdiffeq.linalg._operator import Dense, Operator, Sparse
from cdiffeq.wirtinger._linear_map import hoist


class Preconditioner(eqx.Module):
    """What an iterative solver multiplies residuals with.

    - `init(A)` gives the arrays that it needs, from A; called once for all solves with A.
    - `apply(state, r, adjoint)` is ``M^-1 r``, or ``M^-H r``, for a vector r.
    """

    @abstractmethod
    def init(self, A: Operator) -> PyTree[Any]:
        """The arrays that `apply` needs."""

    @abstractmethod
    def apply(
        self, state: PyTree[Any], r: Inexact[Array, " n"], adjoint: bool
    ) -> Inexact[Array, " n"]:
        """M^-1 r, or M^-H r."""


class Jacobi(Preconditioner):
    """The diagonal of a dense or sparse A; where an entry of it is zero, 1.

    >>> A, b = np.diag([1.0, 100.0, 1e4]), np.ones(3)
    >>> cd.linalg.solve(A, b, cd.linalg.CG(preconditioner=cd.linalg.Jacobi(), max_steps=1))
    Array([1.e+00, 1.e-02, 1.e-04], dtype=float64)
    """

    def init(self, A: Operator) -> Inexact[Array, " n"]:
        if isinstance(A, Dense):
            diagonal = jnp.diagonal(A.matrix)
        elif isinstance(A, Sparse):
            of_diagonal = jnp.where(A.row == A.column, A.data, 0)
            diagonal = jax.ops.segment_sum(of_diagonal, A.row, num_segments=A.shape[0])
        else:
            raise TypeError("Jacobi: the diagonal of a matrix-free A isn't known; pass a callable.")
        return 1 / jnp.where(diagonal == 0, 1, diagonal)

    def apply(self, state: Any, r: Array, adjoint: bool) -> Array:
        return (jnp.conj(state) if adjoint else state) * r


class Given(Preconditioner):
    """A function r -> M^-1 r, and perhaps its adjoint, which may close over traced values."""

    fn: Callable[[Array], Array]
    fn_adjoint: Callable[[Array], Array] | None

    def init(self, A: Operator) -> tuple[_Program, _Program | None]:
        both = self.fn, self.fn_adjoint
        forward, adjoint = (None if fn is None else _program(fn, A) for fn in both)
        assert forward is not None
        return forward, adjoint

    def apply(self, state: tuple[_Program, _Program | None], r: Array, adjoint: bool) -> Array:
        forward, given = state
        if not adjoint:
            return forward(r)
        if given is not None:
            return given(r)
        transpose = jax.linear_transpose(forward, jax.ShapeDtypeStruct(r.shape, r.dtype))
        return jnp.conj(transpose(jnp.conj(r))[0])


class _Program(eqx.Module):
    """A function without the arrays that it closed over, and those. It is run in the dtype of A."""

    pure: Callable[[Any, Array], Array] = eqx.field(static=True)
    consts: list[Any]
    dtype: Any = eqx.field(static=True)

    def __call__(self, r: Array) -> Array:
        return self.pure(self.consts, r.astype(self.dtype)).astype(r.dtype)


def _program(fn: Callable[[Array], Array], A: Operator) -> _Program:
    form = jax.ShapeDtypeStruct(A.shape[:1], A.dtype)
    pure, out, consts = hoist(fn, form)
    if getattr(out, "shape", None) != form.shape or jnp.result_type(form, out) != form.dtype:
        raise TypeError(f"preconditioner: it must return what it is given, {form}; got {out}.")
    return _Program(pure, consts, form.dtype)


def as_preconditioner(given: Any) -> Preconditioner | None:
    """The preconditioner that `given` stands for: one, None, a function r -> M^-1 r, or a pair of such, the
    second r -> M^-H r. The adjoint of a single function is the transpose of its program by JAX.
    """
    if given is None or isinstance(given, Preconditioner):
        return given
    fns = given if isinstance(given, tuple) else (given, None)
    if len(fns) != 2 or not callable(fns[0]) or not (fns[1] is None or callable(fns[1])):
        raise TypeError(
            "preconditioner must be one such as cd.linalg.Jacobi(), a function r -> M^-1 r, or a pair "
            f"of that and its adjoint; got {given!r}."
        )
    return Given(*map(_as_pytree, fns))


def _as_pytree(fn: Any) -> Any:
    """A function as a pytree, so that a solver can pass through `jax.jit`; without its derivatives."""
    if fn is None or not jax.tree_util.all_leaves([fn]):
        still = lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x
        return jax.tree.map(still, fn)
    return jax.tree_util.Partial(fn)
