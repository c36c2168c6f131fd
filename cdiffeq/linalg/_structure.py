"""What structured solvers read of an operator, and whether anything is left over that they don't."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact

from cdiffeq._errors import is_traced, raise_if
from cdiffeq.linalg._condition import probe
from cdiffeq.linalg._operator import Function, Operator, Sparse


def dense(A: Operator) -> Inexact[Array, "n n"]:
    """The matrix of A; an error if a function isn't linear over the complex numbers, and has none."""
    matrix = A.to_dense()
    if not isinstance(A, Function) or not jnp.iscomplexobj(matrix):
        return matrix
    v = jnp.asarray((1 + 2j) * probe(A.shape[1]), matrix.dtype)
    off = jnp.max(jnp.abs(A.mv(v) - matrix @ v), initial=0)
    scale = jnp.max(jnp.sum(jnp.abs(matrix), axis=1), initial=0)
    error = lambda: ValueError(
        "solve: A isn't linear over the complex numbers (A(i x) isn't i A(x)); see `real_linear_solve`."
    )
    return raise_if(matrix, off > jnp.finfo(matrix.dtype).eps ** 0.5 * scale, error)


def band(
    name: str, A: Operator, lower: int, upper: int
) -> tuple[Inexact[Array, "width n"], Bool[Array, ""]]:
    """The diagonals of A from `upper` above the main one to `lower` below it, as LAPACK stores them:
    ``ab[upper + i - j, j] = A[i, j]``; and whether A has entries elsewhere.

    Raises `ValueError` if it has, and that is known now; `name` is what the band is called then.
    """
    n, width = A.shape[0], lower + upper + 1
    if isinstance(A, Sparse):
        row: Any = A.row
        column: Any = A.column
        known = not (is_traced(row) or is_traced(column))
        if known:
            row, column = np.asarray(row), np.asarray(column)
        below = row - column
        elsewhere = (below > lower) | (below < -upper)
        if known and elsewhere.any():
            first = np.argmax(elsewhere)
            _refuse(name, row[first], column[first])
        beyond = (row >= n) | (column >= n)  # JAX's way to fill up to a number of entries
        place = jnp.where(elsewhere | beyond, width * n, (upper + below) * n + column)
        ab = jnp.zeros(width * n, A.dtype).at[place].add(A.data, mode="drop").reshape(width, n)
        return ab, jnp.any(elsewhere & ~beyond & (A.data != 0))

    matrix = dense(A)
    found = outside(name, matrix, lower, upper)
    i = np.arange(n) + np.arange(-upper, lower + 1)[:, None]
    entries = matrix[np.clip(i, 0, max(n - 1, 0)), np.arange(n)[None]]
    return jnp.where((i >= 0) & (i < n), entries, 0), found


def outside(name: str, matrix: Inexact[Array, "n n"], lower: int, upper: int) -> Bool[Array, ""]:
    """Whether the matrix has entries outside of this band; as with `band`, `ValueError` if that is known."""
    i, j = np.indices(matrix.shape, sparse=True)
    elsewhere = (i - j > lower) | (i - j < -upper)
    if is_traced(matrix):
        return jnp.any((matrix != 0) & elsewhere)
    where = np.argwhere((np.asarray(matrix) != 0) & elsewhere)
    if where.size:
        _refuse(name, *where[0])
    return jnp.zeros((), bool)


def _refuse(name: str, i: Any, j: Any) -> None:
    raise ValueError(f"solve: {name} was told to solve with A, which has an entry at [{i}, {j}].")
