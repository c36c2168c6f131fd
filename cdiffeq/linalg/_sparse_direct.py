"""Sparse LU by SuperLU, on the host.

    P A P^T = L U,      x_1 = (L U)^-1 b,      x = x_1 + (L U)^-1 (b - A x_1)

P is a minimum degree ordering of the pattern of A + A^T, and pivots are taken from the diagonal: the
factors of matrices from differential equations are then half as large as with row exchanges, and one
refinement makes up for the rounding that is left (Li and Demmel 1998, doi:10.1109/SC.1998.10030). The
backward error of x is measured. Where it isn't at rounding, A is factored again, with SuperLU's own choice
of columns and with row exchanges (Demmel et al. 1999, doi:10.1137/S0895479895291765).
"""

from __future__ import annotations

import collections
import functools
import secrets
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Array, Inexact

from cdiffeq._errors import is_traced
from cdiffeq.linalg import _operator
from cdiffeq.linalg._condition import ill_conditioned
from cdiffeq.linalg._host import host_call
from cdiffeq.linalg._operator import Operator
from cdiffeq.linalg._solver import Code, Report, Solver
from cdiffeq.linalg._structure import dense

# Bytes that the factors on the host may take together; the newest are kept in any case.
FACTORS_BYTES = 2**30

_DIAGONAL_PIVOTS = dict(
    permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=dict(SymmetricMode=True)
)
_ROW_EXCHANGES: dict[str, Any] = {}  # SuperLU's defaults

# A backward error below this is rounding.
_ROUNDING_IN_EPS = 16


class Sparse(Solver):
    """Sparse LU (SuperLU, by way of SciPy): a minimum degree ordering, pivots from the diagonal as long as
    they are good enough, and one step of refinement.

    Reads the entries of a sparse operator; another one is made dense. Where the pattern is known when a
    program is traced (the indices of a BCOO matrix aren't traced), it is analysed then, once. Says that A is
    singular where a pivot is zero, or where an estimate of its condition number, with rows and columns
    scaled, is 1 / eps or more.

    The factors stay on the host between solves, in a store of 1 GiB (`_sparse_direct.FACTORS_BYTES`) for
    all: value and gradient share one factorization, and so do all solves of a `Factorization`. Factors that
    had to make room for others are computed again when they are asked for, which costs time, nothing else.
    On a GPU A and b travel to the host: correct, and slow. Under `jax.vmap` over A the host factors one
    after the other.

    Cost: for a grid of n points in two dimensions about n^1.5 operations, and n log n for a solve; memory:
    n log n numbers. Nothing of size n x n is formed.

    >>> import scipy.sparse
    >>> A = scipy.sparse.diags_array([np.ones(4), 1j * np.ones(5), np.ones(4)], offsets=[-1, 0, 1])
    >>> cd.linalg.solve(A, A @ np.arange(5.0), cd.linalg.Sparse()).real.round(12) + 0.0
    Array([0., 1., 2., 3., 4.], dtype=float64)
    """

    def init(self, A: Operator) -> Any:
        data, row, column = entries(A)
        like = [jax.ShapeDtypeStruct((2,), np.uint32)]
        if is_traced(row) or is_traced(column):
            (key,) = host_call(functools.partial(_store, A.shape[0]), like, data, row, column)
        else:
            pattern = analyse(np.asarray(row), np.asarray(column), A.shape[0])
            (key,) = host_call(functools.partial(_store_values, pattern), like, data)
        return key, data, row, column

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        real = jnp.finfo(b.dtype).dtype
        like = (
            jax.ShapeDtypeStruct(b.shape, b.dtype),
            jax.ShapeDtypeStruct((), real),
            jax.ShapeDtypeStruct((), real),
        )
        x, code, residual = host_call(functools.partial(_solve, adjoint), like, b, *state)
        return x, Report(code, residual, jnp.zeros((), real))


def entries(A: Operator) -> tuple[Any, Any, Any]:
    """The values, rows and columns of what A has; all n^2 of an operator that isn't sparse."""
    if isinstance(A, _operator.Sparse):
        return A.data, A.row, A.column
    n = A.shape[0]
    row, column = np.divmod(np.arange(n * n), max(n, 1))
    return dense(A).reshape(-1), row.astype(np.int32), column.astype(np.int32)


class Pattern(NamedTuple):
    """Where the entries of a matrix go in compressed columns.

    The values there are ``data[order]``, added up from each of `starts` to the next; either is None where
    nothing changes.
    """

    order: np.ndarray | None
    starts: np.ndarray | None
    indices: np.ndarray
    indptr: np.ndarray

    @property
    def n(self) -> int:
        return len(self.indptr) - 1

    def matrix(self, data: np.ndarray) -> scipy.sparse.csc_array:
        """The matrix with these values."""
        # Always a copy: the values may be gone when the factors are used.
        data = data.copy() if self.order is None else data[self.order]
        if self.starts is not None:
            data = np.add.reduceat(data, self.starts)
        matrix = scipy.sparse.csc_array((data, self.indices, self.indptr), (self.n, self.n))
        matrix.has_canonical_format = True
        return matrix


def analyse(row: np.ndarray, column: np.ndarray, n: int) -> Pattern:
    """The pattern of the entries at these places."""
    key = column.astype(np.int64) * n + row
    order = starts = None
    if np.any(key[1:] < key[:-1]):
        order = np.argsort(key, kind="stable")
        key = key[order]
    new = np.append(np.full(min(len(key), 1), True), key[1:] != key[:-1])
    if not np.all(new):
        starts = np.flatnonzero(new)
        key = key[starts]
    column, row = np.divmod(key, max(n, 1))
    indptr = np.searchsorted(column, np.arange(n + 1))
    return Pattern(order, starts, row.astype(np.int32), indptr.astype(np.int32))


