r"""Matrices that are sums of a few diagonals, of a vector or of a tensor product of small spaces.

On the states of sites with d_1, ..., d_m levels, with shifts s that wrap around at the end of each site,

    (A x)[i_1, ..., i_m] = sum_g D_g[i_1, ..., i_m] x[i_1 - s_g1, ..., i_m - s_gm].

One site of n levels is a matrix stored by diagonals. A product of matrices of single sites is the sum over
the products of their diagonals, each D_g a small tensor over those sites alone: a Pauli matrix flips a bit or
turns a sign. A product with a vector costs what the non-zeros cost, and moves no memory but x and y.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from cdiffeq._arrays import as_array, require_finite
from cdiffeq._errors import is_traced
from cdiffeq.linalg._operator import (
    Disc,
    Operator,
    Sum,
    as_operator,
    bounding_box,
    multiplied,
)


class Diagonals(Operator):
    """A sum of diagonals: see the module. Made by `diagonals`, `kron` and `cd.spin_chain`.

    `tensors[g]` has as many axes as there are sites, of the length of the site or 1.
    """

    tensors: tuple[Inexact[Array, "..."], ...]
    shifts: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    dims: tuple[int, ...] = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        n = int(np.prod(self.dims))
        return n, n

    @property
    def dtype(self) -> Any:
        return jnp.result_type(*self.tensors)

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return self.mm(x[:, None])[:, 0]

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        # One axis for each site: a shift is then a change of index, which XLA fuses with the sum.
        x = X.reshape(*self.dims, X.shape[1])
        terms = [
            multiplied(D[..., None], _shifted(x, shift))
            for D, shift in zip(self.tensors, self.shifts, strict=True)
        ]
        return sum(terms[1:], terms[0]).reshape(X.shape)

    def adjoint(self) -> Diagonals:
        back = [
            tuple(-s % d for s, d in zip(shift, self.dims, strict=True)) for shift in self.shifts
        ]
        tensors = [jnp.conj(_shifted(D, s)) for D, s in zip(self.tensors, back, strict=True)]
        return Diagonals(tuple(tensors), tuple(back), self.dims)

    def conj(self) -> Diagonals:
        return Diagonals(tuple(map(jnp.conj, self.tensors)), self.shifts, self.dims)

    def scaled(self, factor: Inexact[Array, ""]) -> Diagonals:
        return Diagonals(tuple(factor * D for D in self.tensors), self.shifts, self.dims)

    def __add__(self, other: Any) -> Operator:
        if isinstance(other, Diagonals) and other.dims == self.dims:
            return _gathered([*_terms(self), *_terms(other)], self.dims)
        return Operator.__add__(self, other)

    def disc(self) -> Disc:
        """Of the main diagonal a disc around its entries; each other one adds its largest entry."""
        center, radius = jnp.zeros(()), jnp.zeros(())
        for D, shift in zip(jax.lax.stop_gradient(self.tensors), self.shifts, strict=True):
            if any(shift):
                radius = radius + jnp.max(jnp.abs(D))
            else:
                low, high = bounding_box(D)
                center = center + (low + high) / 2
                radius = radius + jnp.max(jnp.abs(D - (low + high) / 2))
        real = jnp.finfo(self.dtype).dtype
        return Disc(center.astype(self.dtype), radius.astype(real))

    def diagonal(self) -> Inexact[Array, " n"] | None:
        """The entries of a diagonal matrix; None of any other."""
        if any(any(shift) for shift in self.shifts):
            return None
        (D,) = self.tensors
        return jnp.broadcast_to(D, self.dims).reshape(-1)


def diagonals(values: Any, offsets: Sequence[int] = (0,)) -> Diagonals:
    """The square matrix of the given diagonals, as `scipy.sparse.diags`: ``A[i, i + o]`` for each offset o.

    `values` has for each offset a vector of its ``n - abs(o)`` entries, real or complex; for the main
    diagonal alone a single vector will do. Raises `ValueError` for lengths that don't fit.

    >>> A = cd.linalg.diagonals([jnp.ones(2), -2 * jnp.ones(3), jnp.ones(2)], (-1, 0, 1))
    >>> A.to_dense().astype(int)
    Array([[-2,  1,  0],
           [ 1, -2,  1],
           [ 0,  1, -2]], dtype=int64)
    """
    if tuple(offsets) == (0,) and np.ndim(values[0]) == 0:
        values = [values]
    vectors = [as_array(f"values[{i}]", v) for i, v in enumerate(values)]
    sizes = {v.size + abs(o) for v, o in zip(vectors, offsets, strict=True)}
    if len(sizes) != 1 or any(v.ndim != 1 for v in vectors):
        raise ValueError(
            f"diagonals: vectors of shapes {[v.shape for v in vectors]} aren't the diagonals "
            f"{tuple(offsets)} of one matrix."
        )
    n = sizes.pop()
    terms: list[tuple[Array, tuple[int, ...]]] = []
    for i, (v, o) in enumerate(zip(vectors, offsets, strict=True)):
        require_finite(f"diagonals: values[{i}]", v)
        terms.append((jnp.pad(v, (max(0, -o), max(0, o))), (-o % n,)))
    return _gathered(terms, (n,))


def kron(dims: Sequence[int], factors: Mapping[int, Any]) -> Diagonals:
    """A product of matrices of single sites, and identities elsewhere: ``1 x M_j x 1 x M_k x 1``.

    `dims`: the levels of each site, the first site's index the slowest (as `numpy.kron` has it). `factors`:
    for some sites, by number, a matrix (d, d), real or complex: an array, a `scipy.sparse` or a QuTiP one.
    Sums of such operators are one operator. Entries known to be zero cost nothing; with all of a traced
    matrix the cost is its d diagonals. Raises `ValueError` for a site or a shape that doesn't fit.

    >>> Z, X = np.diag([1.0, -1.0]), np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> H = cd.linalg.kron((2, 2), {0: Z, 1: Z}) + 0.5 * cd.linalg.kron((2, 2), {1: X})
    >>> H.to_dense()
    Array([[ 1. ,  0.5,  0. ,  0. ],
           [ 0.5, -1. ,  0. ,  0. ],
           [ 0. ,  0. , -1. ,  0.5],
           [ 0. ,  0. ,  0.5,  1. ]], dtype=float64)
    """
    dims = tuple(int(d) for d in dims)
    if not dims or min(dims) < 1:
        raise ValueError(f"kron: dims must be positive integers, got {dims}.")
    parts = []
    for site, matrix in factors.items():
        if not 0 <= site < len(dims):
            raise ValueError(f"kron: there is no site {site} among {len(dims)}, counted from 0.")
        name = f"kron: factors[{site}]"
        M = as_operator(name, matrix).to_dense()
        if M.shape != (dims[site],) * 2:
            raise ValueError(f"{name} must have shape {(dims[site],) * 2}, got {M.shape}.")
        require_finite(name, M)
        parts.append([(site, s, v) for s, v in _site_diagonals(M)])
    terms = []
    for choice in itertools.product(*parts):
        D, shift = jnp.ones((1,) * len(dims)), [0] * len(dims)
        if choice:
            D = D.astype(jnp.finfo(choice[0][2].dtype).dtype)
        for site, s, v in choice:
            D = D * v.reshape([-1 if k == site else 1 for k in range(len(dims))])
            shift[site] = s
        terms.append((D, tuple(shift)))
    return _gathered(terms, dims)


def _site_diagonals(M: Array) -> list[tuple[int, Array]]:
    """The cyclic diagonals v_s[i] = M[i, i - s] of a matrix; of a known one those that aren't zero."""
    d = M.shape[0]
    rows = np.arange(d)
    if is_traced(M):
        return [(s, M[rows, (rows - s) % d]) for s in range(d)]
    known = np.asarray(M)
    found = [(s, known[rows, (rows - s) % d]) for s in range(d)]
    # Of equal entries one is enough, which doesn't have to be looked up.
    short = lambda v: v[:1] if np.all(v == v[0]) else v
    found = [(s, short(v)) for s, v in found if np.any(v != 0)] or found[:1]
    return [(s, as_array("a diagonal", v)) for s, v in found]


