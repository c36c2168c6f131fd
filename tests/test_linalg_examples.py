"""The examples of linear algebra reach what they say, checked with NumPy and SciPy alone."""

import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
import scipy.sparse
from scipy.optimize import least_squares
from scipy.sparse.linalg import spsolve

from tests.running import EXAMPLES, load, run


@pytest.fixture(scope="module")
def filter_fit() -> ModuleType:
    return load("filter_fit.py")


def _ladder(x: np.ndarray, f: np.ndarray) -> np.ndarray:
    """filter_fit's reflections once more, by impedances in series and in parallel."""
    w = 2e9 * np.pi * f
    L1, L, C, *rest = x
    behind = rest[-1] + 0j
    if len(rest) > 1:
        behind = behind + 1e-12j * w * rest[0] + 1 / (1e-15j * w * rest[1])
    z = 1e-12j * w * L1 + 1 / (1 / (1e-12j * w * L) + 1e-15j * w * C + 1 / behind)
    return (z - 50) / (z + 50)


def _measured() -> tuple[np.ndarray, np.ndarray]:
    lines = (EXAMPLES / "data" / "ring_slot_measured.s1p").read_text().splitlines()
    rows = np.array([line.split() for line in lines if line[0] not in "!#"], float)
    return rows[:, 0], rows[:, 1] + 1j * rows[:, 2]


def test_the_measurement_has_its_source(filter_fit: ModuleType):
    folder = EXAMPLES / "data"
    assert "scikit-rf" in (folder / "ring_slot_measured.s1p").read_text().splitlines()[0]
    assert "Alexander Arsenovic" in (folder / "ring_slot_measured.txt").read_text()
    f, measured = filter_fit.read_touchstone(filter_fit.DATA)
    assert len(f) == 101 and f[0] == 75 and f[-1] == pytest.approx(110)
    assert measured[0] == -0.067684517179 + 0.659208635995j
    np.testing.assert_array_equal(measured, _measured()[1])