class Factors:
    """A matrix and its factors."""

    def __init__(self, matrix: scipy.sparse.csc_array):
        self.matrix = matrix
        sizes = np.abs(matrix.data)
        rows = np.bincount(matrix.indices, sizes)
        columns = np.diff(np.append(0, np.cumsum(sizes))[matrix.indptr])
        self.norms = [np.max(sums, initial=0) for sums in (rows, columns)]  # of A, and of A^H
        self.code = Code.SUCCESS
        self.lu: Any = None
        if not np.all(np.isfinite(self.norms)):
            self.code = Code.NOT_FINITE
        elif matrix.shape[0] and not self._factor(_DIAGONAL_PIVOTS):
            self.exchange_rows()

    def exchange_rows(self) -> None:
        """Factor again, in the way that needs no luck."""
        self.exchanged = True
        if not self._factor(_ROW_EXCHANGES):
            self.code = Code.SINGULAR

    def _factor(self, options: dict[str, Any]) -> bool:
        """Whether these options led to factors, of a matrix that isn't singular to rounding."""
        try:
            self.lu = scipy.sparse.linalg.splu(self.matrix, **options)
        except RuntimeError:  # a pivot is zero
            return False
        A = self.matrix
        column = np.repeat(np.arange(A.shape[1]), np.diff(A.indptr))
        solve = lambda b, adjoint: self.lu.solve(b.astype(A.dtype), trans="H" if adjoint else "N")
        eps = np.finfo(A.dtype).eps
        return not ill_conditioned(solve, np.abs(A.data), A.indices, column, A.shape[0], eps)

    exchanged = False

    @property
    def bytes(self) -> int:
        """About what the factors and the matrix take."""
        entries = self.matrix.nnz + (0 if self.lu is None else self.lu.nnz)
        return entries * (self.matrix.dtype.itemsize + 4)

    def solve(self, b: np.ndarray, adjoint: bool) -> tuple[np.ndarray, int, float]:
        """x, the code of how it went, and norm(b - A x) / norm(b) of the worst column."""
        if b.size == 0:
            return b, Code.SUCCESS, 0.0
        if self.code != Code.SUCCESS or not np.all(np.isfinite(b)):
            return np.full_like(b, np.nan), self.code or Code.NOT_FINITE, np.nan
        x, left, error = self._refined(b, adjoint)
        if not error <= _ROUNDING_IN_EPS and not self.exchanged:
            self.exchange_rows()
            return self.solve(b, adjoint)
        norm = lambda v: np.sqrt(np.sum(np.abs(v) ** 2, axis=0))
        given = norm(b)
        residual = float(np.max(norm(left) / np.where(given == 0, 1, given)))
        # Row exchanges and refinement give all digits, of a matrix that has them to give.
        lost = not error <= 1e3 * _ROUNDING_IN_EPS
        return x, Code.SINGULAR if lost else Code.SUCCESS, residual

    def _refined(self, b: np.ndarray, adjoint: bool) -> tuple[np.ndarray, np.ndarray, float]:
        """x, b - A x, and the backward error in eps, norm(b - A x) / (norm(A) norm(x) + norm(b)) / eps."""
        A = self.matrix.conj().T if adjoint else self.matrix
        solve = lambda b: self.lu.solve(b, trans="H" if adjoint else "N")
        x = solve(b)
        x = x + solve(b - A @ x)
        left = b - A @ x
        norm = lambda v: np.max(np.abs(v), axis=0)
        scale = self.norms[adjoint] * norm(x) + norm(b)
        error = np.max(norm(left) / np.where(scale == 0, 1, scale))
        return x, left, error / np.finfo(b.dtype).eps


_stored: collections.OrderedDict[int, Factors] = collections.OrderedDict()
_lock = threading.Lock()


def _keep(key: int, factors: Factors) -> None:
    """Keep these factors, and let go of those which weren't used for longest if there is no room."""
    with _lock:
        _stored[key] = factors
        _stored.move_to_end(key)
        taken = sum(f.bytes for f in _stored.values())
        while taken > FACTORS_BYTES and len(_stored) > 1:
            _, oldest = _stored.popitem(last=False)
            taken -= oldest.bytes


def _store(n: int, data: np.ndarray, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray]:
    return _store_values(*_analysed(n, data, row, column))


def _analysed(
    n: int, data: np.ndarray, row: np.ndarray, column: np.ndarray
) -> tuple[Pattern, np.ndarray]:
    """The pattern and the values, without entries beyond the matrix, JAX's way to fill up."""
    inside = (row < n) & (column < n)
    if not inside.all():
        data, row, column = data[inside], row[inside], column[inside]
    return analyse(row, column, n), data


def _store_values(pattern: Pattern, data: np.ndarray) -> tuple[np.ndarray]:
    """Factor; the key of the factors."""
    key = secrets.randbits(63)
    _keep(key, Factors(pattern.matrix(data)))
    return (np.array([key >> 32, key & 0xFFFFFFFF], np.uint32),)


def _solve(
    adjoint: bool,
    b: np.ndarray,
    key: np.ndarray,
    data: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
) -> tuple[np.ndarray, int, float]:
    high, low = (int(part) for part in key)
    number = (high << 32) | low
    with _lock:
        factors = _stored.get(number)
        if factors is not None:
            _stored.move_to_end(number)
    if factors is None:
        pattern, data = _analysed(len(b), data, row, column)
        factors = Factors(pattern.matrix(data))
        _keep(number, factors)
    return factors.solve(b, adjoint)
