r"""Crank-Nicolson steps of Hamiltonians with a narrow band.

    C psi_{m+1} = (2 - C) psi_m,     C = 1 + i B / 2,     B = h H(t_m + h/2),

a Cayley transform, unitary for Hermitian H (Crank and Nicolson 1947, doi:10.1017/S0305004100023197; Goldberg,
Schey and Schwartz 1967, doi:10.1119/1.1973991). With z = C^-1 psi_m and w = C^-H lambda_{m+1}

    psi_{m+1} = 2 z - psi_m,     lambda_m = 2 w - lambda_{m+1},     g_B = i w z^H,

and where C^H = 2 - C both come from the end of the step in one solve: ``C^H [z, w] = [psi_{m+1},
lambda_{m+1}]``, ``psi_m = 2 z - psi_{m+1}``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from cdiffeq.linalg._band import Band, as_band, bandwidth, solve_band
from cdiffeq.linalg._operator import as_operator
from cdiffeq.schrodinger._hamiltonian import Hamiltonian, TimeCallable
from cdiffeq.schrodinger._matrix_free import Exponents, first
from cdiffeq.schrodinger._propagate import Stepper
from cdiffeq.wirtinger._linear_map import pull_back


class CrankNicolson(eqx.Module):
    r"""Crank-Nicolson steps, for H with a few diagonals on either side of the main one.

        (1 + i h H / 2) psi(t + h) = (1 - i h H / 2) psi(t),     H at t + h / 2

    Of order 2 in any H, constant ones too, unitary for Hermitian H, and stable however long the steps are:
    what is far from resolved gets a wrong phase and no more. Finite differences between two walls are what it
    is for; where exponentials can be had `Chebyshev` is more accurate.

    - `steps`: number of equal steps between neighbouring pins; None for adaptive ones, as in `Magnus`. Of
      order 2 they become many at tolerances below 1e-6.
    - `bandwidth`: the largest distance of a non-zero entry from the main diagonal. By default it is found, of
      `cd.linalg.diagonals`, sparse matrices and arrays whose numbers are known; for others it must be given.
      Raises `ValueError`, before the solve or as it runs, if H has entries elsewhere.

    **Cost** of a step of bandwidth w: 2 w (2 w + 1) n multiplications to factor and about 6 w n for each
    state; a gradient takes one such step more for state and costate together, run backward, and a pass over
    the diagonals. From w = 2 on LAPACK solves on the host: correct on a GPU, and slow there. **Memory** of a
    gradient: that of 16 states for tridiagonal matrices, 26 for w = 2, whatever the number of steps; with
    ``hermitian=False`` checkpoints, as elsewhere.

    >>> n, dx = 199, 0.05  # a particle between two walls
    >>> x = dx * np.arange(1, n + 1)
    >>> neighbour = np.full(n - 1, -1.0)
    >>> kinetic = cd.linalg.diagonals([neighbour, np.full(n, 2.0), neighbour], (-1, 0, 1))
    >>> psi0 = np.sin(np.pi * x / 10) * np.sqrt(dx / 5)
    >>> method = cd.CrankNicolson(steps=50)
    >>> psi = cd.sesolve(kinetic / (2 * dx**2), psi0, [0.0, 1.0], method=method).final_state
    >>> print(f"{jnp.vdot(psi0, psi):.4f} {np.exp(-0.5j * (np.pi / 10) ** 2):.4f}")
    0.9988-0.0493j 0.9988-0.0493j
    """

    steps: int | None = None
    bandwidth: int | None = None

    def __check_init__(self):
        if self.steps is not None and (not isinstance(self.steps, int) or self.steps < 1):
            raise ValueError(
                f"CrankNicolson: steps must be a positive integer or None, got {self.steps!r}."
            )
        width = self.bandwidth
        if width is not None and (not isinstance(width, int) or width < 0):
            raise ValueError(
                f"CrankNicolson: bandwidth must be an integer from 0 on, or None, got {width!r}."
            )


def with_bandwidth(H: Hamiltonian, method: CrankNicolson) -> CrankNicolson:
    """The method with its bandwidth: that given, or else that of H."""
    widths = []
    for term in H.terms:
        matrix = getattr(term, "matrix", None)  # a function of time has none
        width = None if matrix is None else bandwidth(as_operator("H", matrix))
        if width is None and method.bandwidth is None:
            raise ValueError(
                f"CrankNicolson: nothing says how far from its diagonal {term} has entries; give "
                "CrankNicolson(bandwidth=...)."
            )
        widths.append(width or 0)
    widest = max(widths)
    if method.bandwidth is None:
        return dataclasses.replace(method, bandwidth=widest)
    if widest > method.bandwidth:
        raise ValueError(
            f"CrankNicolson: bandwidth={method.bandwidth}, but H has entries {widest} away from its main "
            "diagonal."
        )
    return dataclasses.replace(method, bandwidth=min(method.bandwidth, H.n - 1))


def in_bands(H: Hamiltonian, width: int) -> Hamiltonian:
    """H with matrices of this bandwidth."""
    band = lambda A: as_band("CrankNicolson: H", as_operator("H", A), width)

    def of(term: Any) -> Any:
        if isinstance(term, TimeCallable):
            fn = term.fn
            return dataclasses.replace(term, fn=lambda t, params: band(fn(t, params)))
        return dataclasses.replace(term, matrix=band(term.matrix))

    return Hamiltonian(tuple(map(of, H.terms)))


@dataclasses.dataclass(frozen=True, eq=False)
class CayleySteps(Stepper):
    """Cayley transforms of steps with one exponent, a sum of `Band`s."""

    exponents: Callable[[Any, Any, Any], Exponents]
    saves: int
    unitary: bool
    meter: diffrax.AbstractProgressMeter
    block: int = 1

    def forward(self, params, fixed, x, psi):
        B = self._rows(params, fixed, first(x))
        psi = 2 * solve_band(_denominator(B, psi), psi) - psi
        breach = jnp.asarray(jnp.inf, psi.real.dtype)
        if self.unitary:
            breach = jnp.where(_is_hermitian(B), breach, 0)
        return psi, psi[None], breach

    def backward(self, params, fixed, x, psi, lam, jumps, g_params):
        lam = lam + jumps[0]
        rows = lambda params, x: self._rows(params, fixed, x)
        B, pull = pull_back(rows, params, first(x))
        C = _denominator(B, psi)
        Ch = Band(C).adjoint().rows
        if self.unitary:
            ends = jnp.concatenate([psi, lam], axis=1)
            z, w = jnp.split(solve_band(Ch, ends), 2, axis=1)
            psi = 2 * z - psi
        else:
            z, w = solve_band(C, psi), solve_band(Ch, lam)
        product = pull_back(lambda B: Band(B).mm(z), B)[1]
        more, g_x = pull(product(1j * w)[0])
        g_params = jax.tree.map(jnp.add, g_params, more)
        return psi, 2 * w - lam, g_params, jax.tree.map(lambda a: a[None], g_x)

    def _rows(self, params, fixed, x):
        """The diagonals of B."""
        exponents: Any = self.exponents(params, fixed, x)
        terms = [c[0] * A.rows for c, A in zip(*exponents, strict=True)]
        return sum(terms[1:], terms[0])


def _denominator(B: Array, psi: Array) -> Array:
    """The diagonals of C = 1 + i B / 2."""
    return (0.5j * B).astype(psi.dtype).at[len(B) // 2].add(1)


def _is_hermitian(B: Array) -> Array:
    """Whether B is Hermitian, but for rounding in a sum of terms."""
    off, size = jnp.max(jnp.abs(B - Band(B).adjoint().rows)), jnp.max(jnp.abs(B))
    return ~(off > 1e3 * jnp.finfo(size.dtype).eps * size)