@pytest.mark.parametrize("name", ["one resonance", "two resonances"])
def test_nodal_equations_are_the_ladder(filter_fit: ModuleType, name: str):
    x = np.array([25.0, 15.0, 220.0, 80.0, 40.0, 60.0])
    x = x if name == "two resonances" else x[[0, 1, 2, 5]]
    f = np.linspace(75, 110, 7)
    reflection = lambda logs: filter_fit.reflection(name, logs, f)
    S, dS = jax.jit(lambda logs: (reflection(logs), jax.jacfwd(reflection)(logs)))(np.log(x))
    np.testing.assert_allclose(S, _ladder(x, f), rtol=0, atol=1e-12)
    for k, step in enumerate(1e-5 * np.eye(len(x))):
        slope = (_ladder(x * np.exp(step), f) - _ladder(x * np.exp(-step), f)) / 2e-5
        np.testing.assert_allclose(dS[:, k], slope, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_filter_fit(tmp_path: Path):
    done = run("filter_fit.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = np.array([[float(w[1]), float(w[3])] for w in lines if w[2:3] == ["+-"]])
    rms = [float(w[2]) for w in lines if w[1:2] in (["resonance:"], ["resonances:"])]
    f, measured = _measured()
    for found, left_over, start in (
        (rows[:4], rms[0], [30.0, 15.0, 230.0, 60.0]),
        (rows[4:], rms[1], [30.0, 15.0, 250.0, 90.0, 35.0, 60.0]),
    ):

        def residuals(x):
            left = _ladder(x, f) - measured
            return np.concatenate([left.real, left.imag])

        fitted = least_squares(residuals, start, jac="3-point", x_scale="jac", xtol=1e-12)
        np.testing.assert_allclose(found[:, 0], fitted.x, rtol=2e-3)
        left = fitted.fun.reshape(2, -1)
        assert left_over == pytest.approx(np.sqrt(np.sum(left**2) / len(f)), abs=1e-4)
        rho = np.sum(left[:, 1:] * left[:, :-1]) / np.sum(left**2)
        variance = np.sum(left**2) / (2 * len(f) - len(start)) * (1 + rho) / (1 - rho)
        bars = np.sqrt(variance * np.diag(np.linalg.inv(fitted.jac.T @ fitted.jac)))
        np.testing.assert_allclose(found[:, 1], bars, rtol=1e-3, atol=0.005)  # as printed
    assert rms[1] < rms[0] < 0.025
    assert (tmp_path / "filter_fit.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def bend() -> ModuleType:
    return load("photonic_inverse_design.py")


@pytest.fixture(scope="module")
def at(bend: ModuleType):
    return bend.setup()


def _densities(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(60, 60))


class _Helmholtz:
    """photonic_inverse_design's equation once more, as it stands before it is made symmetric.

    With each cell of its grid cut in `parts`.
    """

    def __init__(self, parts: int = 1):
        self.parts, self.n, self.h = parts, 120 * parts, 0.04 / parts
        self.k0 = 2 * np.pi / 1.55
        depth = lambda u: np.maximum(15 - u, u - 104).clip(0) / 15
        stretch = lambda u: 1 + 1j * 40 / (15 * 0.04) * depth(u) ** 3 / self.k0
        # In the example's cells, of which the first has its middle at 0.
        nodes = (np.arange(self.n) + 0.5) / parts - 0.5
        links = np.arange(self.n + 1) / parts - 0.5
        down = scipy.sparse.diags_array([1.0, -1.0], offsets=[0, -1], shape=(self.n + 1, self.n))
        D = scipy.sparse.diags_array(1 / stretch(links)) @ down / self.h
        second = -scipy.sparse.diags_array(1 / stretch(nodes)) @ down.T / self.h @ D
        one = scipy.sparse.eye_array(self.n)
        self.laplacian = scipy.sparse.kron(second, one) + scipy.sparse.kron(one, second)
        across = np.where(np.abs((np.arange(self.n) + 0.5) / parts - 60) < 5, 12.1, 2.1)
        plain = -(down.T @ down).toarray() / self.h**2
        squares, modes = np.linalg.eigh(plain + self.k0**2 * np.diag(across))
        self.mode, self.square = modes[:, -1], squares[-1]

    def field(self, eps: np.ndarray) -> np.ndarray:
        """E; eps given on the cells of the example."""
        eps = np.kron(eps, np.ones((self.parts, self.parts)))
        A = self.laplacian + scipy.sparse.diags_array(self.k0**2 * eps.ravel())
        current = np.zeros((self.n, self.n))
        current[18 * self.parts] = self.mode
        return spsolve(A.tocsc(), current.ravel()).reshape(self.n, self.n)

    def transmission(self, eps: np.ndarray, straight: np.ndarray) -> float:
        at = 98 * self.parts
        power = lambda profile: np.abs(profile @ self.mode) ** 2
        out = self.field(eps)[:, self.n - 1 - at]
        return power(out) / power(self.field(straight)[at])


def test_bend_solves_helmholtz(bend: ModuleType, at):
    eps = np.asarray(bend.permittivity(_densities()))
    assert np.count_nonzero(eps[:, 105:] != 2.1) == 0 and np.all(eps[55:65, :30] == 12.1)
    E = bend.field(at, eps)
    expected = _Helmholtz().field(eps)
    np.testing.assert_allclose(E, expected, rtol=0, atol=1e-9 * np.max(np.abs(expected)))
    values = np.concatenate([at.links, at.vacancy + at.weight * eps.ravel()])
    A = scipy.sparse.coo_array((values, tuple(at.indices.T)), (120**2, 120**2))
    assert abs(A - A.T).max() == 0


def test_bend_conserves_energy(bend: ModuleType, at):
    E = np.asarray(bend.field(at, bend.permittivity(_densities())))
    inner = slice(24, 96)
    across = lambda i, axis: np.take(E, i, axis)[inner]
    flow = lambda i, axis: np.sum(np.imag(across(i, axis).conj() * across(i + 1, axis)))
    out = [flow(95, 0), -flow(23, 0), flow(95, 1), -flow(23, 1)]
    # Light comes in from the left alone, and leaves.
    assert out[1] < 0 and np.sum(np.abs(out)) > 0
    assert abs(np.sum(out)) < 1e-10 * np.sum(np.abs(out))


def test_straight_guide_transmits_all(bend: ModuleType, at):
    E = np.asarray(bend.field(at, bend.straight()))
    amplitude = np.abs(E[19:101] @ at.mode)
    # What a current sends both ways on a grid: 2 - 2 cos(b h) = square h^2.
    h = 0.04
    bh = np.arccos(1 - _Helmholtz().square * h**2 / 2)
    np.testing.assert_allclose(amplitude, h**2 / (2 * np.sin(bh)), rtol=1e-4)
    assert bend.reflection(at, E, E) == 0


def test_bend_gradient(bend: ModuleType, at):
    straight = bend.field(at, bend.straight())

    @jax.jit
    def T(x):
        eps = bend.permittivity(bend.projected(bend.filtered(x), 8.0))
        return bend.transmission(at, bend.field(at, eps), straight)

    x, way = _densities(1), _densities(2) - 0.5
    slope = np.sum(jax.jit(jax.grad(T))(x) * way)
    by_hand = (T(x + 1e-4 * way) - T(x - 1e-4 * way)) / 2e-4
    assert abs(slope) > 1e-4
    np.testing.assert_allclose(slope, by_hand, rtol=1e-5)


def test_filter_and_projection(bend: ModuleType):
    spot = np.zeros((60, 60))
    spot[30, 30] = 1
    rho = np.asarray(bend.filtered(spot))
    assert np.sum(rho[20:41, 20:41]) == pytest.approx(1)
    assert rho[30, 33] > 0 == rho[30, 34] and rho[30, 31] == rho[29, 30]
    assert rho[0, 30] > 0 == rho[0, 10] and rho[30, 0] > 0 == rho[59, 30]  # next to the guides
    values = np.linspace(0, 1, 11)
    sharp = np.asarray(bend.projected(values, 64.0))
    np.testing.assert_allclose(sharp[[0, 5, 10]], [0, 0.5, 1])
    np.testing.assert_allclose(
        sharp, bend.rounded(values) + 0.5 * (values == 0.5), rtol=0, atol=1e-5
    )


@pytest.mark.slow
def test_bend_is_designed(bend: ModuleType, at):
    x, history = bend.design(at, bend.QUICK, lambda *_: None)
    assert len(history) == sum(bend.QUICK.values()) and history[0] < 0.1 < 0.95 < history[-1]
    eps = np.asarray(bend.permittivity(bend.rounded(bend.filtered(x))))
    assert set(np.unique(eps)) == {2.1, 12.1}
    straight = bend.straight()
    E, E_straight = bend.field(at, eps), bend.field(at, straight)
    T, R = bend.transmission(at, E, E_straight), bend.reflection(at, E, E_straight)
    assert T > 0.9 and 0 <= R <= 1 - T
    assert _Helmholtz().transmission(eps, straight) == pytest.approx(float(T), abs=1e-9)
    # The same structure on a grid of half the step: the claim isn't one of the grid's.
    assert _Helmholtz(2).transmission(eps, straight) == pytest.approx(float(T), abs=0.005)


@pytest.mark.slow
def test_photonic_inverse_design(tmp_path: Path):
    done = run("photonic_inverse_design.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith("%")]
    shares = {w[0]: [float(x) for x in w[-6::2]] for w in rows if w[0] in ("projected", "two")}
    for T, R, elsewhere in shares.values():
        assert T > 90 and R >= 0 and elsewhere >= 0
        assert T + R + elsewhere == pytest.approx(100, abs=0.02)
    assert (tmp_path / "photonic_inverse_design.png").read_bytes().startswith(b"\x89PNG")


def _refused(module: ModuleType, arguments: list[str], capsys, monkeypatch) -> str:
    """The one line that a script says before it exits with 2."""
    monkeypatch.setattr(sys, "argv", [module.__file__, *arguments])
    with pytest.raises(SystemExit) as exit:
        module.main()
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert out == "" and err.count("\n") == 1
    return err


@pytest.mark.parametrize("script", ["filter_fit.py", "photonic_inverse_design.py"])
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--output nowhere/fit.png", "nowhere is not a folder"),
        ("--output fit", "can't be written as a file without an ending"),
        ("--turbo", "unrecognized arguments: --turbo"),
    ],
)
def test_linalg_examples_refuse(script, arguments, reason, capsys, monkeypatch):
    assert reason in _refused(load(script), arguments.split(), capsys, monkeypatch)
