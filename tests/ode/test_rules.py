"""The derivatives of every adjoint method: against finite differences, and as one rule in all modes."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

import cdiffeq as cd
from cdiffeq.testing import check_rule

METHODS = {
    "discrete": cd.ode.Discrete(),
    "interpolated": cd.ode.Interpolated(),
    "backsolve": cd.ode.Backsolve(),
    "reversible": cd.ode.Reversible(),
    "forward": cd.ode.ForwardSensitivity(),
}
# Exact for the steps that were taken; the others are as accurate as the tolerance.
EXACT = ("discrete", "reversible")

Y0 = {"z": jnp.array([0.3 + 0.1j, -0.2j]), "n": jnp.asarray(0.4)}
TS = jnp.array([0.1, 0.5, 1.2])
P = {"a": jnp.asarray(0.7 + 1j), "r": jnp.asarray(0.4)}


def field(t, y, p):
    """Neither holomorphic nor autonomous; real and complex states and parameters."""
    z, n = y["z"], y["n"]
    drive = p["r"] * jnp.cos(2 * t) * jnp.conj(z[::-1])
    return {
        "z": p["a"] * n * z - (1 + 2j) * jnp.abs(z) ** 2 * z + drive,
        "n": jnp.sum(jnp.abs(z)) - n,
    }


def solve(y0, ts, p, **options):
    options = dict(solver=diffrax.Bosh3(), rtol=1e-9, atol=1e-9, max_steps=2000) | options
    return cd.ode.solve(field, y0, ts, p, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_against_finite_differences(name: str):
    f = lambda *x: solve(*x, adjoint=METHODS[name]).ys
    # Adaptive steps move with the arguments of a finite difference, at the size of the tolerance.
    rtol = 1e-6
    pairing = None if name in EXACT else 1e-6
    check_rule(f, Y0, TS, P, rtol=rtol, pairing_rtol=pairing)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_equal_steps_are_differentiated_exactly(name: str):
    f = lambda h: lambda y0, ts, p: solve(y0, ts, p, adjoint=METHODS[name], stepsize=h).ys
    check_rule(lambda y0, p: f(0.05)(y0, TS, p), Y0, P, rtol=1e-9)
    # One step in each interval: their number must not change as the times move.
    check_rule(lambda ts: f(1.0)(Y0, ts, P), TS, rtol=1e-9)


@pytest.mark.slow
def test_an_implicit_solver_is_differentiated_exactly():
    solver = diffrax.Kvaerno3(root_finder=optimistix.Newton(rtol=1e-12, atol=1e-12))
    f = lambda h: lambda y0, ts, p: solve(y0, ts, p, solver=solver, stepsize=h).ys
    check_rule(lambda y0, p: f(0.2)(y0, TS, p), Y0, P, rtol=1e-8)
    check_rule(lambda ts: f(1.0)(Y0, ts, P), TS, rtol=1e-8)


def _loss(y0, ts, p, **options):
    ys = solve(y0, ts, p, **options).ys
    return jnp.sum(jnp.abs(ys["z"][:, 0] + 0.3 * jnp.conj(ys["z"][:, 1])) ** 4) + jnp.sum(
        ys["n"] ** 3
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_second_derivatives(name: str):
    f = lambda *x: _loss(*x, adjoint=METHODS[name], rtol=1e-8, atol=1e-8)
    check_rule(f, Y0, TS, P, modes=("vjp", "hvp"), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_batches_and_compilation(name: str):
    p = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), P)
    grad = jax.grad(lambda p: _loss(Y0, TS, p, adjoint=METHODS[name], rtol=1e-7))
    batched = jax.jit(jax.vmap(grad))(p)
    for i in range(2):
        single = grad(jax.tree.map(lambda x, i=i: x[i], p))
        for key in P:
            np.testing.assert_allclose(batched[key][i], single[key], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.Bosh3(), diffrax.Kvaerno3()])
def test_single_precision(solver):
    single = lambda x: x.astype(jnp.complex64 if jnp.iscomplexobj(x) else jnp.float32)
    y0, ts, p = jax.tree.map(single, (Y0, TS, P))
    options = dict(solver=solver, rtol=1e-4, atol=1e-5, stepsize=0.05)
    f = lambda y0, p: solve(y0, ts, p, **options).ys
    ys = f(y0, p)
    assert (ys["z"].dtype, ys["n"].dtype) == (jnp.complex64, jnp.float32)
    check_rule(f, y0, p, rtol=1e-3)
    g = jax.grad(lambda ts: jnp.sum(solve(y0, ts, p, **options).ys["n"]))(ts)
    assert g.dtype == jnp.float32


@pytest.mark.slow
def test_the_discrete_adjoint_is_the_derivative_of_diffrax_steps():
    # The same equal steps by diffrax, in real and imaginary parts, differentiated step by step.
    weights = jnp.asarray(np.random.default_rng(0).normal(size=4))
    f = lambda t, z, a: a * z - (1 + 2j) * jnp.abs(z) ** 2 * z + jnp.cos(t) * jnp.conj(z)

    def split(t, y, a):
        dz = f(t, jax.lax.complex(y[:2], y[2:]), jax.lax.complex(*a))
        return jnp.concatenate([dz.real, dz.imag])

    def theirs(z0, a):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(split), diffrax.Tsit5(), 0.0, 1.0, 0.1, jnp.concatenate([z0.real, z0.imag]),
            args=(a.real, a.imag), adjoint=diffrax.DirectAdjoint(), max_steps=16,
        )  # fmt: skip
        return jnp.sum(weights * solution.ys[-1] ** 3)

    def ours(z0, a):
        z = cd.ode.solve(f, z0, [0.0, 1.0], a, solver=diffrax.Tsit5(), stepsize=0.1).ys[-1]
        return jnp.sum(weights * jnp.concatenate([z.real, z.imag]) ** 3)

    z0 = Y0["z"]
    expected = jax.grad(theirs, (0, 1))(z0, jnp.asarray([0.7 + 1j, 0.2]))
    got = jax.grad(ours, (0, 1))(z0, jnp.asarray([0.7 + 1j, 0.2]))
    for e, g in zip(expected, got, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-13, atol=1e-14)


@pytest.mark.slow
def test_adaptive_steps_are_differentiated_as_taken():
    # At a loose tolerance the solution is off by much more than the gradient's rounding: the gradient
    # is that of the steps. The steps, made again with their sizes held, are the independent answer.
    tab, z0, a = diffrax.Bosh3.tableau, 0.3 + 0.1j, 0.7 + 1j
    f = lambda t, z, a: a * z - (1 + 2j) * jnp.abs(z) ** 2 * z + jnp.cos(t) * jnp.conj(z)
    options = dict(solver=diffrax.Bosh3(), rtol=1e-3, atol=1e-3)
    dense = cd.ode.solve(f, z0, [0.0, 3.0], a, dense=True, **options)
    edges = [3.0 * e for e in np.asarray(dense.dense.ends) if e > 0]

    def again(z, a):
        t = 0.0
        for edge in edges:
            h, ks = edge - t, [f(t, z, a)]
            for row, c in zip(tab.a_lower, tab.c, strict=True):
                ks.append(f(t + c * h, z + h * sum(w * k for w, k in zip(row, ks, strict=True)), a))
            z, t = z + h * sum(w * k for w, k in zip(tab.b_sol, ks, strict=True)), edge
        return jnp.real(z * (1 + 2j))

    ours = lambda z, a: jnp.real(cd.ode.solve(f, z, [0.0, 3.0], a, **options).ys[-1] * (1 + 2j))
    assert 5 < len(edges) < 60
    np.testing.assert_allclose(ours(z0, a), again(z0, a), rtol=1e-13)
    expected, got = (jax.grad(g, (0, 1))(z0, a) for g in (again, ours))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.slow
def test_gradient_of_what_f_closes_over():
    A = jnp.array([[0.1, 1j], [1j, -0.2]])
    end = lambda A, args: (
        cd.ode.solve(
            lambda t, y, a: (A if a is None else a) @ y, jnp.array([1 + 0j, 0]), [0.0, 1.0], args
        )
        .ys[-1, 0]
        .real
    )
    closed = jax.grad(lambda A: end(A, None))(A)
    np.testing.assert_allclose(closed, jax.grad(lambda a: end(A, a))(A), rtol=1e-13)
    assert np.max(np.abs(closed)) > 0.1


@pytest.mark.slow
def test_jumps_at_saved_times():
    # f jumps at t = 1, by exactly what the closed form says, and no step is wasted on it.
    f = lambda t, z, a: jnp.where(t < 1, 1j, a) * z
    for ts in ([0.0, 1.0, 2.0], [2.0, 1.0, 0.0]):
        run = lambda a, ts=ts: cd.ode.solve(f, 1 + 0j, ts, a, rtol=1e-8)
        exact = lambda a: np.exp(1j + a) if ts[0] == 0 else np.exp(-1j - a)  # noqa: B023
        a = -0.3 + 2j
        np.testing.assert_allclose(run(a).ys[-1], exact(a), rtol=1e-7)
        assert run(a).stats.rejected_steps <= 2
        slope = jax.grad(lambda a: run(a).ys[-1].real)(a)  # noqa: B023
        np.testing.assert_allclose(slope, exact(a) if ts[0] == 0 else -exact(a), rtol=1e-6)
