"""Problems on which diffrax by itself goes wrong on complex numbers, mostly without a word."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import cdiffeq as cd

# A rotation whose frequency depends on its radius, with a complex and a real argument.
KERR = lambda t, z, p: 1j * (p["c"].real + p["k"] * jnp.abs(z) ** 2) * z
TIME = 2.0


def _exact(z, p):
    return z * jnp.exp(1j * TIME * (p["c"].real + p["k"] * jnp.abs(z) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["Bosh3", "Tsit5", "Dopri5", "Dopri8"])
def test_backsolve_with_solvers_whose_last_stage_is_the_next_first(solver: str):
    """Of complex arguments the gradient is off by its own size there, and real ones raise."""

    def loss(solve):
        return lambda z, p: jnp.imag((1 + 2j) * solve(z, p)) + jnp.abs(solve(z, p) - 0.3) ** 2

    def solved(z, p):
        options = dict(solver=getattr(diffrax, solver)(), adjoint=cd.ode.Backsolve())
        return cd.ode.solve(KERR, z, [0.0, TIME], p, rtol=1e-8, atol=1e-10, **options).ys[-1]

    point = jnp.asarray(0.6 - 0.8j), {"c": jnp.asarray(0.7 + 0.2j), "k": jnp.asarray(0.4)}
    got = jax.jit(jax.grad(loss(solved), (0, 1)))(*point)
    expected = jax.grad(loss(_exact), (0, 1))(*point)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12, strict=True)
    jax.tree.map(same, got, expected)


def test_a_control_term_is_refused():
    """It would integrate the conjugate of a complex field."""
    path = diffrax.LinearInterpolation(jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0]))
    term = diffrax.ControlTerm(lambda t, z, p: 1j * z, path)
    with pytest.raises(TypeError, match=r"'f'|f must be"):
        cd.ode.solve(term, 1 + 0j, [0.0, 1.0])


@pytest.mark.slow
def test_a_solver_that_is_not_right_is_refused():
    with pytest.raises(TypeError, match=r"ReversibleHeun.*isn't supported"):
        cd.ode.solve(KERR, 1 + 0j, [0.0, 1.0], solver=diffrax.ReversibleHeun())


@pytest.mark.slow
def test_gradient_where_stability_limits_the_steps():
    """A wave packet by FFT: with diffrax's checkpoints the value is right, and the gradient off by 0.6 %."""
    n, length, time = 64, 12.0, 4.0
    x = np.arange(n) * length / n - length / 2
    k = 2 * np.pi * np.fft.fftfreq(n, length / n)
    psi0 = np.exp(-((x + 1) ** 2) + 2j * x)
    weights = np.exp(-((x - 1) ** 2))
    V = x**2 / 2

    def field(t, psi, height):
        kinetic = jnp.fft.ifft(k**2 / 2 * jnp.fft.fft(psi))
        return -1j * (kinetic + height * V * psi)

    def loss(height):
        options = dict(solver=diffrax.Dopri8(), rtol=1e-9, atol=1e-9, max_steps=4096)
        psi = cd.ode.solve(field, psi0, [0.0, time], height, **options).ys[-1]
        return jnp.sum(weights * jnp.abs(psi) ** 2)

    F = np.fft.fft(np.eye(n))
    H = np.linalg.inv(F) @ (k[:, None] ** 2 / 2 * F) + np.diag(V)
    psi, dpsi = (
        M @ psi0 for M in scipy.linalg.expm_frechet(-1j * time * H, -1j * time * np.diag(V))
    )
    value, slope = jax.jit(jax.value_and_grad(loss))(1.0)
    np.testing.assert_allclose(value, np.sum(weights * np.abs(psi) ** 2), rtol=1e-6)
    np.testing.assert_allclose(slope, 2 * np.sum(weights * (psi.conj() * dpsi).real), rtol=1e-6)


@pytest.mark.slow
def test_a_control_read_by_rounding_down():
    """At an edge t / dt may lie on either side by rounding, which cost 43 times the steps."""
    edges = np.linspace(0.0, 3.0, 31)
    u = np.random.default_rng(2).normal(size=30)
    rounded = lambda t: jnp.clip(jnp.floor(t / 0.1).astype(int), 0, 29)
    searched = lambda t: jnp.clip(jnp.searchsorted(edges, t, side="right") - 1, 0, 29)

    def run(index):
        f = lambda t, z, u: -1j * (1 + u[index(t)]) * z
        return cd.ode.solve(f, 1 + 0j, edges, u, solver=diffrax.Dopri8(), rtol=1e-9, atol=1e-11)

    expected = np.exp(-1j * np.sum(0.1 * (1 + u)))
    for solution in (run(rounded), run(searched)):
        np.testing.assert_allclose(solution.ys[-1], expected, rtol=1e-8)
        assert solution.stats.steps + solution.stats.rejected_steps < 2 * 30


@pytest.mark.slow
def test_steps_recover_from_nan():
    """A stage that is too far from the solution gives NaN: the step is rejected, and the next is shorter."""
    near = lambda t, z: jnp.abs(z - jnp.exp(1j * t)) < 0.02
    f = lambda t, z, _: jnp.where(near(t, z), 1j * z, jnp.nan)
    options = dict(solver=diffrax.Tsit5(), rtol=1e-3, atol=1e-3)
    solution = cd.ode.solve(f, 1 + 0j, [0.0, 5.0], **options)
    np.testing.assert_allclose(solution.ys[-1], np.exp(5j), rtol=0, atol=0.02)
    assert solution.stats.rejected_steps > 0
