"""What the solvers are compared with: SciPy's `expm` and DOP853, and random problems."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import expm

X = np.array([[0.0, 1.0], [1.0, 0.0]])
Y = np.array([[0.0, -1j], [1j, 0.0]])
Z = np.array([[1.0, 0.0], [0.0, -1.0]])


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Complex numbers, real and imaginary parts normal."""
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def hermitian(rng: np.random.Generator, n: int) -> np.ndarray:
    A = random(rng, n, n)
    return (A + A.conj().T) / 2


def destroy(n: int) -> np.ndarray:
    """The lowering operator of an oscillator of n levels."""
    return np.diag(np.sqrt(np.arange(1.0, n)), 1)


def coherent(alpha: complex, n: int) -> np.ndarray:
    """A coherent state, from its amplitudes in n levels."""
    k = np.arange(1, n)
    return np.exp(-(abs(alpha) ** 2) / 2) * np.cumprod([1, *(alpha / np.sqrt(k))])


def amplitude(edges: Sequence[float], values: Sequence[complex], t: float) -> complex:
    """The value of a piecewise constant function at t, zero outside."""
    for a, b, value in zip(edges[:-1], edges[1:], values, strict=True):
        if a <= t < b:
            return value
    return 0.0


def stretches(ts: Sequence[float], jumps: Sequence[float]) -> list[tuple[float, float]]:
    """The solve's way from ts[0] to ts[-1], cut at every saved time and every jump."""
    low, high = min(ts[0], ts[-1]), max(ts[0], ts[-1])
    points = sorted({*ts, *(float(t) for t in jumps if low < t < high)}, reverse=ts[0] > ts[-1])
    return list(itertools.pairwise(points))


def exact(
    H: Callable[[float], np.ndarray],
    psi0: np.ndarray,
    ts: Sequence[float],
    jumps: Sequence[float] = (),
) -> np.ndarray:
    """States (time, ..., n) for H that is constant in between the jumps."""
    psis = {ts[0]: np.asarray(psi0, complex)}
    for a, b in stretches(ts, jumps):
        psis[b] = psis[a] @ expm(-1j * (b - a) * H((a + b) / 2)).T
    return np.stack([psis[t] for t in ts])


def integrated(
    H: Callable[[float], np.ndarray],
    psi0: np.ndarray,
    ts: Sequence[float],
    jumps: Sequence[float] = (),
) -> np.ndarray:
    """States (time, ..., n) by DOP853, for H that is smooth in between the jumps."""
    psi0 = np.asarray(psi0, complex)
    psis = {ts[0]: psi0}
    for a, b in stretches(ts, jumps):
        inside = abs(b - a) * 1e-12  # an edge belongs to the stretch that is being solved
        low, high = min(a, b) + inside, max(a, b) - inside

        def slope(t, y, low=low, high=high):
            return -1j * (y.reshape(psi0.shape) @ H(min(max(t, low), high)).T).ravel()

        psi = solve_ivp(slope, (a, b), psis[a].ravel(), "DOP853", rtol=1e-13, atol=1e-14)
        psis[b] = psi.y[:, -1].reshape(psi0.shape)
    return np.stack([psis[t] for t in ts])
