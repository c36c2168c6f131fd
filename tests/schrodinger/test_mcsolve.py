"""mcsolve against mesolve, within its standard error: values and derivatives; and reproducibility."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from tests.schrodinger.reference import X, Z, random

LOWER = np.array([[0.0, 1.0], [0.0, 0.0]])
EDGES, VALUES = np.array([0.0, 0.4, 1.0, 1.5]), np.array([1.5, -0.7, 2.0])
TS = np.array([0.0, 0.3, 1.0, 1.7])
PSI = np.array([0.6, 0.8j])
OPS = [np.diag([0.0, 1.0]), LOWER]


def problem(values=VALUES, decay=0.8, dephasing=0.6, tilt=0.9):
    H = cd.constant(tilt * Z / 2) + cd.pwc(EDGES, values, X / 2)
    return H, [jnp.sqrt(decay) * LOWER, cd.pwc(EDGES, dephasing * np.array([1.0, 0.5, 1.5]), Z)]


def means(*args, key=0, ntraj=400, ts=TS, psi=PSI):
    H, jumps = problem(*args)
    return cd.mcsolve(H, jumps, psi, ts, key=jax.random.key(key), ntraj=ntraj, exp_ops=OPS)


@pytest.mark.slow
def test_values_within_the_standard_error():
    run = means(ntraj=4000)
    H, jumps = problem()
    exact = cd.mesolve(H, jumps, PSI, TS, exp_ops=OPS).expects
    off = run.expects - exact
    assert jnp.max(jnp.abs(off[:, 0])) < 1e-14  # at the first time nothing is random
    ratio = (
        np.stack([off.real, off.imag])[..., 1:]
        / np.stack([run.stderr.real, np.where(run.stderr.imag > 1e-12, run.stderr.imag, 1)])[
            ..., 1:
        ]
    )
    assert np.max(np.abs(ratio)) < 3.5
    assert np.sqrt(np.mean(ratio[np.abs(ratio) > 1e-9] ** 2)) < 1.6
    assert np.max(run.stderr.real) < 0.01 and run.jumps.shape == (4000,)


@pytest.mark.slow
def test_derivatives_within_the_standard_error():
    # Along one direction in everything at once, from independent batches.
    direction = (np.array([0.4, -0.3, 0.5]), 0.7, -0.5, 0.3)
    dpsi, dts = 0.3 * random(np.random.default_rng(5), 2), np.array([0.0, 0.2, -0.1, 0.15])

    def moved(f):
        def along(s):
            args = [
                jnp.asarray(a) + s * d
                for a, d in zip((VALUES, 0.8, 0.6, 0.9), direction, strict=True)
            ]
            return f(*args, psi=PSI + s * dpsi, ts=TS + s * dts)

        return jax.jvp(along, (0.0,), (1.0,))[1]

    def exact(*args, psi, ts):
        H, jumps = problem(*args)
        return cd.mesolve(H, jumps, psi, ts, exp_ops=OPS).expects

    keys = jnp.arange(16)
    slopes = jax.lax.map(
        lambda key: moved(lambda *args, **given: means(*args, key=key, ntraj=200, **given).expects), keys
    )  # fmt: skip
    off = np.mean(slopes, axis=0) - moved(exact)
    error = np.std(slopes, axis=0, ddof=1) / np.sqrt(len(keys))
    assert np.max(np.abs(off[:, 1:].real) / error[:, 1:]) < 4
    assert np.max(error) < 0.05 * np.max(np.abs(moved(exact)))


@pytest.mark.slow
def test_reverse_mode_is_the_adjoint_of_forward_mode():
    f = jax.jit(
        lambda values, decay, psi, ts: means(values, decay, ntraj=6, psi=psi, ts=ts).expects
    )
    rng = np.random.default_rng(9)
    args = (jnp.asarray(VALUES), jnp.asarray(0.8), jnp.asarray(PSI), jnp.asarray(TS))
    tangents = (rng.normal(size=3), jnp.asarray(0.4), random(rng, 2), rng.normal(size=4))
    ct = random(rng, 2, 4)
    forward = jax.jvp(f, args, tangents)[1]
    backward = jax.vjp(f, *args)[1](jnp.asarray(ct))
    pairing = sum(np.sum(g * t).real for g, t in zip(backward, tangents, strict=True))
    np.testing.assert_allclose(np.sum(ct * forward).real, pairing, rtol=1e-11)
    assert jnp.isrealobj(backward[0]) and jnp.iscomplexobj(backward[2])


@pytest.mark.slow
def test_reproducible_and_independent_of_the_number():
    few, many = means(ntraj=5), means(ntraj=20)
    np.testing.assert_array_equal(few.jumps, many.jumps[:5])
    np.testing.assert_array_equal(few.expects, means(ntraj=5).expects)
    assert not np.array_equal(many.jumps, means(ntraj=20, key=1).jumps)


@pytest.mark.slow
def test_many_jumps_in_one_step():
    # Resonance fluorescence with one step for 60 lifetimes: the jumps' number is that of mesolve.
    W, T = 2.0, 60.0
    run = cd.mcsolve(
        W / 2 * X, [LOWER], [1.0, 0.0], [0.0, T], key=jax.random.key(2), ntraj=200, exp_ops=OPS
    )
    rate = W**2 / (1 + 2 * W**2)
    error = np.std(run.jumps) / np.sqrt(200)
    assert abs(np.mean(run.jumps) - rate * T) < 3 * error + 0.5
    assert abs(run.expects[0, 1].real - rate) < 4 * run.stderr[0, 1].real


@pytest.mark.slow
def test_smooth_drives_in_given_steps():
    envelope = lambda t, p: p * jnp.sin(2 * t)
    H = cd.constant(Z / 3) + cd.modulated(envelope, X, 1.2)
    jumps = [cd.modulated(envelope, LOWER, 1.0)]
    method = cd.Magnus(order=2, steps=12)
    run = cd.mcsolve(
        H, jumps, PSI, TS, key=jax.random.key(3), ntraj=3000, exp_ops=OPS, method=method
    )
    exact = cd.mesolve(H, jumps, PSI, TS, exp_ops=OPS).expects
    assert np.all(np.abs(run.expects - exact).real <= 4 * run.stderr.real + 2e-3)
    with pytest.raises(ValueError, match="Magnus"):
        cd.mcsolve(H, jumps, PSI, TS, key=jax.random.key(3), ntraj=10, exp_ops=OPS)


def test_a_decay_jumps_once():
    # A trajectory's number is 1 before its jump and 0 after it: the mean says what the standard error is.
    one = np.diag([0.0, 1.0])
    run = cd.mcsolve(
        0 * one, [LOWER], [0, 1.0], [0.0, 0.7, 40.0], key=jax.random.key(0), ntraj=5, exp_ops=[one],
        max_jumps=1,
    )  # fmt: skip
    mean = run.expects[0].real
    assert mean[0] == 1 and 0 < mean[1] < 1 and mean[2] == 0
    np.testing.assert_allclose(
        run.stderr[0].real, np.sqrt(mean * (1 - mean) / 4), rtol=0, atol=1e-14
    )
    np.testing.assert_array_equal(run.jumps, 1)


@pytest.mark.slow
def test_two_trajectories_have_no_bias():
    # Where each is the other's baseline; one that counted itself in would halve the derivative.
    def decayed(rate, key):
        jumps = [jnp.sqrt(rate) * LOWER]
        run = cd.mcsolve(0 * Z, jumps, [0, 1.0], [0.0, 1.0], key=key, ntraj=2, exp_ops=OPS[:1])
        return run.expects[0, 1].real

    keys = jax.random.split(jax.random.key(6), 400)
    slope = lambda key: jax.jvp(lambda rate: decayed(rate, key), (1.0,), (1.0,))[1]
    slopes = jax.vmap(slope)(keys)
    error = np.std(slopes, ddof=1) / np.sqrt(len(keys))
    assert abs(np.mean(slopes) + np.exp(-1.0)) < 3 * error < 0.12


@pytest.mark.slow
def test_second_derivatives_within_the_standard_error():
    def second(f):
        return jax.jvp(lambda x: jax.grad(f)(x), (1.0,), (1.0,))[1]

    def exact(x):
        H, jumps = problem(x * VALUES, 0.8 * x)
        return cd.mesolve(H, jumps, PSI, TS, exp_ops=OPS).expects[0, -1].real

    def estimate(key):
        f = lambda x: means(x * VALUES, 0.8 * x, key=key, ntraj=200).expects[0, -1].real
        return second(f)

    found = jax.lax.map(estimate, jnp.arange(16))
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - second(exact)) < 4 * error
    assert error < 0.2 * abs(second(exact))


@pytest.mark.slow
def test_single_precision():
    args = jax.tree.map(lambda a: jnp.asarray(a, jnp.complex64), (Z, [LOWER], PSI))
    ts = jnp.asarray(TS, jnp.float32)
    run = cd.mcsolve(*args, ts, key=jax.random.key(0), ntraj=10, exp_ops=[Z.astype(np.float32)])
    assert run.expects.dtype == jnp.complex64


@pytest.mark.slow
def test_bad_input():
    key = jax.random.key(0)
    H, jumps = problem()
    call = lambda **change: cd.mcsolve(
        **(dict(H=H, jump_ops=jumps, psi0=PSI, ts=TS, key=key, ntraj=4, exp_ops=OPS) | change)
    )
    for change, message in [
        (dict(psi0=2 * PSI), "norm one"),
        (dict(psi0=np.eye(2)), r"shape \(2,\)"),
        (dict(ntraj=1), "ntraj must be an integer of at least 2"),
        (dict(ts=TS[::-1]), "ascend"),
        (dict(jump_ops=[]), "use sesolve"),
        (dict(method=cd.Magnus(order=4)), "order=2"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**change)
    with pytest.raises(RuntimeError, match="max_jumps = 1 times"):
        call(ntraj=50, max_jumps=1)


def test_failures_at_run_time():
    @jax.jit
    def mean(H, edges, psi, ts):
        H = H + cd.pwc(edges, [1.0], X)
        return cd.mcsolve(H, [LOWER], psi, ts, key=jax.random.key(0), ntraj=2, exp_ops=OPS).expects

    good = dict(H=Z + 0j, edges=np.array([0.0, 1.0]), psi=PSI, ts=np.array([0.0, 0.5]))
    assert np.all(np.isfinite(mean(**good)))
    for bad, message in [
        (dict(ts=np.array([0.5, 0.0])), "ts must ascend"),
        (dict(edges=np.array([1.0, 1.0])), "edges of a pwc term must increase"),
        (dict(H=Z + LOWER + 0j), "not Hermitian"),
        (dict(psi=1.01 * PSI), "norm one"),
        (dict(H=np.nan * Z + 0j), "isn't finite"),
    ]:
        with pytest.raises(Exception, match=message):
            jax.block_until_ready(mean(**(good | bad)))
