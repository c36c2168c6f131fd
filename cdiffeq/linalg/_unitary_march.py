r"""The way back through exp(-iB) in the memory of a few states: see `_unitary`, whose notation this is.

    g_B = i int_0^1 (exp(isB) l_+) (exp(isB) y_+)^H ds = i sum_q w_q l(s_q) y(s_q)^H,

by Gauss quadrature, exact to rounding: the integrand has frequencies up to twice the radius of B. State and
costate march from node to node, a few nodes at a time, each such stretch by one recurrence. That takes more
products with B than `exponential_back`, and the memory of a few states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Int

from cdiffeq.linalg._operator import multiplied
from cdiffeq.linalg._unitary import Apply, Plan, bessel_coefficients, make_recurrence, radii_back

_NODES = 2  # of one stretch


class March(NamedTuple):
    """For each radius of the way back: how many stretches, of how many pairs of terms; the coefficients
    g_k at the nodes of each stretch, the last of them at s = 1, and the nodes' weights."""

    stretches: Int[Array, " few"]
    pairs: Int[Array, " few"]
    g: Float[Array, "few stretches nodes terms"]
    weights: Float[Array, "few stretches nodes"]


@functools.cache
def _march(single: bool) -> tuple[np.ndarray, ...]:
    tol, rounding = (2e-9, 1e-8) if single else (1e-17, 2e-15)
    coefficients, weights = [], []
    for rho in radii_back():
        s, w = _nodes(rho, rounding)
        s, w = np.append(s, 1).reshape(-1, _NODES), np.append(w, 0).reshape(-1, _NODES)
        ends = np.concatenate([[0], s[:-1, -1]])
        g = np.moveaxis(bessel_coefficients(rho * (s - ends[:, None])), 0, -1)
        last = max(np.nonzero(np.abs(g) > tol)[2])
        coefficients.append(g[..., : 2 * (last // 2 + 1)])
        weights.append(w)
    stretches, pairs = np.array([[g.shape[0], g.shape[2] // 2] for g in coefficients], np.int32).T
    g = np.zeros((len(weights), max(stretches), _NODES, 2 * max(pairs)))
    w = np.zeros(g.shape[:3])
    for level, (a, b) in enumerate(zip(coefficients, weights, strict=True)):
        g[level, : len(a), :, : a.shape[2]], w[level, : len(b)] = a, b
    return stretches, pairs, g, w


def _nodes(rho: float, rounding: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss' nodes and weights on [0, 1] for exp(ixs), |x| <= 2 rho; with s = 1 they fill stretches."""
    x = np.linspace(0, 2 * rho, 50)
    for q in range(_NODES - 1, 64, _NODES):
        s, w = np.polynomial.legendre.leggauss(q)
        # Around the middle the integral is that of the cosine.
        if np.max(np.abs(np.cos(np.outer(x / 2, s)) @ w / 2 - np.sinc(x / (2 * np.pi)))) < rounding:
            break
    return (s + 1) / 2, w / 2


def make_march(dtype: Any) -> March:
    """The table for vectors of this complex dtype."""
    real = jnp.finfo(dtype).dtype
    stretches, pairs, g, w = _march(jnp.finfo(dtype).bits == 32)
    return March(
        jnp.asarray(stretches), jnp.asarray(pairs), jnp.asarray(g, real), jnp.asarray(w, real)
    )


def exponential_march(
    apply: Apply,
    pull: Callable[[Complex[Array, "n m"], Complex[Array, "n m"]], Any],
    zeros: Any,
    psi: Complex[Array, "n k"],
    lam: Complex[Array, "n k"],
    plan: Plan,
    march: March,
) -> tuple[Complex[Array, "n k"], Complex[Array, "n k"], Any]:
    """What `exponential_back` returns, from the same arguments."""
    step = make_recurrence(apply, plan, 1)
    pairs, level = march.pairs[plan.level], plan.level

    def stretch(i, v):
        """The states at the nodes of a stretch, (nodes, n, k)."""
        weighted = lambda k, v: multiplied(march.g[level, i, :, k, None, None], v[None])
        first = step(v, jnp.zeros_like(v)) / 2

        def add_two(pair, state):
            # Two at once take each other's place, and nothing is copied.
            before, last, sums = state
            before = step(last, before)
            last = step(before, last)
            return before, last, sums + weighted(2 * pair, before) + weighted(2 * pair + 1, last)

        start = v, first, weighted(0, v) + weighted(1, first)
        return jax.lax.fori_loop(1, pairs, add_two, start)[2]

    def go_on(i, state):
        # In one array, so that the costate waits for the state, and what the next stretch starts from for
        # the pull-back: on a CPU XLA computes early, and keeps, what doesn't have to wait.
        nodes, gradient = state
        for j in range(2):
            nodes = nodes.at[j].set(stretch(i, nodes[j, -1]))
        weights = march.weights[level, i] / plan.parts

        def add_pulled(q, gradient):
            L = multiplied(weights[q], 1j * nodes[1, q])
            return jax.tree.map(jnp.add, gradient, pull(L, nodes[0, q]))

        return nodes, jax.lax.fori_loop(0, _NODES, add_pulled, gradient)

    one = lambda _, state: jax.lax.fori_loop(0, march.stretches[level], go_on, state)
    # State and costate at the nodes of a stretch; the next one starts from the last of them.
    nodes = jnp.broadcast_to(jnp.stack([psi, lam])[:, None], (2, _NODES, *psi.shape))
    nodes, gradient = jax.lax.fori_loop(0, plan.parts, one, (nodes, zeros))
    phase = jnp.exp(1j * plan.center.astype(march.g.dtype)).astype(psi.dtype)
    psi, lam = phase * nodes[:, -1]
    return psi, lam, gradient
