"""Five problems, and what is known of them without this package and without automatic differentiation.

A reference solves the tangent equations, whose right sides are written by hand, along with the state by
SciPy's DOP853 (a linear problem by `expm` and `expm_frechet`). Derivatives with respect to the times
follow from the slopes there. Complex numbers are solved for as they are: SciPy's explicit methods need no
derivative of the field that could fail to exist.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import expm, expm_frechet


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """An initial value problem, its parameters, and a loss of its saved states.

    - `field`: ``(xp, t, z, p) -> dz/dt`` in NumPy or in JAX.
    - `tangent`: ``(t, z, p, dz, dp) -> d(dz/dt)`` in NumPy, many directions in a leading axis; None if
      the problem is ``dz/dt = rate A z``.
    - `real`: the entries of the state that are real.
    - `frame`: the parameter w of a field that commutes with rotations and has the term -i w z. The
      reference is solved at w = 0, and turned: its steps aren't those of a solver that sees w.
    """

    name: str
    field: Callable[..., Any]
    tangent: Callable[..., Any] | None
    y0: np.ndarray
    ts: np.ndarray
    params: dict[str, Any]
    real: tuple[int, ...] = ()
    frame: str | None = None

    @property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(len(self.name))
        return tuple(random(rng, len(self.ts), len(self.y0)) for _ in range(2))

    def loss(self, ys: Any) -> Any:
        """Real, not holomorphic, and not a function of the moduli alone."""
        w, v = self.weights
        overlaps = (w * ys).sum(1)
        return (overlaps * overlaps.conj() + (v * ys**2).sum(1)).real.sum()

    def loss_tangent(self, ys: np.ndarray, dys: np.ndarray) -> np.ndarray:
        w, v = self.weights
        overlaps, doverlaps = (w * ys).sum(1), (w * dys).sum(-1)
        return (2 * overlaps.conj() * doverlaps + 2 * (v * ys * dys).sum(-1)).real.sum(-1)

    def directions(
        self,
    ) -> tuple[np.ndarray, dict[str, np.ndarray], list[tuple[str, int, complex]]]:
        """Unit directions of y0 and of the parameters, and for each: of what, which entry, 1 or 1j."""
        labels = []
        for name, x in {"y0": self.y0, **self.params}.items():
            for i in range(np.size(x)):
                labels.append((name, i, 1.0))
                if np.iscomplexobj(x) and not (name == "y0" and i in self.real):
                    labels.append((name, i, 1j))
        unit = lambda name, x: np.array(
            [
                unit if name == of and i == entry else 0.0
                for of, entry, unit in labels
                for i in range(np.size(x))
            ]
        ).reshape(len(labels), *np.shape(x))
        return unit("y0", self.y0), {k: unit(k, x) for k, x in self.params.items()}, labels


class Reference(NamedTuple):
    """States (time, n), their tangents in all directions of y0 and parameters (D, time, n), slopes."""

    ys: np.ndarray
    tangents: np.ndarray
    slopes: np.ndarray
    start: np.ndarray  # the tangent of the initial time, (time, n)


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@functools.cache
def reference(problem: Problem, rtol: float = 1e-13) -> Reference:
    """The solution with its tangents, once in a session."""
    p, ts, n = problem.params, problem.ts, len(problem.y0)
    slope = lambda t, y: problem.field(np, t, y, p)
    if problem.tangent is None:
        return _linear(problem)
    dy0, dp, _ = problem.directions()
    # The last direction is that of the initial time: no parameter moves.
    dp = {k: np.append(x, 0.0)[:, None] for k, x in dp.items()}
    # Moving the initial time by dt is starting from y0 - f dt.
    dy0 = np.concatenate([dy0, -slope(ts[0], problem.y0)[None]])

    def both(t, flat):
        z, dz = flat[:n], flat[n:].reshape(-1, n)
        dz = problem.tangent(t, z, still, dz, dp)
        return np.concatenate([problem.field(np, t, z, still), dz.ravel()])

    if problem.frame is not None:
        w, dw = p[problem.frame], dp[problem.frame]
        dp = dp | {problem.frame: 0 * dw}
        still = p | {problem.frame: 0 * w}
    else:
        still = p
    start = np.concatenate([problem.y0, dy0.ravel()]).astype(complex)
    solved = solve_ivp(both, ts[[0, -1]], start, "DOP853", ts, rtol=rtol, atol=rtol / 10)
    assert solved.success
    flat = solved.y.T.copy().view(complex).reshape(len(ts), -1, n)
    ys, tangents = flat[:, 0], flat[:, 1:].swapaxes(0, 1)
    if problem.frame is not None:
        turn = np.exp(-1j * w * (ts - ts[0]))[:, None]
        ys, tangents = turn * ys, turn * tangents
        tangents = tangents - 1j * dw[..., None] * (ts - ts[0])[:, None] * ys
    slopes = np.stack([slope(t, y) for t, y in zip(ts, ys, strict=True)])
    return Reference(ys, tangents[:-1], slopes, tangents[-1])


def states(problem: Problem, method: str, rtol: float) -> np.ndarray:
    """The states alone, by a method of SciPy's that may be implicit: it sees real numbers."""

    def slope(t, x):
        z = np.ascontiguousarray(x).view(complex)
        return problem.field(np, t, z, problem.params).view(float)

    start, ts = problem.y0.view(float), problem.ts
    solved = solve_ivp(slope, ts[[0, -1]], start, method, ts, rtol=rtol, atol=rtol / 10)
    assert solved.success
    return solved.y.T.copy().view(complex)