def _terms(A: Diagonals) -> list[tuple[Array, tuple[int, ...]]]:
    return list(zip(A.tensors, A.shifts, strict=True))


def _gathered(terms: list[tuple[Array, tuple[int, ...]]], dims: tuple[int, ...]) -> Diagonals:
    """The operator of these diagonals, where those that can be added without growing are added up.

    All of the main diagonal are one: it is half the size of a state, where a sum of many has to be formed
    anew in each product.
    """
    sums: dict[Any, Array] = {}
    for D, shift in terms:
        key = shift, (D.shape if any(shift) else None)
        sums[key] = sums[key] + D if key in sums else D
    # The main diagonal first, then in the order of their coming.
    keys = sorted(sums, key=lambda key: any(key[0]))
    return Diagonals(tuple(sums[k] for k in keys), tuple(k[0] for k in keys), dims)


def product(A: Diagonals, B: Diagonals) -> Diagonals:
    """A B, of the same sites: its diagonals are ``D_a[i] D_b[i - s_a]`` at the shifts s_a + s_b."""
    terms = []
    for D, s in _terms(A):
        for E, r in _terms(B):
            both = tuple((i + j) % d for i, j, d in zip(s, r, A.dims, strict=True))
            terms.append((D * _shifted(E, s), both))
    return _gathered(terms, A.dims)


def _shifted(x: Array, shift: tuple[int, ...]) -> Array:
    """x[i - s], where axes of length 1 stay as they are."""
    for axis, s in enumerate(shift):
        if s and x.shape[axis] > 1:
            # Of two levels a flip, which is a change of index; a roll copies two pieces.
            x = jnp.flip(x, axis) if x.shape[axis] == 2 else jnp.roll(x, s, axis)
    return x


def main_diagonal(A: Operator) -> Inexact[Array, " n"] | None:
    """The entries of a diagonal operator; None of one that isn't known to be diagonal."""
    if isinstance(A, Sum):
        parts = [main_diagonal(B) for B in A.operators]
        known = [c * d for c, d in zip(A.factors, parts, strict=True) if d is not None]
        return sum(known[1:], known[0]) if len(known) == len(parts) else None
    return A.diagonal() if isinstance(A, Diagonals) else None
