r"""Matrices with a few diagonals on either side of the main one, and systems with them.

    A[i, i + o] = rows[o + w, i],     o = -w ... w.

A matrix of this bandwidth w shows all its entries in 2w + 1 products: of the columns that are apart by 2w + 1
no two reach the same row.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Inexact

from cdiffeq._errors import is_traced, raise_if
from cdiffeq.linalg._condition import probe
from cdiffeq.linalg._diagonals import Diagonals
from cdiffeq.linalg._host import host_call
from cdiffeq.linalg._operator import Bounded, Dense, Operator, Sparse, Sum, multiplied
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule


class Band(Operator):
    """A matrix of the diagonals `rows`: see the module. What lies beyond the matrix is zero."""

    rows: Inexact[Array, "diagonals n"]

    @property
    def width(self) -> int:
        """How many diagonals there are above the main one, and below."""
        return len(self.rows) // 2

    @property
    def shape(self) -> tuple[int, int]:
        n = self.rows.shape[1]
        return n, n

    @property
    def dtype(self) -> Any:
        return self.rows.dtype

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return self.mm(x[:, None])[:, 0]

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        n, w = len(X), self.width
        X = jnp.pad(X, ((w, w), (0, 0)))
        terms = [multiplied(row[:, None], X[k : k + n]) for k, row in enumerate(self.rows)]
        return sum(terms[1:], terms[0])

    def adjoint(self) -> Band:
        n, w = self.shape[0], self.width
        rows = jnp.conj(jnp.pad(self.rows, ((0, 0), (w, w))))
        return Band(jnp.stack([rows[2 * w - k, k : k + n] for k in range(2 * w + 1)]))

    def conj(self) -> Band:
        return Band(jnp.conj(self.rows))

    def scaled(self, factor: Inexact[Array, ""]) -> Band:
        return Band(factor * self.rows)


def bandwidth(A: Operator) -> int | None:
    """The bandwidth of A, as far as numbers that are traced let it be known; None where nothing does."""
    if isinstance(A, Sum):
        widths = [bandwidth(B) for B in A.operators]
        known = [w for w in widths if w is not None]
        return max(known) if len(known) == len(widths) else None
    if isinstance(A, Bounded):
        return bandwidth(A.A)
    if isinstance(A, Band):
        return A.width
    if isinstance(A, Dense) and not is_traced(A.matrix):
        return _farthest(*np.nonzero(np.asarray(A.matrix)))
    if isinstance(A, Sparse) and not (is_traced(A.row) or is_traced(A.column)):
        return _farthest(np.asarray(A.row), np.asarray(A.column))
    if isinstance(A, Diagonals):
        return max(_reach(A, g) for g in range(len(A.tensors)))
    return None


def _reach(A: Diagonals, g: int) -> int:
    """How far from the main diagonal one of the diagonals gets."""
    D, shift = A.tensors[g], A.shifts[g]
    n, rows = A.shape[0], np.arange(A.shape[0])
    if len(A.dims) == 1 and is_traced(D):
        # What wraps around the end is zero, as `diagonals` makes it, or will be found to be something else.
        return min(shift[0], n - shift[0])
    columns = np.roll(rows.reshape(A.dims), shift, range(len(A.dims))).reshape(-1)
    if is_traced(D):
        return _farthest(rows, columns)
    present = np.broadcast_to(np.asarray(D) != 0, A.dims).reshape(-1)
    return _farthest(rows[present], columns[present])


def _farthest(row: np.ndarray, column: np.ndarray) -> int:
    return int(np.max(np.abs(row.astype(np.int64) - column), initial=0))


def as_band(name: str, A: Operator, width: int) -> Band:
    """A as a matrix of this bandwidth; an error when run if it has entries elsewhere."""
    n, period = A.shape[0], 2 * width + 1
    row, column = np.arange(n), np.arange(n) + np.arange(-width, width + 1)[:, None]
    inside = (column >= 0) & (column < n)
    if isinstance(A, Dense):
        entries = A.matrix[row, np.clip(column, 0, n - 1)]
    else:
        comb = row[:, None] % period == np.arange(period)
        entries = A.mm(jnp.asarray(comb, A.dtype))[row, column % period]
    band = Band(jnp.where(inside, entries, 0))

    still, held = jax.lax.stop_gradient((A, band))
    v = jnp.asarray(probe(n), A.dtype)
    off = jnp.max(jnp.abs(still.mv(v) - held.mv(v)), initial=0)
    size = jnp.max(jnp.abs(held.rows), initial=0)
    error = lambda: ValueError(
        f"{name} has entries further than {width} from its main diagonal; give the bandwidth that it has."
    )
    return raise_if(band, off > 1e3 * period * jnp.finfo(size.dtype).eps * size, error)


@adjoint_rule
def solve_band(
    rows: Inexact[Array, "diagonals n"], b: Inexact[Array, "n k"]
) -> Inexact[Array, "n k"]:
    """x with A x = b for the `Band` A of these rows, by LU with partial pivoting; NaN if A is singular."""
    width = len(rows) // 2
    if width == 0:
        return b / rows[0][:, None]
    if width == 1:
        return jax.lax.linalg.tridiagonal_solve(rows[0], rows[1], rows[2], b)
    return host_call(_gbsv, [jax.ShapeDtypeStruct(b.shape, b.dtype)], rows, b)[0]


@solve_band.def_tangent
def _tangent(args, x, dargs):
    (rows, _), (drows, db) = args, dargs
    return solve_band(rows, db - Band(drows).mm(x))


@solve_band.def_adjoint
def _adjoint(args, x, g):
    rows, _ = args
    g_b = solve_band(Band(rows).adjoint().rows, g)
    return -pull_back(lambda rows: Band(rows).mm(x), rows)[1](g_b)[0], g_b


def _gbsv(rows: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
    """LAPACK's, which stores A[i, j] in ab[2 w + i - j, j]."""
    period, n = rows.shape
    w = period // 2
    ab = np.zeros((3 * w + 1, n), rows.dtype, order="F")
    for o in range(-w, w + 1):
        ab[2 * w - o, max(0, o) : n + min(0, o)] = rows[w + o, max(0, -o) : n - max(0, o)]
    (gbsv,) = scipy.linalg.get_lapack_funcs(("gbsv",), (ab, b))
    _, _, x, info = gbsv(w, w, ab, b, overwrite_ab=True)
    return (x if info == 0 else np.full_like(x, np.nan),)