def _linear(problem: Problem) -> Reference:
    p, ts, y0 = problem.params, problem.ts, problem.y0
    A, rate = p["A"], p["rate"]
    dy0, dp, labels = problem.directions()
    ys = np.stack([expm(rate * A * (t - ts[0])) @ y0 for t in ts])
    tangents = np.zeros((len(labels), *ys.shape), complex)
    for k, t in enumerate(ts - ts[0]):
        for d in range(len(labels)):
            E = t * (rate * dp["A"][d] + dp["rate"][d] * A)
            U, L = expm_frechet(rate * t * A, E)
            tangents[d, k] = L @ y0 + U @ dy0[d]
    slopes = np.stack([rate * A @ y for y in ys])
    return Reference(ys, tangents, slopes, -slopes)


def gradient(problem: Problem) -> dict[str, np.ndarray]:
    """The gradient of the loss, dL/dx - i dL/dy as JAX has it, for "y0", each parameter, and "ts"."""
    ref = reference(problem)
    labels = problem.directions()[2]
    slopes = problem.loss_tangent(ref.ys, ref.tangents)
    found = {k: np.zeros_like(x) for k, x in {"y0": problem.y0, **problem.params}.items()}
    found = {k: np.array(x) for k, x in found.items()}
    for (name, i, unit), slope in zip(labels, slopes, strict=True):
        found[name].reshape(-1)[i] += slope * np.conj(unit)
    along = time_tangents(problem)
    return found | {"ts": problem.loss_tangent(ref.ys, along)}


def time_tangents(problem: Problem) -> np.ndarray:
    """How the states move with each of the times, (time, time, n)."""
    ref = reference(problem)
    along = np.zeros((len(problem.ts), *ref.ys.shape), complex)
    for k in range(len(problem.ts)):
        along[k, k] = ref.slopes[k]
    along[0] += ref.start
    return along


def push_forward(problem: Problem, direction: dict[str, np.ndarray]) -> np.ndarray:
    """The tangent of the states (time, n) along a direction of "y0", the parameters and "ts"."""
    ref = reference(problem)
    total = np.einsum("t,tkn->kn", direction["ts"], time_tangents(problem))
    for (name, i, unit), tangent in zip(problem.directions()[2], ref.tangents, strict=True):
        x = np.reshape(direction[name], -1)[i]
        total = total + (x.real if unit == 1 else x.imag) * tangent
    return total


def _square(z):
    return (z * z.conj()).real


def _dsquare(z, dz):
    return 2 * (z.conj() * dz).real


# 1. Linear, holomorphic: a quantum system of two levels. A is anti-Hermitian, its tangents needn't be.

LINEAR = Problem(
    "linear",
    lambda xp, t, z, p: p["rate"] * (p["A"] @ z),
    None,
    y0=np.array([0.6 + 0.3j, -0.2 + 0.7j]),
    ts=np.array([0.2, 0.9, 2.1, 3.0]),
    params=dict(A=-1j * np.array([[1.0, 0.4 - 0.3j], [0.4 + 0.3j, -0.6]]), rate=np.array(1.3)),
)


# 2. Two coupled Stuart-Landau oscillators with a conjugate term: neither holomorphic nor linear.


def _landau(xp, t, z, p):
    cubic = p["b"] * _square(z) * z
    return p["a"] * z - cubic + p["c"] * z.conj() + p["k"] * (z[..., ::-1] - z)


def _landau_tangent(t, z, p, dz, dp):
    cubic = dp["b"] * _square(z) * z + p["b"] * (_dsquare(z, dz) * z + _square(z) * dz)
    squeeze = dp["c"] * z.conj() + p["c"] * dz.conj()
    couple = dp["k"] * (z[..., ::-1] - z) + p["k"] * (dz[..., ::-1] - dz)
    return dp["a"] * z + p["a"] * dz - cubic + squeeze + couple


