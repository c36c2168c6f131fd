"""Pictures: what they show, and that they refuse what they can't."""

import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import qutip
import scipy.sparse
import scipy.special
from matplotlib import colors

import cdiffeq as cd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

T = np.linspace(0.0, 2.0, 21)


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def _kets(rng: np.random.Generator, *shape: int) -> np.ndarray:
    psi = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    return psi / np.linalg.norm(psi, axis=-1, keepdims=True)


def _every_picture(ax=None, solid=None) -> list:
    x = np.linspace(-2, 2, 11)
    psi = np.exp(-(x**2) + 1j * x)
    return [
        cd.plot.pulse(T, T[1:] + 1j, ax),
        cd.plot.populations(T, np.ones((21, 3)), ax),
        cd.plot.wavefunction(x, psi, ax),
        cd.plot.wavefunction(x, psi[:, None] * psi[:5], ax, y=x[:5]),
        cd.plot.wigner([0, 1], x, ax=ax),
        cd.plot.spectrum(T, np.exp(T), ax),
        cd.plot.bloch([[1, 0], [0, 1j]], solid),
    ]


def test_axes_are_taken_and_returned():
    figure = plt.figure()
    ax, solid = figure.add_subplot(121), figure.add_subplot(122, projection="3d")
    *flat, last = _every_picture(ax, solid)
    assert all(axes is ax for axes in flat) and last is solid
    assert len({id(axes.figure) for axes in _every_picture()}) == 7
    figure.canvas.draw()


@pytest.mark.slow
def test_import_leaves_matplotlib_alone():
    code = "import cdiffeq, sys; cdiffeq.plot; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_are_left_alone():
    before = dict(matplotlib.rcParams)
    _every_picture()
    assert dict(matplotlib.rcParams) == before


def test_absent_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'pip install "cdiffeq\[plot\]"'):
        cd.plot.pulse(T, T)


def test_pulse():
    values = np.exp(1j * T[1:])
    ax = cd.plot.pulse(T, values, name="d", unit="rad/ns", time_unit="ns", lw=2)
    real, imag = ax.patches
    np.testing.assert_array_equal(real.get_data().values, values.real)
    np.testing.assert_array_equal(imag.get_data().values, values.imag)
    np.testing.assert_array_equal(imag.get_data().edges, T)
    assert (real.get_label(), imag.get_label(), real.get_linewidth()) == ("Re $d$", "Im $d$", 2)
    assert real.get_edgecolor() != imag.get_edgecolor()
    (line,) = cd.plot.pulse(T, jnp.sin(T)).lines
    np.testing.assert_allclose(line.get_ydata(), np.sin(T))


def test_populations_of_kets_and_of_density_matrices(rng):
    psi = _kets(rng, 21, 4)
    rho = psi[:, :, None] * psi[:, None].conj()
    for states in (psi, rho):
        ax = cd.plot.populations(T, states, levels=[3, 0], time_unit="us", log=True)
        for line, level in zip(ax.lines, (3, 0), strict=True):
            np.testing.assert_allclose(
                line.get_ydata(), np.abs(psi[:, level]) ** 2, rtol=0, atol=1e-15
            )
        assert ax.lines[0].get_label() == r"$|3\rangle$"
        assert (ax.get_xlabel(), ax.get_yscale()) == ("time (us)", "log")


def test_lines_are_told_apart():
    ax = cd.plot.populations(T, np.ones((21, 20)))
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 20


def test_wavefunction_in_one_dimension():
    x = np.array([0.0, 1.0, 3.0])
    psi = np.array([1.0, 2j, -1.0])
    ax = cd.plot.wavefunction(x, psi, colorbar=False)
    (strips,) = ax.collections
    # The area below the line, and in each strip the colour of its phase.
    areas = []
    for path in strips.get_paths():
        a, b = path.vertices[:-1].T
        areas.append(abs(np.sum(a * np.roll(b, -1) - b * np.roll(a, -1)) / 2))
    assert sum(areas) == pytest.approx(np.trapezoid(np.abs(psi) ** 2, x))
    expected = cd.plot._phase_colors(np.array([0, np.pi / 2, np.pi]))
    np.testing.assert_allclose(strips.get_facecolor()[:, :3], expected)


