"""Implicit-explicit methods: a field in two parts, stiff and not, neither of them holomorphic."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest
from scipy.integrate import solve_ivp

import cdiffeq as cd
from cdiffeq.testing import check_rule

DECAY = -8.0 * np.arange(4) ** 2
Y0 = {"z": jnp.array([0.5 + 0.2j, -0.3j, 0.4, 0.1 - 0.1j]), "n": jnp.asarray(0.4)}
TS = jnp.array([0.1, 0.4, 1.0])
P = {"a": jnp.asarray(0.7 + 1j), "d": jnp.asarray(1.2)}


def explicit(t, y, p, xp=jnp):
    z, n = y["z"], y["n"]
    drive = xp.conj(p["a"] * xp.roll(z, 1)) * xp.cos(2 * t)
    return {"z": n * z - (1 + 2j) * xp.abs(z) ** 2 * z + drive, "n": xp.sum(xp.abs(z) ** 2) - n}


def implicit(t, y, p, xp=jnp):
    z, rates = y["z"], p["d"] * DECAY.astype(y["z"].real.dtype)
    return {"z": rates * (z + (0.1 + t) * xp.conj(z)), "n": -30 * (y["n"] - abs(p["a"]))}


def solve(y0, ts, p, **options):
    options = dict(solver=diffrax.KenCarp3(), max_steps=2000) | options
    return cd.ode.solve((explicit, implicit), y0, ts, p, **options)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["KenCarp3", "KenCarp4", "KenCarp5", "Sil3"])
def test_against_radau(solver: str):
    def field(t, x):
        y = {"z": x[:4] + 1j * x[4:8], "n": x[8]}
        d = {k: explicit(t, y, P, np)[k] + implicit(t, y, P, np)[k] for k in y}
        return np.concatenate([d["z"].real, d["z"].imag, [d["n"]]])

    start = np.concatenate([Y0["z"].real, Y0["z"].imag, [Y0["n"]]])
    span = (float(TS[0]), float(TS[-1]))
    reference = solve_ivp(field, span, start, "Radau", TS, rtol=1e-11, atol=1e-13).y
    for tolerance in (1e-4, 1e-6):
        options = dict(rtol=tolerance, atol=tolerance, solver=getattr(diffrax, solver)())
        ys = solve(Y0, TS, P, **options).ys
        got = np.concatenate([ys["z"].real.T, ys["z"].imag.T, ys["n"][None]])
        np.testing.assert_allclose(got, reference, rtol=0, atol=30 * tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.KenCarp3, diffrax.KenCarp5, diffrax.Sil3])
def test_equal_steps_are_differentiated_exactly(solver):
    tight = solver(root_finder=optimistix.Newton(rtol=1e-12, atol=1e-12))
    f = lambda h: lambda y0, ts, p: solve(y0, ts, p, solver=tight, stepsize=h).ys
    check_rule(lambda y0, p: f(0.05)(y0, TS, p), Y0, P, rtol=1e-8)
    # One step in each interval: their number must not change as the times move.
    check_rule(lambda ts: f(1.0)(Y0, ts, P), jnp.array([0.1, 0.15, 0.25]), rtol=1e-8)


@pytest.mark.slow
def test_adaptive_steps_and_second_derivatives():
    def loss(y0, ts, p):
        solution = solve(y0, ts, p, rtol=1e-8, atol=1e-9)
        z, n = solution.ys["z"], solution.ys["n"]
        return jnp.sum(jnp.abs(z[:, 0] + 0.3 * jnp.conj(z[:, 1])) ** 4) + jnp.sum(n**3)

    check_rule(loss, Y0, TS, P, modes=("vjp", "hvp"), rtol=1e-5)


@pytest.mark.slow
def test_single_precision_and_batches():
    single = lambda x: x.astype(jnp.complex64 if jnp.iscomplexobj(x) else jnp.float32)
    y0, ts, p = jax.tree.map(single, (Y0, TS, P))
    f = lambda p: jnp.sum(
        jnp.abs(solve(y0, ts, p, rtol=1e-4, atol=1e-5, stepsize=0.05).ys["z"]) ** 2
    )
    check_rule(f, p, rtol=1e-3)
    two = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), p)
    batched = jax.jit(jax.vmap(jax.grad(f)))(two)
    assert batched["a"].dtype == jnp.complex64
    for i in range(2):
        alone = jax.grad(f)(jax.tree.map(lambda x, i=i: x[i], two))
        np.testing.assert_allclose(batched["a"][i], alone["a"], rtol=1e-4)


@pytest.mark.slow
def test_costs_events_and_dense_solutions():
    # dz/dt = (2i - 1) z, the decay implicit: |z|^2 = exp(-2 t).
    parts = (lambda t, z, w: 1j * w * z, lambda t, z, w: -z)
    options = dict(solver=diffrax.KenCarp5(), rtol=1e-9, atol=1e-10)
    cost = lambda t, z, w: jnp.abs(z) ** 2
    event = lambda t, z, w: jnp.abs(z) - 0.5
    solution = cd.ode.solve(parts, 1 + 0j, [0.0, 3.0], 2.0, cost=cost, event=event, **options)
    np.testing.assert_allclose(solution.event_time, np.log(2), rtol=1e-8)
    np.testing.assert_allclose(solution.cost[-1], (1 - 0.25) / 2, rtol=1e-8)
    dense = cd.ode.solve(parts, 1 + 0j, [0.0, 3.0], 2.0, dense=True, **options)
    np.testing.assert_allclose(dense.evaluate(1.234), np.exp((2j - 1) * 1.234), rtol=1e-8)