LANDAU = Problem(
    "landau",
    _landau,
    _landau_tangent,
    y0=np.array([0.5 + 0.2j, -0.3 + 0.9j]),
    ts=np.array([0.0, 0.7, 1.5, 2.0]),
    params=dict(
        a=np.array(0.6 + 2.0j), b=np.array(0.8 - 0.5j), c=np.array(0.4 + 0.3j), k=np.array(0.3)
    ),
)


# 3. A damped Kerr cavity that is driven off resonance, for ten of its lifetimes.


def _kerr(xp, t, z, p):
    drive = p["drive"] * xp.exp(-1j * p["frequency"] * t)
    return -(1j * p["detuning"] + p["loss"] / 2) * z - 1j * p["kerr"] * _square(z) * z + drive


def _kerr_tangent(t, z, p, dz, dp):
    phase = np.exp(-1j * p["frequency"] * t)
    drive = (dp["drive"] - 1j * t * p["drive"] * dp["frequency"]) * phase
    cubic = dp["kerr"] * _square(z) * z + p["kerr"] * (_dsquare(z, dz) * z + _square(z) * dz)
    decay = (1j * dp["detuning"] + dp["loss"] / 2) * z + (1j * p["detuning"] + p["loss"] / 2) * dz
    return drive - decay - 1j * cubic


KERR = Problem(
    "kerr",
    _kerr,
    _kerr_tangent,
    y0=np.array([1.0 - 0.5j]),
    ts=np.array([0.0, 3.0, 10.0, 20.0]),
    params=dict(
        detuning=np.array(0.5),
        loss=np.array(0.5),
        kerr=np.array(0.3),
        drive=np.array(0.6 + 0.4j),
        frequency=np.array(0.7),
    ),
)


# 4. A laser whose real carriers follow its complex field three hundred times faster than it changes, with
# phase-conjugate feedback and injection.


def _laser(xp, t, y, p):
    E, N = y[..., 0], y[..., 1].real
    dE = (1 + 1j * p["alpha"]) * (N - 1) * E + p["feedback"] * E.conj() + p["injection"]
    return xp.stack([dE, 300 * p["rate"] * (p["pump"] - N - N * _square(E)) + 0j], -1)


def _laser_tangent(t, y, p, dy, dp):
    E, N, dE, dN = y[0], y[1].real, dy[:, :1], dy[:, 1:].real
    gain = 1j * dp["alpha"] * (N - 1) * E + (1 + 1j * p["alpha"]) * (dN * E + (N - 1) * dE)
    feedback = dp["feedback"] * E.conj() + p["feedback"] * dE.conj()
    balance = 300 * dp["rate"] * (p["pump"] - N - N * _square(E))
    change = dp["pump"] - dN - dN * _square(E) - N * _dsquare(E, dE)
    return np.concatenate(
        [gain + feedback + dp["injection"], balance + 300 * p["rate"] * change], 1
    )


LASER = Problem(
    "laser",
    _laser,
    _laser_tangent,
    y0=np.array([0.4 + 0.3j, 0.5 + 0j]),
    ts=np.array([0.0, 0.001, 1.0, 2.0]),
    params=dict(
        alpha=np.array(2.0),
        rate=np.array(1.0),
        pump=np.array(2.0),
        feedback=np.array(0.2 - 0.3j),
        injection=np.array(0.1 + 0.2j),
    ),
    real=(1,),
)


# 5. The discrete nonlinear Schroedinger equation on a ring of three sites, for two
# hundred periods of its rotation.


def _trimer(xp, t, z, p):
    hop = p["hop"] * z[..., [2, 0, 1]] + p["hop"].conj() * z[..., [1, 2, 0]]
    return -1j * ((p["frequency"] + p["kerr"] * _square(z)) * z + hop)


def _trimer_tangent(t, z, p, dz, dp):
    hop = dp["hop"] * z[..., [2, 0, 1]] + dp["hop"].conj() * z[..., [1, 2, 0]]
    hop = hop + p["hop"] * dz[..., [2, 0, 1]] + p["hop"].conj() * dz[..., [1, 2, 0]]
    turn = (dp["frequency"] + dp["kerr"] * _square(z) + p["kerr"] * _dsquare(z, dz)) * z
    return -1j * (turn + (p["frequency"] + p["kerr"] * _square(z)) * dz + hop)


TRIMER = Problem(
    "trimer",
    _trimer,
    _trimer_tangent,
    y0=np.array([0.8 + 0.1j, 0.1 - 0.3j, -0.2 + 0.4j]),
    ts=np.array([0.0, 50.0, 80.0, 200.0]),
    params=dict(frequency=np.array(2 * np.pi), kerr=np.array(0.05), hop=np.array(0.02 + 0.01j)),
    frame="frequency",
)

PROBLEMS = (LINEAR, LANDAU, KERR, LASER, TRIMER)
