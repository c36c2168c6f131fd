r"""exp(-iB) of a Hermitian operator on vectors, and its derivative in B, by Chebyshev polynomials run both
ways.

With B = c + rho A', the spectrum of A' in [-1, 1], and J_k Bessel's functions (Tal-Ezer and Kosloff 1984,
doi:10.1063/1.448136),

    exp(-+iB) v = exp(-+ic) sum_k g_k(1) S_k,    S_(k+1) = -+2i A' S_k + S_(k-1),    S_k = (-+i)^k T_k(A') v,

g_k(s) = (2 - delta_k0) J_k(s rho). The gradient l_+ of y_+ = exp(-iB) y makes that of B

    g_B = int_0^1 i (exp(isB) l_+) (exp(isB) y_+)^H ds = i sum_ab G_ab (R_a l_+) (R_b y_+)^H,

where R_k = i^k T_k(A') are the polynomials of the way back, by which y and l are had, too, and the matrix

    G_ab = int_0^1 g_a(s) g_b(s) ds = sum_r u_ra u_rb

is real, positive, and of small numerical rank: a dozen for some thirty terms. So one recurrence, of state and
costate side by side, gives the state and the costate before the step and the dozen pairs of vectors
sum_k u_rk R_k whose products are the gradient of B. It is that of exp itself, to rounding.

Coefficients are tabulated for a few radii; the radius used is the next one above the bound of B's spectrum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Complex, Float, Int

from cdiffeq.linalg._arnoldi import two_norm
from cdiffeq.linalg._operator import multiplied

# Radii of one sum; a larger B is taken in equal parts. On the way back shorter ones cost less, of lower rank.
_LARGEST, _LARGEST_BACK = 32.0, 8.0
_BLOCK = 6  # terms whose vectors are kept until they are added, all at once, by a matrix product
_MOST_PARTS = 2**20

Apply = Callable[[Complex[Array, "n k"]], Complex[Array, "n k"]]


class Table(NamedTuple):
    """For each radius, ascending, the number of terms and the coefficients g_k(1); and how many rows u_r of G
    there are, and these, for those of the radii that are used on the way back."""

    radii: Float[Array, " levels"]
    terms: Int[Array, " levels"]
    g: Float[Array, "levels terms"]
    ranks: Int[Array, " few"]
    u: Float[Array, "few rank terms"]


def _radii() -> np.ndarray:
    steps = np.arange(4 * np.log2(_LARGEST) + 1)
    return np.concatenate([[1e-8, 1e-5], 2.0 ** np.arange(-12, 0), 2 ** (steps / 4)])


def radii_back() -> np.ndarray:
    """The radii that are used on the way back."""
    return _radii()[_radii() <= _LARGEST_BACK]


def bessel_coefficients(rho: np.ndarray | float) -> np.ndarray:
    """(2 - delta_k0) J_k(rho), k first."""
    k = np.arange(120).reshape(-1, *[1] * np.ndim(rho))
    return (2.0 - (k == 0)) * scipy.special.jv(k, rho)


@functools.cache
def _table(single: bool) -> tuple[np.ndarray, ...]:
    tol = 2e-9 if single else 1e-17
    radii = _radii()
    nodes, weights = np.polynomial.legendre.leggauss(64)
    nodes, weights = (nodes + 1) / 2, weights / 2
    count, values, rows = [], [], []
    for rho in radii:
        g = bessel_coefficients(rho)
        few = int(np.max(np.flatnonzero(np.abs(g) > tol))) + 1
        few = max(few, 3)
        count.append(few)
        values.append(g[:few])
        if rho <= _LARGEST_BACK:
            of_s = bessel_coefficients(rho * nodes)[:few]
            power, vectors = np.linalg.eigh((of_s * weights) @ of_s.T)
            keep = power > 100 * tol * power[-1]
            rows.append((np.sqrt(power[keep]) * vectors[:, keep]).T[::-1])
    padded = lambda sizes: -(-max(sizes) // _BLOCK) * _BLOCK
    ranks = np.array([len(u) for u in rows], np.int32)
    fit = lambda a, shape: np.pad(a, [(0, n - m) for n, m in zip(shape, a.shape, strict=True)])
    g = np.stack([fit(g, (padded(count),)) for g in values])
    u = np.stack([fit(u, (max(ranks), padded(count[: len(rows)]))) for u in rows])
    return radii, np.array(count, np.int32), g, ranks, u


def make_table(dtype: Any) -> Table:
    """The table for vectors of this complex dtype."""
    real = jnp.finfo(dtype).dtype
    radii, terms, g, ranks, u = _table(jnp.finfo(dtype).bits == 32)
    cast = lambda a: jnp.asarray(a, real)
    return Table(cast(radii), jnp.asarray(terms), cast(g), jnp.asarray(ranks), cast(u))


class Plan(NamedTuple):
    """How exp(-iB) is taken: in equal parts of B, each by the sum of one level of the table; B - center has a
    spectrum within `radius`."""

    parts: Int[Array, ""]
    level: Int[Array, ""]
    center: Float[Array, ""]
    radius: Float[Array, ""]


def make_plan(
    center: Float[Array, ""], radius: Float[Array, ""], table: Table, back: bool = False
) -> Plan:
    """For a B whose spectrum is within `radius` of `center`, there or back; without derivatives."""
    center, radius = jax.lax.stop_gradient((center, radius))
    levels = len(table.u) if back else len(table.radii)
    largest = table.radii[levels - 1]
    # Beyond what can be done nothing plausible comes out.
    radius = jnp.where(radius <= _MOST_PARTS * largest, radius, jnp.nan)
    parts = jnp.clip(jnp.ceil(jnp.nan_to_num(radius / largest, nan=1)), 1, _MOST_PARTS)
    level = jnp.searchsorted(table.radii[:levels], radius / parts)
    level = jnp.minimum(level, levels - 1)
    radius = jnp.where(jnp.isnan(radius), radius, parts * table.radii[level])
    return Plan(parts.astype(jnp.int32), level, center, radius)


def exponential_action(
    apply: Apply, v: Complex[Array, "n k"], plan: Plan, table: Table, sign: int = -1
) -> Complex[Array, "n k"]:
    """exp(sign i B) v, B given by its product with vectors."""
    step = make_recurrence(apply, plan, sign)
    g, terms = table.g[plan.level], table.terms[plan.level]

    def part(_, v):
        first = step(v, jnp.zeros_like(v)) / 2

        def add(k, state):
            before, last, y = state
            new = step(last, before)
            return last, new, y + multiplied(g[k], new)

        return jax.lax.fori_loop(
            2, terms, add, (v, first, multiplied(g[0], v) + multiplied(g[1], first))
        )[2]

    v = jax.lax.fori_loop(0, plan.parts, part, v)
    return jnp.exp(sign * 1j * plan.center.astype(g.dtype)).astype(v.dtype) * v


def exponential_back(
    apply: Apply,
    pull: Callable[[Complex[Array, "n m"], Complex[Array, "n m"]], Any],
    zeros: Any,
    psi: Complex[Array, "n k"],
    lam: Complex[Array, "n k"],
    plan: Plan,
    table: Table,
) -> tuple[Complex[Array, "n k"], Complex[Array, "n k"], Any]:
    """The state and the costate before exp(-iB) from those after it, and `zeros` plus the gradient of B.

    `plan` is one of the way back. ``pull(L, P)`` is the gradient of what B depends on, where that of B is
    ``L P^H``.
    """
    k = psi.shape[1]
    step = make_recurrence(apply, plan, 1)
    g, u, terms = table.g[plan.level], table.u[plan.level], table.terms[plan.level]
    weights = jnp.concatenate([u, g[None, : u.shape[1]]])

    def part(_, state):
        both, gradient = state

        def add(block, state):
            before, last, sums = state
            rows = jax.lax.dynamic_slice_in_dim(weights, block * _BLOCK, _BLOCK, 1)[..., None, None]
            more = []
            for i in range(_BLOCK):
                more.append(multiplied(rows[:, i], before[None]))
                before, last = last, step(last, before)
            # Of so few terms a sum in one pass is faster than a matrix product.
            return before, last, sums + sum(more[1:], more[0])

        first = step(both, jnp.zeros_like(both)) / 2
        start = both, first, jnp.zeros((len(weights), *both.shape), both.dtype)
        blocks = (terms + _BLOCK - 1) // _BLOCK
        *_, sums = jax.lax.fori_loop(0, blocks, add, start)

        def add_pulled(r, gradient):
            P, L = sums[r, :, :k], sums[r, :, k:]
            return jax.tree.map(jnp.add, gradient, pull(1j * L / plan.parts, P))

        return sums[-1], jax.lax.fori_loop(0, table.ranks[plan.level], add_pulled, gradient)

    both = jnp.concatenate([psi, lam], axis=1)
    both, gradient = jax.lax.fori_loop(0, plan.parts, part, (both, zeros))
    both = jnp.exp(1j * plan.center.astype(g.dtype)).astype(both.dtype) * both
    psi, lam = jnp.split(both, 2, axis=1)
    return psi, lam, gradient


def make_recurrence(apply: Apply, plan: Plan, sign: int) -> Callable[[Array, Array], Array]:
    """(S_k, S_(k-1)) -> S_(k+1)."""
    scale, center = 2 / plan.radius, plan.center

    def step(last, before):
        turned = multiplied(scale, apply(last) - multiplied(center, last))
        # A product with i, which is none.
        rotated = jax.lax.complex(-sign * turned.imag, sign * turned.real)
        return rotated + before

    return step


def norm_is_kept(before: Complex[Array, "n k"], after: Complex[Array, "n k"], plan: Plan) -> Array:
    """Whether exp(-iB) has kept the norm of v, as it does where B is Hermitian and within its bounds."""
    size, now = two_norm(before), two_norm(after)
    allowed = 1e3 * jnp.finfo(size.dtype).eps * (1 + plan.parts)
    return ~jnp.isfinite(size) | (jnp.abs(now - size) <= allowed * size)
