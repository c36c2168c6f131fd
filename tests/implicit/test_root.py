"""Roots against closed forms and finite differences; what fails, and how it says so."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

import cdiffeq as cd
from cdiffeq.implicit import root
from tests.linalg.common import quick_jit, random_array

RNG = np.random.default_rng(5)

# A driven resonator whose frequency depends on its intensity: z + (i k |z|^2 + i d) z = s.
KERR = {"detuning": 0.4, "kerr": 0.3, "drive": 1.2 + 0.3j}


def resonator(z: Any, p: Any) -> Any:
    return z * (1 + 1j * (p["detuning"] + p["kerr"] * jnp.abs(z) ** 2)) - p["drive"]


def closed_form(p: Any) -> complex:
    """By the cubic equation of the intensity, which has one solution here."""
    d, k = p["detuning"], p["kerr"]
    intensities = np.roots([k**2, 2 * k * d, 1 + d**2, -(abs(p["drive"]) ** 2)])
    (n,) = intensities[np.abs(intensities.imag) < 1e-9].real
    return p["drive"] / (1 + 1j * (d + k * n))


SOLVERS = {
    "Newton": cd.implicit.Newton(),
    "Broyden": cd.implicit.Broyden(),
    "Anderson": cd.implicit.Anderson(mixing=0.5),
    "optimistix.Newton": optimistix.Newton(rtol=1e-9, atol=1e-9),
    "optimistix.Dogleg": optimistix.Dogleg(rtol=1e-9, atol=1e-9),
}


def _within(name: str, rtol: float) -> None:
    find = quick_jit(
        lambda p: root(resonator, 1 + 0j, p, solver=SOLVERS[name], rtol=rtol, atol=0.0, throw=False)
    )
    z, report = find(KERR)
    assert report.code == 0 and 0 < report.iterations < 40
    assert abs(z - closed_form(KERR)) <= rtol * abs(z)
    np.testing.assert_allclose(report.size, abs(z))


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_the_root(name: str):
    _within(name, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("rtol", [1e-3, 1e-5, 1e-12])
@pytest.mark.parametrize("name", ["Newton", "Broyden", "Anderson"])
def test_the_error_is_within_the_tolerance(name: str, rtol: float):
    _within(name, rtol)


def test_newton_comes_from_afar():
    # Whole steps alone swing between ever larger points here.
    F = lambda z, a: jnp.arctan(jnp.abs(z)) * z / jnp.abs(z) - a
    z = quick_jit(lambda a: root(F, 20 - 30j, a))(0.1 + 0.2j)
    size = abs(0.1 + 0.2j)
    np.testing.assert_allclose(z, np.tan(size) * (0.1 + 0.2j) / size, rtol=1e-8)


# Derivatives.


def coupled(z: Any, p: Any) -> Any:
    """Three equations, mixed and not holomorphic, in an order that isn't that of z."""
    a, b = z["a"], z["b"]
    first = a + 0.2 * MATRIX @ (jnp.conj(a) * jnp.abs(a) ** 2) - p["c"] + (1 + 1j) * b
    return b + 0.1 * jnp.sum(jnp.abs(a) ** 2) - p["r"], first


MATRIX = random_array(RNG, 2, 2)
START = {"a": jnp.full(2, 0.3 + 0j), "b": jnp.array(0.1)}
ARGS = {"c": 0.3 * random_array(RNG, 2), "r": np.array(0.4)}


