r"""A linear recurrence with constant diagonal coefficients, in parallel.

x_k = a x_(k-1) + v_k,      x_(-1) = 0                        k = 0, ..., length - 1
dx_k = a dx_(k-1) + (dv_k + da x_(k-1))                       tangent: a recurrence
l_k = conj(a) l_(k+1) + g_k                                   adjoint: one that runs backward
gv = l,    ga = sum_k conj(x_(k-1)) l_k
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from cdiffeq.wirtinger import adjoint_rule


def linear_recurrence(
    a: Inexact[Array, "..."], v: Inexact[Array, "..."]
) -> Inexact[Array, "length state"]:
    r"""All x of ``x_k = a x_(k-1) + v_k``, from ``x_(-1) = 0``, elementwise in the state.

    `a` is (state,), `v` is (length, state), each real or complex; the result is shaped as v, in their common
    dtype. Raises `ValueError` for shapes that don't fit.

    By a parallel prefix sum (G. E. Blelloch 1990, https://www.cs.cmu.edu/~guyb/papers/Ble93.pdf): about
    log2(length) steps on a parallel device, 2 length state multiplications in all. Derivatives are such
    recurrences again; of the forward pass the rule keeps a, v and x, and no step in between.

    >>> print(cd.nn.linear_recurrence(jnp.array([0.5j]), jnp.ones((3, 1)))[:, 0])
    [1.  +0.j  1.  +0.5j 0.75+0.5j]
    """
    a, v = jnp.asarray(a), jnp.asarray(v)
    if a.ndim != 1 or v.ndim != 2 or v.shape[1] != len(a):
        raise ValueError(
            f"linear_recurrence: a must be (state,) and v (length, state), got {a.shape} and {v.shape}."
        )
    dtype = jnp.result_type(a, v)
    return _recurrence(a.astype(dtype), v.astype(dtype))


@adjoint_rule
def _recurrence(a, v):
    def after(first, second):
        (a1, v1), (a2, v2) = first, second
        return a2 * a1, a2 * v1 + v2

    return jax.lax.associative_scan(after, (jnp.broadcast_to(a, v.shape), v))[1]


@_recurrence.def_tangent
def _(args, x, dargs):
    (a, _), (da, dv) = args, dargs
    return _recurrence(a, dv + da[None] * _before(x))


@_recurrence.def_adjoint
def _(args, x, g):
    a, _ = args
    l = _recurrence(jnp.conj(a), g[::-1])[::-1]
    return jnp.sum(jnp.conj(_before(x)) * l, axis=0), l


def _before(x: Inexact[Array, "length state"]) -> Inexact[Array, "length state"]:
    """x_(k-1) in the place of x_k."""
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])
