"""What is known about an operator's spectrum before a method starts: its trace, norms and bounds.

Everything here is without derivatives: methods choose their degrees by it, and their results don't depend
on the choice.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from cdiffeq.linalg._arnoldi import arnoldi, two_norm
from cdiffeq.linalg._operator import Dense, Function, Operator, Sparse
from cdiffeq.linalg._padded import Padded

_STEPS = 30  # of Lanczos' process, for bounds of a spectrum
_POWERS = 12  # of A^H A, for a norm


class Entries(NamedTuple):
    """The diagonal of a matrix, and the sums of moduli of its other entries by rows and by columns."""

    diagonal: Inexact[Array, " n"]
    rows: Float[Array, " n"]
    columns: Float[Array, " n"]


def entries(A: Operator) -> Entries | None:
    """The `Entries` of a matrix; None of an operator without known entries."""
    A = jax.lax.stop_gradient(A)
    if isinstance(A, Dense):
        d = jnp.diagonal(A.matrix)
        off = jnp.abs(A.matrix - jnp.diag(d))
        return Entries(d, jnp.sum(off, axis=1), jnp.sum(off, axis=0))
    if isinstance(A, Padded):
        on = A.column == jnp.arange(A.shape[0], dtype=A.column.dtype)[None]
        d = jnp.sum(jnp.where(on, A.values, 0), axis=0)
        off = jnp.where(on, 0, jnp.abs(A.values))
        by_column = jnp.append(off.reshape(-1), 0)[A.flat]
        return Entries(d, jnp.sum(off, axis=0), jnp.sum(by_column, axis=0))
    if isinstance(A, Sparse):
        on = A.row == A.column
        total = lambda x, places: jax.ops.segment_sum(x, places, num_segments=A.shape[0])
        off = jnp.where(on, 0, jnp.abs(A.data))
        d = total(jnp.where(on, A.data, 0), A.row)
        return Entries(d, total(off, A.row), total(off, A.column))
    return None


def probes(A: Operator, count: int) -> list[Inexact[Array, " n"]]:
    """Random vectors of norm 1, always the same ones."""
    dtype = A.dtype
    keys = jax.random.split(jax.random.key(0), count)
    draw = lambda key: jax.random.normal(key, (A.shape[1],), dtype)
    return [x / two_norm(x) for x in map(draw, keys)]


def norm_estimate(A: Operator) -> Float[Array, ""]:
    """The 2-norm of A from below, by the power method on A^H A, with a margin of a fifth on top.

    Twelve powers come within a factor 0.9 of it with a probability that is high for any A (Kuczynski and
    Wozniakowski 1992, doi:10.1137/0613066).
    """
    A = jax.lax.stop_gradient(A)
    adjoint = A.adjoint()
    (x,) = probes(A, 1)

    def power(_, state):
        x, _ = state
        y = A.mv(x)
        norm = two_norm(y)
        x = adjoint.mv(y)
        size = two_norm(x)
        return x / jnp.where(size == 0, 1, size), norm

    _, norm = jax.lax.fori_loop(0, _POWERS, power, (x, two_norm(x)))
    return 1.2 * norm


def adjoint_sign(A: Operator) -> Float[Array, ""]:
    """1 if A^H = A, -1 if A^H = -A, NaN if neither, to rounding.

    Of a dense matrix every entry is looked at; of others <z, A x> and <A z, x> for a pair of random vectors.
    """
    # Of a function there is nothing by which the same program could be found again.
    return (_adjoint_sign if isinstance(A, Function) else _compiled_sign)(jax.lax.stop_gradient(A))


def _adjoint_sign(A: Operator) -> Float[Array, ""]:
    real = jnp.finfo(A.dtype).dtype
    if isinstance(A, Dense):
        back = jnp.conj(A.matrix.T)
        off = lambda sign: jnp.max(jnp.abs(A.matrix - sign * back), initial=0)
        scale = jnp.max(jnp.abs(A.matrix), initial=0)
        return _sign(off(1), off(-1), 8 * jnp.finfo(real).eps * scale, real)
    x, z = probes(A, 2)
    Ax, Az = A.mv(x), A.mv(z)
    right, left = jnp.vdot(z, Ax), jnp.vdot(Az, x)
    off = lambda sign: jnp.abs(right - sign * left)
    # Of random vectors the products are smaller than the norms by the root of n; the rounding is, too.
    scale = (two_norm(Ax) + two_norm(Az)) / 2
    allowed = 32 * jnp.finfo(real).eps * scale
    return _sign(off(1), off(-1), allowed, real)


_compiled_sign = eqx.filter_jit(_adjoint_sign)


def _sign(same: Array, opposite: Array, allowed: Array, dtype: jnp.dtype) -> Float[Array, ""]:
    sign = jnp.where(same <= allowed, 1, jnp.where(opposite <= allowed, -1, jnp.nan))
    return sign.astype(dtype)


def real_bounds(
    A: Operator, anti: Bool[Array, ""], known: Entries | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Bounds of the spectrum of a Hermitian A, or of A / i where `anti`: Gershgorin's where the entries are
    known, else those of Lanczos' process, extreme Ritz values with their residuals and a margin.
    """
    A = jax.lax.stop_gradient(A)
    if known is not None:
        d = jnp.where(anti, jnp.imag(known.diagonal), jnp.real(known.diagonal))
        return jnp.min(d - known.rows), jnp.max(d + known.rows)
    (x,) = probes(A, 1)
    basis = arnoldi(A.mv, x, min(_STEPS, A.shape[0]))
    H = basis.H.astype(jnp.result_type(basis.H, jnp.complex64)) * jnp.where(anti, -1j, 1)
    theta, s = jnp.linalg.eigh((H + jnp.conj(H.T)) / 2)
    left = basis.beta * jnp.abs(s[-1])
    low, high = jnp.min(theta - left), jnp.max(theta + left)
    margin = 0.01 * (high - low)
    return low - margin, high + margin
