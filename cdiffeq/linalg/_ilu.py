"""Incomplete LU factors of a sparse matrix as a preconditioner, by SciPy on the host."""

from __future__ import annotations

import collections
import functools
import hashlib
import threading
from typing import Any

import equinox as eqx
import jax
import numpy as np
import scipy.sparse
from jaxtyping import Array, Inexact

from cdiffeq.linalg._host import host_call
from cdiffeq.linalg._operator import Operator, Sparse
from cdiffeq.linalg._preconditioner import Preconditioner


class ILU(Preconditioner):
    """Incomplete LU with thresholds (SuperLU's, Li and Shao 2011, doi:10.1145/1916461.1916467) of a sparse A,
    as in `scipy.sparse.linalg.spilu`; on the host, also where A is on a GPU.

    - `drop_tol`: entries of the factors below it, relative to their column, are dropped.
    - `fill_factor`: the factors have at most so many times the entries of A.

    Where A has no such factors the solve fails, with `Code.NOT_FINITE`. They are kept on the host, those last
    used up to `_ilu.FACTORS_BYTES` in all, and made again where they aren't found there.

    >>> import scipy.sparse
    >>> A = scipy.sparse.diags_array([[-1.0] * 9, [2.0] * 10, [-1.0] * 9], offsets=[-1, 0, 1])
    >>> gmres = cd.linalg.GMRES(preconditioner=cd.linalg.ILU(), max_steps=2)
    >>> cd.linalg.solve(A, np.ones(10), gmres).round(6)
    Array([ 5.,  9., 12., 14., 15., 15., 14., 12.,  9.,  5.], dtype=float64)
    """

    drop_tol: float = eqx.field(default=1e-4, static=True)
    fill_factor: float = eqx.field(default=10.0, static=True)

    def init(self, A: Operator) -> tuple[Array, Array, Array, Array]:
        if not isinstance(A, Sparse):
            raise TypeError(f"ILU: A must be a sparse matrix, got {type(A).__name__}.")
        entries = A.data, A.row, A.column
        factorize = functools.partial(self._factorize, A.shape[0])
        (key,) = host_call(factorize, [jax.ShapeDtypeStruct((4,), np.uint32)], *entries)
        return key, *entries

    def apply(self, state: Any, r: Inexact[Array, " n"], adjoint: bool) -> Inexact[Array, " n"]:
        solve = functools.partial(self._solve, "H" if adjoint else "N")
        return host_call(solve, [jax.ShapeDtypeStruct(r.shape, r.dtype)], r, *state)[0]

    def _factorize(self, n: int, *entries: np.ndarray) -> tuple[np.ndarray]:
        """The key of the factors, which are kept."""
        digest = hashlib.blake2b(repr((self, n, entries[0].dtype)).encode(), digest_size=16)
        for array in entries:
            digest.update(array.tobytes())
        self._factors(digest.digest(), n, *entries)
        return (np.frombuffer(digest.digest(), np.uint32),)

    def _solve(
        self, trans: str, r: np.ndarray, key: np.ndarray, *entries: np.ndarray
    ) -> tuple[np.ndarray]:
        factors = self._factors(key.tobytes(), len(r), *entries)
        if factors is None:
            return (np.full_like(r, np.nan),)
        return (factors.solve(r.astype(entries[0].dtype), trans),)

    def _factors(
        self, key: bytes, n: int, data: np.ndarray, row: np.ndarray, column: np.ndarray
    ) -> Any:
        """The factors of this key, made if they aren't there; None if there are none."""
        with _LOCK:
            if key in _FACTORS:
                _FACTORS.move_to_end(key)
                return _FACTORS[key]
        matrix = scipy.sparse.csc_array((data, (row, column)), shape=(n, n))
        factors = self._of_matrix(matrix)
        with _LOCK:
            _FACTORS[key] = factors
            taken = sum(map(_bytes, _FACTORS.values()))
            while taken > FACTORS_BYTES and len(_FACTORS) > 1:
                taken -= _bytes(_FACTORS.popitem(last=False)[1])
        return factors

    def _of_matrix(self, matrix: scipy.sparse.csc_array) -> Any:
        matrix.eliminate_zeros()
        # At an empty column SuperLU ends the process, by a division by a complex zero.
        n = matrix.shape[0]
        empty = any(np.unique(index).size < n for index in matrix.nonzero())
        if empty or not np.all(np.isfinite(matrix.data)):
            return None
        try:
            return scipy.sparse.linalg.spilu(
                matrix, drop_tol=self.drop_tol, fill_factor=self.fill_factor
            )
        except RuntimeError:  # a pivot is zero
            return None


# Bytes that the factors on the host may take together; the newest are kept in any case.
FACTORS_BYTES = 2**28

# By the digest of a matrix: JAX has no place for an object of the host among its arrays.
_FACTORS: collections.OrderedDict[bytes, Any] = collections.OrderedDict()
_LOCK = threading.Lock()


def _bytes(factors: Any) -> int:
    """About what they take; None stands for none, and takes something too."""
    return 64 if factors is None else 20 * factors.nnz