@pytest.mark.slow
def test_against_finite_differences():
    cd.testing.check_rule(lambda p: root(coupled, START, p), ARGS, key=jax.random.key(1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_single_precision(dtype: Any):
    cast = lambda x: np.asarray(x, dtype if np.iscomplexobj(x) else np.float32)
    F = lambda z, c: z + 0.2 * cast(MATRIX.real) @ (jnp.conj(z) * jnp.abs(z) ** 2) - c
    c = cast(0.3 * random_array(np.random.default_rng(2), 2, dtype=dtype))
    z = root(F, 0 * c, c)
    assert z.dtype == dtype
    cd.testing.check_rule(
        lambda c: root(F, 0 * c, c), c, pairing_rtol=1e-3, rtol=2e-3, key=jax.random.key(2)
    )


@pytest.mark.slow
@pytest.mark.parametrize("linear_solver", [None, cd.linalg.GMRES(rtol=1e-13)])
def test_second_derivatives(linear_solver: Any):
    f = lambda p: root(coupled, START, p, linear_solver=linear_solver)
    modes = ("jvp", "vjp", "hvp")
    cd.testing.check_rule(f, ARGS, modes=modes, pairing_rtol=1e-10, key=jax.random.key(3))


@pytest.mark.slow
def test_the_part_that_is_not_holomorphic_counts():
    # dz = -(A dz' ...): with A = dF/dz alone the answer is wrong by 10 to 20 %, and looks as good.
    p = {"detuning": 0.4, "kerr": 0.12, "drive": 1.2 + 0.3j}
    z = closed_form(p)
    A, B = cd.wirtinger.derivatives(lambda z: resonator(z, p))(z)
    without_B = 1 / A

    move = lambda s: root(resonator, 1 + 0j, p | {"drive": s})
    ours = quick_jit(lambda s: jax.jvp(move, (s,), (1 + 0j,))[1])(p["drive"])
    h = 1e-6
    of = lambda s: closed_form(p | {"drive": s})
    difference = (of(p["drive"] + h) - of(p["drive"] - h)) / (2 * h)
    assert 0.1 < abs(without_B - difference) / abs(difference) < 0.2
    np.testing.assert_allclose(ours, difference, rtol=1e-8)
    np.testing.assert_allclose(A * ours + B * np.conj(ours), 1, rtol=1e-12)


def test_what_the_function_closes_over():
    @quick_jit
    @jax.grad
    def gradient(drive):
        F = lambda z, _: resonator(z, KERR | {"drive": drive})
        return jnp.abs(root(F, 1 + 0j)) ** 2

    h = 1e-6
    power = lambda s: abs(closed_form(KERR | {"drive": s})) ** 2
    for step, part in ((h, 1), (1j * h, -1j)):
        s = KERR["drive"]
        slope = (power(s + step) - power(s - step)) / (2 * h)
        np.testing.assert_allclose((gradient(s) * np.conj(part)).real, slope, rtol=1e-7)


def test_the_start_has_no_derivative():
    gradient = quick_jit(jax.grad(lambda z0: jnp.abs(root(resonator, z0, KERR)) ** 2))(1 + 0j)
    assert gradient == 0


@pytest.mark.slow
def test_vmap():
    drives = jnp.array([0.3 + 1j, 1.2, -2j])
    value, slope = quick_jit(
        jax.vmap(
            jax.value_and_grad(lambda s: jnp.abs(root(resonator, 1 + 0j, KERR | {"drive": s})))
        )
    )(drives)
    expected = [abs(closed_form(KERR | {"drive": complex(s)})) for s in drives]
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    # A turn of the drive turns z, and no more.
    np.testing.assert_allclose((slope * 1j * drives).real, 0, rtol=0, atol=1e-12)


# Large systems.


def chain(z: Any, s: Any) -> Any:
    """Resonators beside each other."""
    hop = jnp.roll(z, 1) + jnp.roll(z, -1)
    return z * (1 + 1j * (0.4 + 0.3 * jnp.abs(z) ** 2)) + 0.3j * hop - s


@pytest.mark.slow
def test_a_large_system_forms_no_matrix():
    n = 200
    s = random_array(RNG, n)
    z0 = jnp.zeros(n, complex)
    loss = lambda s, solver: jnp.sum(jnp.abs(root(chain, z0, s, linear_solver=solver)) ** 2)
    free = jax.jit(jax.value_and_grad(lambda s: loss(s, None))).lower(s).compile()
    value, gradient = free(s)
    matrix = (2 * n) ** 2 * 8
    assert free.memory_analysis().temp_size_in_bytes < 0.4 * matrix
    dense = quick_jit(jax.value_and_grad(lambda s: loss(s, cd.linalg.LU())))
    expected_value, expected = dense(s)
    np.testing.assert_allclose(value, expected_value, rtol=1e-9)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps():
    def memory(max_steps):
        f = lambda s: jnp.abs(root(chain, jnp.zeros(3, complex), s, max_steps=max_steps)[0])
        return quick_jit(jax.grad(f)).lower(jnp.ones(3, complex)).compile().memory_analysis()

    assert memory(1000).temp_size_in_bytes == memory(10).temp_size_in_bytes


# Failure.


@pytest.mark.slow
def test_without_a_root():
    F = lambda z, a: jnp.abs(z) ** 2 + a + 1j * z.imag
    with pytest.raises(RuntimeError, match=r"root: .* residual has the norm 1\.\d+e\+00.* iterate"):
        root(F, 0.5 + 0.1j, 1.0)
    z, report = quick_jit(lambda a: root(F, 0.5 + 0.1j, a, throw=False))(1.0)
    assert np.isnan(z) and report.code != 0 and report.residual >= 1
    with pytest.raises(jax.errors.JaxRuntimeError, match="root: "):
        jax.block_until_ready(quick_jit(lambda a: root(F, 0.5 + 0.1j, a))(1.0))


def test_too_few_steps():
    with pytest.raises(RuntimeError, match=r"max_steps were made .* after 2 steps the residual"):
        root(resonator, 1 + 0j, KERR, max_steps=2)


def test_nan_stays_nan():
    with pytest.raises(RuntimeError, match="not finite"):
        root(resonator, 1 + 0j, KERR | {"kerr": np.nan})


DOUBLE = {
    "z^2": (lambda z, a: z**2 - a, 0j),
    "z^2 - 2 z + 1": (lambda z, a: z**2 - 2 * z + 1 - a, 0j),
    "a fold": (lambda z, a: jax.lax.complex(z.real**2 + 0.5 * z.imag, z.imag) - a, 0j),
}


FAST = ("z^2 - 2 z + 1", "jvp")
MODES = {
    "vjp": lambda f: jax.grad(lambda a: f(a).real),
    "jvp": lambda f: lambda a: jax.jvp(f, (a,), (1 + 0.3j,))[1],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, mode",
    [
        pytest.param(name, mode, marks=[] if (name, mode) == FAST else [pytest.mark.slow])
        for name in DOUBLE
        for mode in MODES
    ],
)
def test_a_singular_root_has_no_derivative(name: str, mode: str):
    F, a = DOUBLE[name]
    find = lambda a, **options: root(F, 0.3 + 0.1j, a, max_steps=1000, **options)
    with pytest.raises(Exception, match=r"root: there is no derivative"):
        jax.block_until_ready(quick_jit(MODES[mode](find))(a))
    quiet = MODES[mode](lambda a: find(a, throw=False)[0])
    assert np.isnan(quick_jit(quiet)(a))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_root_near_a_singular_one_has_a_derivative(mode: str):
    for F, z in ((DOUBLE["z^2"][0], 1e-3), (DOUBLE["z^2 - 2 z + 1"][0], 1e-3)):
        derivative = MODES[mode](lambda a, F=F: root(F, 1.3 + 0.1j, a))
        factor = 1 + 0.3j if mode == "jvp" else 1
        slope = quick_jit(derivative)(z**2 + 0j)
        np.testing.assert_allclose(slope, factor / (2 * z), rtol=1e-6)


# What it refuses.


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: root(1.0, 1j), "F must be a function|Callable"),
        (lambda: root(resonator, 1, KERR), "z0 must be a floating or complex array, got int"),
        (lambda: root(resonator, 1.0, KERR), "F returns 2 real numbers, and z0 has 1"),
        (lambda: root(lambda z, _: z[:2], jnp.ones(3)), "F returns 2 real numbers, and z0 has 3"),
        (lambda: root(lambda z, _: 1, 1.0), "F must be floating or complex, got int"),
        (lambda: root(resonator, np.complex64(1), KERR | {"kerr": np.float64(1)}), "precision"),
        (lambda: root(resonator, 1j, KERR, rtol=1e-17), "rtol=1e-17 is below what complex128"),
        (lambda: root(resonator, 1j, KERR, rtol=-1.0), "rtol must be a number that isn't negative"),
        (lambda: root(resonator, 1j, KERR, max_steps=0), "max_steps must be a positive integer"),
        (lambda: root(resonator, 1j, KERR, solver="Newton"), "solver must be one such as"),
        (
            lambda: root(resonator, 1j, KERR, linear_solver="LU"),
            "linear_solver must be one such|Solver",
        ),
        (lambda: root(resonator, complex(np.nan), KERR), "z0 must be finite"),
        (lambda: cd.implicit.Anderson(memory=0), "memory must be a positive integer"),
    ],
)
def test_bad_arguments(call: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
