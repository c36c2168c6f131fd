r"""Split-operator steps for a particle on a grid: kinetic and potential energy, one after the other.

    psi_{m+1} = K_s D_{s-1} K_{s-1} ... D_1 K_1 psi_m,
    K_i = exp(-i a_i h V(t_m + c_i h)),     D_i = F^-1 exp(-i b_i h T) F,     c_i = b_1 + ... + b_{i-1},

time runs with the kinetic energy. Strang's scheme has order 2 (1968, doi:10.1137/0705041; Feit, Fleck and
Steiger 1982, doi:10.1016/0021-9991(82)90091-2), that of Blanes and Moan order 4 (2002, S6 of table 2,
doi:10.1016/S0377-0427(01)00492-7). All factors are diagonal, here or in Fourier space: of a phase phi the
adjoint is

    y = exp(-i phi) x:      g_phi = Im(conj(g_y) y),      g_x = exp(i phi) g_y        (phi real).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from cdiffeq.linalg._diagonals import main_diagonal
from cdiffeq.linalg._kinetic import KineticPotential, fourier
from cdiffeq.linalg._operator import Operator, Sum
from cdiffeq.linalg._phase import phase_factor
from cdiffeq.schrodinger._grid import Grid
from cdiffeq.schrodinger._hamiltonian import Hamiltonian, Modulated, Pwc
from cdiffeq.schrodinger._matrix_free import first
from cdiffeq.schrodinger._propagate import Stepper
from cdiffeq.schrodinger._steps import hoist_step
from cdiffeq.wirtinger._linear_map import pull_back


class SplitOperator(eqx.Module):
    """Splitting of kinetic and potential energy, for a particle on a grid in a potential that may vary.

    H must be a `KineticPotential` in `cd.constant`, once, and diagonal operators (`cd.linalg.diagonals`) in
    any terms: constant, pwc, modulated.

    - `order`: 2 (Strang) or 4 (Blanes and Moan, six times the work, far fewer steps).
    - `steps`: number of equal steps between neighbouring pins; None for adaptive ones, as in `Magnus`.

    **Cost** of a step: 2 or 12 Fourier transforms; a gradient takes twice as many more, for state and
    costate, which run backward where H is Hermitian, and a pass over the grid for each term. **Memory**: a
    few states.

    >>> grid = cd.linalg.Grid((16.0,), (64,))
    >>> H = cd.constant(cd.linalg.KineticPotential(grid, grid.x**2 / 2))
    >>> psi0 = np.exp(-((grid.x - 1) ** 2) / 2) / np.pi**0.25
    >>> position = cd.linalg.diagonals(grid.x * grid.cell)
    >>> ts = [0.0, np.pi / 2, np.pi]
    >>> result = cd.sesolve(H, psi0, ts, exp_ops=[position], method=cd.SplitOperator(4, steps=20))
    >>> print(result.expects.real.round(4) + 0.0)
    [[ 1.  0. -1.]]
    """

    order: int = 4
    steps: int | None = None

    def __check_init__(self):
        if self.order not in _COEFFICIENTS:
            raise ValueError(f"SplitOperator: order must be 2 or 4, got {self.order!r}.")
        if self.steps is not None and (not isinstance(self.steps, int) or self.steps < 1):
            raise ValueError(
                f"SplitOperator: steps must be a positive integer or None, got {self.steps!r}."
            )


def _blanes_moan() -> tuple[np.ndarray, np.ndarray]:
    a1, a2, a3 = 0.0792036964311957, 0.353172906049774, -0.0420650803577195
    b1, b2 = 0.209515106613362, -0.143851773179818
    a4, b3 = 1 - 2 * (a1 + a2 + a3), 0.5 - (b1 + b2)
    return np.array([a1, a2, a3, a4, a3, a2, a1]), np.array([b1, b2, b3, b3, b2, b1])


_COEFFICIENTS = {2: (np.array([0.5, 0.5]), np.array([1.0])), 4: _blanes_moan()}


def make_split_steps(
    H: Hamiltonian, method: SplitOperator, dtype: Any, grid: Grid, hermitian: bool, moving: Any
) -> tuple[Any, Any, int, Callable[..., Stepper]]:
    """The params and fixed arrays of a solve, the exponentials of a step, and (saves, meter) -> stepper."""
    shape, kinetic, potentials = _parts(H)
    kinetic = kinetic.astype(jnp.finfo(dtype).dtype)
    a, b = _COEFFICIENTS[method.order]
    times = np.concatenate([[0.0], np.cumsum(b)])

    functions = [(t.fn, t.params) if isinstance(t, Modulated) else None for t in H.terms]
    arrays, static = eqx.partition(functions, eqx.is_inexact_array)

    def amplitudes(arrays, x):
        """The phases of the kicks, in units of the potentials, (stages, terms), and of the drifts."""
        t, h, controls = x
        given = iter(controls)
        columns = []
        for term, data in zip(H.terms, eqx.combine(arrays, static), strict=True):
            if isinstance(term, Modulated):
                fn, params = data
                values = jnp.stack([jnp.asarray(fn(t + c * h, params)) for c in times])
            else:
                values = jnp.full(len(a), next(given) if isinstance(term, Pwc) else 1.0)
            columns.append(h * a.astype(h.dtype) * values)
        return jnp.stack(columns, axis=1), h * b.astype(h.dtype)

    closed, constant, pure = hoist_step(amplitudes, arrays, grid)

    # Potentials that hold no traced number have no gradient to be added up.
    diff = [V if moves else None for V, moves in zip(potentials, moving, strict=True)]
    held = [None if moves else V for V, moves in zip(potentials, moving, strict=True)]
    which = [i for i, t in enumerate(H.terms) if _kinetic(t) is not None]
    moves = moving[which[0]]
    params = (diff, kinetic if moves else None, arrays, closed)
    fixed = jax.tree.map(jnp.asarray, (held, None if moves else kinetic, constant))

    def factors(of_functions, fixed, x):
        arrays, closed = of_functions
        return pure(closed, fixed[2], arrays, x)

    return (
        params,
        fixed,
        len(a) + len(b),
        lambda saves, meter: SplitSteps(factors, shape, saves, hermitian, meter),
    )


def _parts(
    H: Hamiltonian,
) -> tuple[tuple[int, ...], Float[Array, "..."], list[Array]]:
    """The shape of the grid, the kinetic energy, and for each term its potential, flat."""
    kinetics = [k for k in map(_kinetic, H.terms) if k is not None]
    if len(kinetics) != 1:
        raise ValueError(
            "SplitOperator: H must have one KineticPotential, in a constant term or plain; it has "
            f"{len(kinetics)} in {H}."
        )
    potentials = []
    for term in H.terms:
        V = _potential(getattr(term, "matrix", None))
        if V is None or (isinstance(term, Pwc | Modulated) and _kinetic(term) is not None):
            raise ValueError(
                f"SplitOperator: {term} isn't diagonal; H must be a KineticPotential and diagonal operators."
            )
        potentials.append(V)
    return kinetics[0].shape, kinetics[0], potentials


def _kinetic(term: Any) -> Float[Array, "..."] | None:
    """The kinetic energy of a term that has one."""
    A = getattr(term, "matrix", None)
    if isinstance(A, KineticPotential):
        return A.kinetic
    if isinstance(A, Sum):
        found = [
            jnp.real(c) * B.kinetic
            for c, B in zip(A.factors, A.operators, strict=True)
            if isinstance(B, KineticPotential)
        ]
        return sum(found[1:], found[0]) if found else None
    return None


def _potential(A: Any) -> Array | None:
    """The potential of an operator without its kinetic energy; None where it is no potential."""
    if isinstance(A, KineticPotential):
        return A.potential.reshape(-1)
    if isinstance(A, Sum):
        parts = [_potential(B) for B in A.operators]
        terms = [c * V for c, V in zip(A.factors, parts, strict=True) if V is not None]
        return sum(terms[1:], terms[0]) if len(terms) == len(parts) else None
    return main_diagonal(A) if isinstance(A, Operator) else None


@dataclasses.dataclass(frozen=True, eq=False)
class SplitSteps(Stepper):
    """Split steps. `factors`: (of functions, fixed, x) -> the phases as multiples of the potentials and of T.

    `params` are the potentials and the kinetic energy that move, and what the functions depend on.
    """

    factors: Callable[[Any, Any, Any], tuple[Array, Array]]
    shape: tuple[int, ...]
    saves: int
    unitary: bool
    meter: diffrax.AbstractProgressMeter
    block: int = 1

    def forward(self, params, fixed, x, psi):
        (theta, tau), potentials, T = self._read(params, fixed, x)
        drifts = _drifts(tau, T)
        waves, real = self._waves(psi), jnp.asarray(True)
        for i in range(len(theta)):
            kick, is_real = self._kick(theta[i], potentials)
            waves, real = _factor(kick) * waves, real & is_real
            if i < len(tau):
                waves = fourier(drifts[i] * fourier(waves, False), True)
        psi = waves.reshape(psi.T.shape).T
        breach = jnp.where(real, jnp.inf, 0).astype(psi.real.dtype)
        return psi, psi[None], breach

    def backward(self, params, fixed, x, psi, lam, jumps, g_params):
        (theta, tau), potentials, T = self._read(params, fixed, x)
        drifts = _drifts(tau, T)
        batch = psi.shape[1]
        psi, lam = self._waves(psi), self._waves(lam + jumps[0])
        # Where states run backward they do so in one array with the costates.
        afters = None if self.unitary else self._afters(theta, drifts, potentials, psi)
        rows = jnp.concatenate([psi, lam]) if self.unitary else lam
        pair = lambda rows, k: (rows[:batch], rows[batch:]) if afters is None else (afters[k], rows)
        V = jnp.stack(potentials).reshape(len(potentials), -1)
        of_kicks, of_drifts = [], []
        g_V, g_T, *g_functions = g_params
        g_V = list(g_V)
        for i in reversed(range(len(theta))):
            g_kick = _slope(*pair(rows, 2 * i), self.unitary)
            of_kicks.append(jnp.conj(V) @ g_kick)
            for j, g in enumerate(g_V):
                if g is not None:
                    more = jnp.conj(theta[i, j]) * g_kick
                    g_V[j] = g + (more if jnp.iscomplexobj(g) else more.real)
            kick, _ = self._kick(theta[i], potentials)
            rows = jnp.conj(_factor(kick)) * rows
            if i == 0:
                break
            rows = fourier(rows, False)
            g_drift = _slope(*pair(rows, 2 * i - 1), True) / T.size  # of Parseval's theorem
            of_drifts.append(T.reshape(-1) @ g_drift)
            if g_T is not None:
                g_T = g_T + (tau[i - 1] * g_drift).reshape(T.shape)
            rows = fourier(jnp.conj(drifts[i - 1]) * rows, True)
        g_theta, g_tau = jnp.stack(of_kicks[::-1]), jnp.stack(of_drifts[::-1])
        g_theta = g_theta if jnp.iscomplexobj(theta) else g_theta.real
        pull = pull_back(lambda f, x: self.factors(f, fixed, x), params[2:], first(x))[1]
        more, g_x = pull((g_theta.astype(theta.dtype), g_tau.astype(tau.dtype)))
        g_functions = jax.tree.map(jnp.add, tuple(g_functions), more)
        flat = lambda waves: waves.reshape(batch, -1).T
        g_x = jax.tree.map(lambda a: a[None], g_x)
        psi, lam = (rows[:batch], rows[batch:]) if self.unitary else (psi, rows)
        return flat(psi), flat(lam), (g_V, g_T, *g_functions), g_x

    def _read(self, params, fixed, x):
        """The phases' factors, the potentials of all terms on the grid, and the kinetic energy."""
        moving, T, *functions = params
        held, known, _ = fixed
        both = zip(moving, held, strict=True)
        potentials = [(V if W is None else W).reshape(self.shape) for V, W in both]
        factors = self.factors(tuple(functions), fixed, first(x))
        return factors, potentials, known if T is None else T

    def _kick(self, theta, potentials):
        """The phase of a kick, and whether it is real where it should be."""
        terms = [c * V for c, V in zip(theta, potentials, strict=True)]
        phase = sum(terms[1:], terms[0])
        if not (self.unitary and jnp.iscomplexobj(phase)):
            return phase, jnp.asarray(True)
        # Rounding of a sum of terms leaves a few eps; anything that means something is far above.
        size, off = jnp.max(jnp.abs(phase)), jnp.max(jnp.abs(phase.imag))
        return phase.real, ~(off > 1e3 * jnp.finfo(size.dtype).eps * size)

    def _afters(self, theta, drifts, potentials, waves):
        """The states after each factor, of drifts in Fourier space."""
        found = []
        for i in range(len(theta)):
            waves = _factor(self._kick(theta[i], potentials)[0]) * waves
            found.append(waves)
            if i < len(drifts):
                found.append(drifts[i] * fourier(waves, False))
                waves = fourier(found[-1], True)
        return found

    def _waves(self, psi):
        """The states on the grid, whose axes are the last: that is where the transform takes them."""
        return psi.T.reshape(-1, *self.shape)


def _factor(phase: Array) -> Complex[Array, "1 ..."]:
    """exp(-i phase), for all states of the batch."""
    if jnp.iscomplexobj(phase):
        return jnp.exp(-1j * phase)[None]
    # Fused with all that uses it, it would be computed again for each.
    return jax.lax.optimization_barrier(phase_factor(phase))[None]


def _drifts(tau: Array, T: Array) -> list[Complex[Array, "1 ..."]]:
    """The factors of the drifts, in Fourier space; the last are the first, in reverse order."""
    half = [_factor(tau[i] * T) for i in range((len(tau) + 1) // 2)]
    return half + half[len(tau) // 2 - 1 :: -1] if len(tau) > 1 else half


def _slope(after: Array, lam: Array, real: bool) -> Inexact[Array, " n"]:
    """The gradient i conj(y) g_y of a phase, summed over the batch; its real part, where that is all."""
    slope = after.imag * lam.real - after.real * lam.imag if real else 1j * jnp.conj(after) * lam
    return jnp.sum(slope, axis=0).reshape(-1)
