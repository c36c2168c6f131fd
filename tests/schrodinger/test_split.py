"""Split-operator steps: closed forms, orders, and the rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.testing import check_rule
from tests.schrodinger.reference import exact

GRID = cd.linalg.Grid((12.0,), (16,))
X = GRID.x
PSI = np.exp(-((X - 1) ** 2) / 2 + 0.3j * X)
EDGES = np.array([0.0, 0.3, 1.0])
DIPOLE = cd.linalg.diagonals(X)


def shaken(V, u, w, mass=1.0):
    H = cd.constant(cd.linalg.KineticPotential(GRID, V, mass)) + cd.pwc(EDGES, u, DIPOLE)
    return H + cd.modulated(lambda t, w: jnp.sin(w * t), DIPOLE, w)


@pytest.mark.slow
def test_a_free_packet_in_two_dimensions():
    grid = cd.linalg.Grid((40.0, 40.0), (128, 128))
    packet = lambda x, t, p: (
        (2 * np.pi) ** -0.25
        / np.sqrt(1 + 0.5j * t)
        * np.exp(-((x - p * t) ** 2) / (4 * (1 + 0.5j * t)) + 1j * p * (x - p * t / 2))
    )
    psi = lambda t: (packet(grid.x, t, 1.0) * packet(grid.y, t, -0.5)).ravel()
    H = cd.linalg.KineticPotential(grid)
    result = cd.sesolve(H, psi(0.0), [0.0, 3.0], method=cd.SplitOperator(2, steps=1))
    np.testing.assert_allclose(result.final_state, psi(3.0), rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 4])
def test_order(order: int):
    H = shaken(X**2 / 2, jnp.array([0.4, -0.7]), 1.3)
    solve = lambda method: cd.sesolve(H, PSI, [0.0, 1.0], method=method).final_state
    exact = solve(cd.SplitOperator(4, steps=200))
    errors = [np.linalg.norm(solve(cd.SplitOperator(order, steps=n)) - exact) for n in (10, 20)]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2
    adaptive = solve(cd.SplitOperator(order)) if order == 4 else exact
    assert np.linalg.norm(adaptive - exact) < 1e-7


@pytest.mark.slow
def test_against_chebyshev():
    H = cd.constant(cd.linalg.KineticPotential(GRID, np.cos(X), 0.7)) + cd.pwc(
        EDGES, np.array([0.4, -0.7]), DIPOLE
    )
    expected = exact(lambda t: np.asarray(H(t).to_dense()), PSI, [0.0, 1.0], EDGES)
    for method, atol in ((cd.Chebyshev(), 1e-12), (cd.SplitOperator(4, steps=100), 1e-7)):
        got = cd.sesolve(H, PSI, [0.0, 1.0], method=method).states
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.mark.slow
def test_rule():
    def f(V, u, w, mass, ts, psi):
        H = shaken(V, u, w, mass)
        return cd.sesolve(H, psi, ts, method=cd.SplitOperator(2, steps=2)).states[1:]

    psi = np.stack([PSI, PSI[::-1] * 1j])
    args = np.cos(X), np.array([0.4, -0.7]), 1.3, 0.8, np.array([0.1, 0.6, 0.9]), psi
    check_rule(f, *args, key=jax.random.key(9))


@pytest.mark.slow
def test_rule_of_order_4_and_second_derivatives():
    def f(V, u):
        H = cd.constant(cd.linalg.KineticPotential(GRID, V)) + cd.pwc(EDGES, u, DIPOLE)
        return cd.sesolve(H, PSI, [0.0, 1.0], method=cd.SplitOperator(4, steps=2)).final_state

    modes = ("jvp", "vjp", "hvp")
    check_rule(f, np.cos(X), np.array([0.4, -0.7]), modes=modes, key=jax.random.key(10))


@pytest.mark.slow
def test_absorbing_potentials():
    def f(V, u, ts):
        H = shaken(V, u, 0.0)
        method = cd.SplitOperator(4, steps=3)
        return cd.sesolve(H, PSI, ts, method=method, hermitian=False).states[1:]

    V = np.cos(X) - 0.5j * (abs(X) > 4)
    check_rule(f, V, np.array([0.4, -0.7]), np.array([0.1, 0.6, 0.9]), key=jax.random.key(11))


def test_factors_of_an_operator():
    V, method = np.cos(X), cd.SplitOperator(2, steps=3)
    final = lambda H: cd.sesolve(cd.constant(H), PSI, [0.0, 1.0], method=method).final_state
    half = cd.linalg.KineticPotential(GRID, V / 2, mass=2.0)
    known = final(cd.linalg.KineticPotential(GRID, V))
    np.testing.assert_allclose(final(2 * half), known, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: cd.SplitOperator(3), ValueError, "order must be 2 or 4"),
        (lambda: cd.SplitOperator(steps=0), ValueError, "steps"),
        (lambda: solve(DIPOLE), ValueError, "must have one KineticPotential"),
        (
            lambda: solve(cd.linalg.KineticPotential(GRID) + cd.constant(np.eye(16))),
            ValueError,
            "isn't diagonal",
        ),
        (
            lambda: solve(cd.linalg.KineticPotential(GRID, -0.1j * X**2)),
            ValueError,
            "not Hermitian at t = 0",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def solve(H):
    return cd.sesolve(H, PSI, [0.0, 1.0], method=cd.SplitOperator(2, steps=1))


@pytest.mark.slow
def test_memory_is_flat_in_the_steps():
    def temporary(steps):
        def loss(u):
            H = cd.constant(cd.linalg.KineticPotential(GRID, X**2)) + cd.modulated(
                lambda t, p: p[0] * jnp.sin(p[1] * t), DIPOLE, u
            )
            method = cd.SplitOperator(4, steps=steps)
            return jnp.abs(cd.sesolve(H, PSI, [0.0, 1.0], method=method).final_state[0]) ** 2

        u = jax.ShapeDtypeStruct((2,), float)
        return jax.jit(jax.grad(loss)).lower(u).compile().memory_analysis().temp_size_in_bytes

    # A step has a time, a length, a slot and their gradients.
    few, many = temporary(100), temporary(5000)
    assert many - few < 100 * 4900