def test_wavefunction_in_two_dimensions():
    x, y = np.arange(3.0), np.arange(2.0)
    psi = np.array([[1, 0], [0, 0.5j], [0, 0]])
    (mesh,) = cd.plot.wavefunction(x, psi, y=y, colorbar=False).collections
    image = mesh.get_array()  # (y, x, rgb)
    assert image.shape == (2, 3, 3)
    one, i = cd.plot._phase_colors(np.array([0.0, np.pi / 2]))
    np.testing.assert_allclose(image[0, 0], one)
    np.testing.assert_allclose(image[1, 1], (1 + i) / 2)
    np.testing.assert_allclose(image[1, 0], 1)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    linear = np.where(rgb <= 12.92 * 0.0031308, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # The forward matrices of Ottosson's page.
    M1 = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
          [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    M2 = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
          [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.cbrt(linear @ np.transpose(M1)) @ np.transpose(M2)


def test_phases_are_uniform_to_the_eye_and_cyclic():
    rgb = cd.plot._phase_colors(np.linspace(-np.pi, np.pi, 121))
    np.testing.assert_allclose(rgb[0], rgb[-1])
    steps = np.linalg.norm(np.diff(_oklab(rgb), axis=0), axis=1)
    assert np.ptp(steps) < 1e-4 * steps.mean()  # nothing was clipped, either


def test_phases_are_told_apart_without_red_and_green():
    # Deuteranopia as G. M. Machado et al. 2009, doi:10.1109/TVCG.2009.113, simulate it, on linear RGB.
    M = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                  [-0.011820, 0.042940, 0.968881]])  # fmt: skip
    rgb = cd.plot._phase_colors(np.linspace(-np.pi, np.pi, 12, endpoint=False))
    linear = np.where(rgb <= 12.92 * 0.0031308, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ M.T, 0, 1)
    lab = _oklab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1) + np.eye(12)
    assert apart.min() > 0.03  # 0.02 is about what is just noticed


def test_colors_are_okabe_and_itos():
    assert len(set(cd.plot.COLORS)) == 7
    assert all(colors.is_color_like(color) for color in cd.plot.COLORS)


def test_bloch(rng):
    psi = _kets(rng, 5, 2)
    path = np.stack([qutip.expect([qutip.sigmax(), qutip.sigmay(), qutip.sigmaz()], qutip.Qobj(a))
                     for a in psi])  # fmt: skip
    rho = np.einsum("ti,tj->tij", psi, psi.conj())
    for states, r in ((3 * psi, path), (0.5 * rho + 0.25 * np.eye(2), path / 2)):
        line = cd.plot.bloch(states, color="black").lines[-3]
        np.testing.assert_allclose(np.stack(line.get_data_3d(), 1), r, rtol=0, atol=1e-14)
        assert line.get_color() == "black"


def test_wigner_against_qutip(rng):
    x, p = np.linspace(-4, 4, 9), np.linspace(-3, 3, 8)
    psi = _kets(rng, 12)
    root = rng.normal(size=(12, 12)) + 1j * rng.normal(size=(12, 12))
    rho = root @ root.conj().T
    rho /= np.trace(rho)
    for state in (psi, rho):
        expected = qutip.wigner(qutip.Qobj(state), x, p).T
        found = cd.plot.wigner_function(state, x, p)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
        (mesh,) = cd.plot.wigner(state, x, p).collections
        np.testing.assert_array_equal(mesh.get_array(), found.T)
        assert mesh.norm.vmin == -mesh.norm.vmax


