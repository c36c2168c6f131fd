"""Whether a matrix is singular to rounding, judged from its factors whatever the scales of rows and columns.

Of triangular factors: a pivot is what is left of a sum, ``u_jj = a_jj - sum_k l_jk u_kj``, and says nothing
if it is as small as the rounding errors of the terms.

Of a solver: ``norm(A^-1)`` in the 1-norm from below, by one step of a power method (Hager 1984,
doi:10.1137/0905023), for A with its rows and then its columns scaled to sums of one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact

# A pivot of a matrix that is singular but for rounding is below this many eps of its terms in 99 of 100
# random ones of 2 to 150 rows; of a regular one it is 1e9 eps and more.
PIVOT_IN_EPS = 100

# Of matrices that are singular but for rounding the estimate is 3 / eps and more.
SINGULAR_FROM = 1.0


def lost_pivot(lu: Inexact[Array, "n n"]) -> Bool[Array, ""]:
    """Whether a pivot of LU factors, both in one matrix, is nothing but rounding.

    On a CPU one look at all of the factors takes a tenth of the time that they took. So only one small pivot
    among the others, in the whole of a batch, leads to it.
    """
    if lu.shape[0] == 0:
        return jnp.zeros((), bool)
    eps = jnp.finfo(lu.dtype).eps
    pivots = size(jnp.diagonal(lu))

    def look():
        sizes = size(lu)
        terms = jnp.sum(jnp.tril(sizes, -1) * jnp.triu(sizes).T, axis=1) + pivots
        return jnp.any(pivots <= PIVOT_IN_EPS * eps * terms)

    small = jnp.min(pivots) <= eps**0.25 * jnp.max(pivots)
    return jax.lax.cond(eqxi.unvmap_any(small), look, lambda: jnp.zeros((), bool))


def size(x: Inexact[Array, "..."]) -> Float[Array, "..."]:
    """The sum of the moduli of the real and the imaginary part: cheaper than the modulus."""
    return jnp.abs(x.real) + jnp.abs(x.imag) if jnp.iscomplexobj(x) else jnp.abs(x)


def ill_conditioned(
    solve: Callable[[Any, bool], Any], sizes: Any, row: Any, column: Any, n: int, eps: Any
) -> Any:
    """Whether a matrix with entries of these moduli at these places is singular to rounding.

    ``solve(b, adjoint)`` solves with it or its adjoint. NumPy or JAX, like `sizes`.
    """
    on_host = isinstance(sizes, np.ndarray)
    xp: Any = np if on_host else jnp
    dtype = sizes.dtype
    v = xp.asarray(probe(n), dtype)
    with np.errstate(all="ignore"):
        rows, weights = scales(sizes, row, column, n)
        y = solve(rows * v, False) / weights
        first = xp.sum(xp.abs(y)) / xp.sum(xp.abs(v))
        phase = xp.where(y == 0, 1, y / xp.where(y == 0, 1, xp.abs(y)))
        second = xp.max(rows * xp.abs(solve(phase / weights, True)), initial=0)
        return ~(xp.maximum(first, second) * eps < SINGULAR_FROM)


def scales(sizes: Any, row: Any, column: Any, n: int) -> tuple[Any, Any]:
    """The row sums, and the weights of the columns which make all column sums one after division by them."""
    if isinstance(sizes, np.ndarray):
        add: Any = lambda values, place: np.bincount(place, values, n).astype(sizes.dtype)
    else:
        add = lambda values, place: jax.ops.segment_sum(values, place, n)
    rows = add(sizes, row)
    return rows, 1 / add(sizes / rows[row], column)


@functools.lru_cache(maxsize=8)
def probe(n: int) -> np.ndarray:
    """A vector of random entries: it is next to orthogonal to no singular vector in particular."""
    rng = np.random.default_rng(0)
    return rng.choice([-1.0, 1.0], n) * rng.uniform(0.5, 1.0, n)