def test_wigner_of_a_large_number_state():
    # Where factorials and powers alone would overflow: (-1)^n / pi exp(-2 x^2) L_n(2 x^2).
    psi = np.zeros(301)
    psi[300] = 1
    x = np.array([0.0, 3.0, 20.0, 24.0, 40.0])
    W = cd.plot.wigner_function(psi, x, np.array([0.0]))[:, 0]
    expected = np.exp(-(x[:-1] ** 2)) * scipy.special.eval_laguerre(300, 2 * x[:-1] ** 2) / np.pi
    np.testing.assert_allclose(W, [*expected, 0], rtol=1e-9, atol=1e-12)


def test_spectrum():
    t = 0.5 * np.arange(40)
    power = lambda ax: dict(zip(*ax.lines[0].get_data(), strict=True))
    of = power(cd.plot.spectrum(t, np.exp(-2j * np.pi * 0.25 * t) + 0.1, time_unit="ns"))
    assert len(of) == 40
    assert of[-0.25] == pytest.approx(0) and of[0] == pytest.approx(-20) and of[0.25] < -200
    ax = cd.plot.spectrum(t, np.cos(2 * np.pi * 0.25 * t), time_unit="ns", floor=-60)
    assert min(power(ax)) == 0 and power(ax)[0.25] == pytest.approx(0)
    assert ax.get_xlabel() == "frequency (1/ns)" and ax.get_ylim()[0] == -60


def test_other_arrays_are_taken():
    cd.plot.populations([0.0], qutip.basis(3, 1).dag())
    W = cd.plot.wigner_function(qutip.ket2dm(qutip.basis(3, 1)), [0.0], [0.0])
    assert W * np.pi == pytest.approx(-1)
    cd.plot.populations(T[:3], scipy.sparse.eye_array(3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cd.plot.pulse(T, T[2:]), ValueError, "pulse: values must be a vector"),
        (lambda: cd.plot.pulse(1j * T, T), TypeError, "pulse: ts must be real"),
        (lambda: cd.plot.pulse(T, T + np.nan), ValueError, "pulse: values must be finite"),
        (lambda: jax.jit(lambda a: cd.plot.pulse(T, a))(T), TypeError, "values is traced"),
        (lambda: cd.plot.populations(T, np.ones(21)), ValueError, r"kets \(time, n\)"),
        (lambda: cd.plot.populations(T, np.ones((20, 2))), ValueError, "for 21 times"),
        (lambda: cd.plot.populations(T, np.ones((21, 2)), levels=[2]), ValueError, "between 0 and 1"),
        (lambda: cd.plot.populations(T, np.ones((21, 2)), labels="a"), ValueError, "1 labels"),
        (lambda: cd.plot.populations(T, np.ones((21, 2, 2)) * [1, 2]), ValueError, "Hermitian"),
        (lambda: cd.plot.wavefunction(T, T[1:]), ValueError, r"must have shape \(21,\)"),
        (lambda: cd.plot.wavefunction(-T, T), ValueError, "x must ascend"),
        (lambda: cd.plot.bloch(np.ones((4, 3))), ValueError, r"kets \(time, 2\)"),
        (lambda: cd.plot.bloch(np.zeros((4, 2))), ValueError, "zero ket"),
        (lambda: cd.plot.bloch(np.ones((4, 2)), plt.figure().gca()), ValueError, "three-dimensional"),
        (lambda: cd.plot.wigner(np.ones((2, 3)), T), ValueError, r"a ket \(n,\)"),
        (lambda: cd.plot.wigner(np.triu(np.ones((2, 2))), T), ValueError, "Hermitian"),
        (lambda: cd.plot.wigner(np.ones(341), T), ValueError, "at most 340"),
        (lambda: cd.plot.spectrum(T**2, T), ValueError, "equally spaced"),
        (lambda: cd.plot.spectrum(T, 0 * T), ValueError, "all zero"),
        (lambda: cd.plot.spectrum(T, T[1:]), ValueError, "of one length"),
    ],
)  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
