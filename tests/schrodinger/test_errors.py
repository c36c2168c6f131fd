"""What must not pass: every refusal says what is wrong, before the solve or as it runs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qutip

import cdiffeq as cd
from tests.schrodinger.reference import X, Z

PSI = np.array([1.0, 0.0])
TS = np.array([0.0, 1.0])
LOPSIDED = np.array([[0.0, 1.0], [0.5, 0.0]])
NAN = np.array([[np.nan, 0.0], [0.0, 0.0]])

# What JAX makes of an error raised by a callback: the one at a first call, the other later on.
FROM_JAX = (jax.errors.JaxRuntimeError, ValueError)

# The messages, from what a user may grep for.
ORDER = "ts must ascend or descend"
EDGES = "edges of a pwc term must increase"
HERMITIAN = r"not Hermitian at t = [0-9.]+, though hermitian=True. Pass hermitian=False"
STEPS = r"no further than t = [0-9.]+.*max_steps = (5|80) .*Raise max_steps"
FINITE = r"state at t = [0-9.]+ is not finite"


def solve(H=X, psi0=PSI, ts=TS, **options):
    return cd.sesolve(H, psi0, ts, **options)


def wave(t, w):
    return jnp.cos(w * t)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: solve(np.ones((2, 3))), ValueError, r"square.*\(2, 3\)"),
        (lambda: solve(NAN), ValueError, r"finite.*\[0, 0\]"),
        (lambda: solve(psi0=np.ones(3)), ValueError, r"psi0 must have shape \(\.\.\., 2\).*\(3,\)"),
        (lambda: solve(psi0=np.ones((2, 1))), ValueError, r"psi0.*\(2, 1\)"),
        (lambda: solve(psi0=1.0), ValueError, r"psi0.*\(\)"),
        (lambda: solve(psi0=[1.0, np.inf]), ValueError, "psi0 must be finite"),
        (lambda: solve(psi0=qutip.basis(3, 0)), ValueError, r"psi0.*\(3,\)"),
        (lambda: solve(ts=[0.0, 2.0, 1.0]), ValueError, ORDER),
        (lambda: solve(ts=[0.0, np.nan]), ValueError, "ts must be finite"),
        (lambda: solve(ts=[]), ValueError, "ts must be a vector"),
        (lambda: solve(ts=1.0), ValueError, "ts must be a vector"),
        (lambda: solve(ts=[[0.0, 1.0]]), ValueError, r"ts must be a vector.*\(1, 2\)"),
        (lambda: solve(ts=[0.0, 1j]), TypeError, "ts must be real"),
        (lambda: solve(exp_ops=[Z, np.eye(3)]), ValueError, r"exp_ops\[1\].*\(2, 2\).*\(3, 3\)"),
        (lambda: solve(exp_ops=[NAN]), ValueError, r"exp_ops\[0\].*finite"),
        (lambda: solve(X + cd.constant(np.eye(3))), ValueError, "differ in dimension"),
        (lambda: solve(cd.timecallable(lambda t, p: jnp.ones(2))), ValueError, "square"),
        (lambda: solve(LOPSIDED), ValueError, HERMITIAN),
        (lambda: solve(1j * X), ValueError, HERMITIAN),
        (lambda: solve(X + cd.pwc([0.5, 1.0], [1j], X)), ValueError, r"t = 0.5,"),
        (lambda: solve(method="magnus"), (ValueError, TypeError), "method"),
        (lambda: solve(cd.modulated(wave, X, 1.0), method=cd.Exponential()), ValueError, "Magnus"),
        (lambda: solve(rtol=1e-16), ValueError, "rtol=1e-16.*complex128"),
        (lambda: solve(atol=np.nan), ValueError, "atol=nan"),
        (lambda: solve(max_steps=0), ValueError, "max_steps must be a positive integer"),
        (lambda: solve(cd.modulated(wave, X, 9.0), max_steps=5), RuntimeError, STEPS),
        (lambda: cd.propagator(LOPSIDED, TS), ValueError, HERMITIAN),
        (lambda: cd.propagator(np.ones((2, 3)), TS), ValueError, "square"),
        (lambda: cd.propagator(X, [0.0, 2.0, 1.0]), ValueError, ORDER),
        # A pole, a root of what is negative, a phase that cannot be known.
        (
            lambda: solve(cd.modulated(lambda t, p: 1 / (t - 0.5), X)),
            RuntimeError,
            r"t = 0\.5.*jump",
        ),
        (lambda: solve(cd.modulated(lambda t, p: jnp.sqrt(t - 0.5), X)), RuntimeError, "t = 0,"),
        (lambda: solve(1e200 * X), RuntimeError, "t = 1 is not finite.*norm of H"),
    ],
)
def test_refusals(call: Callable, error, message: str):
    with pytest.raises(error, match=message):
        call()


# The same where nothing is known before the program runs. One program, and what is fed to it.


def states(H0, u, edges, w, psi0, ts, throw=True):
    H = cd.constant(H0) + cd.pwc(edges, u, X) + cd.modulated(wave, X, w)
    return cd.sesolve(H, psi0, ts, max_steps=80, rtol=1e-6, atol=1e-6, throw=throw)


GOOD = dict(
    H0=Z.astype(complex),
    u=np.array([0.1, 0.2]),
    edges=np.array([0.0, 0.3, 1.0]),
    w=np.array(1.0),
    psi0=PSI,
    ts=np.array([0.0, 0.2, 0.4]),
)

BAD = {
    "not Hermitian": (dict(H0=LOPSIDED + 0j), HERMITIAN),
    "steps": (dict(w=np.array(3000.0)), STEPS),
    "edges": (dict(edges=np.array([0.0, 0.3, 0.2])), EDGES),
    "equal edges": (dict(edges=np.array([0.0, 0.3, 0.3])), EDGES),
    "ts": (dict(ts=np.array([0.0, 0.4, 0.2])), ORDER),
    "NaN in H": (dict(H0=NAN + 0j), None),
    "NaN in u": (dict(u=np.array([np.nan, 0.2])), None),
    "NaN in params": (dict(w=np.array(np.nan)), None),
    "NaN in edges": (dict(edges=np.array([0.0, np.nan, 1.0])), None),
    "NaN in psi0": (dict(psi0=np.array([0.0, np.nan])), None),
    "NaN in ts": (dict(ts=np.array([0.0, np.nan, 0.4])), None),
    "infinite ts": (dict(ts=np.array([0.0, 0.2, np.inf])), None),
    "infinite H": (dict(H0=np.array([[np.inf, 0], [0, 0]]) + 0j), None),
}


@pytest.fixture(scope="module")
def programs():
    """The solve, its gradient, and both where nothing is thrown."""

    def loss(problem, throw):
        # Linear in the states: the gradient needs nothing of the result.
        return jnp.sum(states(**problem, throw=throw).states.real)

    gradient = lambda throw: jax.jit(jax.grad(lambda problem: loss(problem, throw)))
    return (
        jax.jit(lambda problem: states(**problem)),
        gradient(True),
        jax.jit(lambda problem: states(**problem, throw=False)),
        gradient(False),
    )


@pytest.mark.slow
def test_the_good_problem_passes(programs):
    solve, gradient, silent, silent_gradient = programs
    result = solve(GOOD)
    assert result.success and jnp.all(jnp.isfinite(result.states))
    np.testing.assert_array_equal(silent(GOOD).states, result.states)
    for a, b in zip(*map(jax.tree.leaves, (gradient(GOOD), silent_gradient(GOOD))), strict=True):
        assert np.all(np.isfinite(a))
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_failures_while_running(programs, name: str):
    change, message = BAD[name]
    solve, gradient, silent, silent_gradient = programs
    for program in (solve, gradient):
        for _ in range(2):
            with pytest.raises(FROM_JAX, match=message or "sesolve: "):
                jax.block_until_ready(program(GOOD | change))
    result = silent(GOOD | change)
    assert not result.success
    assert np.all(np.isnan(result.states.real)) and np.all(np.isnan(result.states.imag))
    # No number that looks like a derivative comes out of a failed solve.
    derivatives = silent_gradient(GOOD | change)
    for key in ("H0", "psi0", "w"):
        assert not np.any(np.isfinite(derivatives[key])), key


@pytest.mark.slow
def test_a_batch_in_which_one_fails():
    f = lambda H0: cd.sesolve(H0, PSI, TS).final_state
    with pytest.raises(FROM_JAX, match=HERMITIAN):
        jax.block_until_ready(jax.vmap(f)(jnp.stack([X, LOPSIDED])))
    f = lambda H0: cd.sesolve(H0, PSI, TS, throw=False)
    result = jax.vmap(f)(jnp.stack([X, LOPSIDED]))
    assert result.success.tolist() == [True, False]
    assert np.all(np.isfinite(result.states[0])) and np.all(np.isnan(result.states[1]))


def test_the_time_of_a_breach():
    # Hermitian up to t = 0.6: the step that begins there, some blocks on, is the first to see it.
    H = cd.modulated(lambda t, p: jnp.where(t > 0.6, 1j, 1.0), X)
    with pytest.raises(ValueError, match=r"t = 0\.6,"):
        solve(H, method=cd.Magnus(2, steps=2000))


@pytest.mark.slow
def test_what_rounding_does_is_no_breach():
    rng = np.random.default_rng(5)
    A = rng.normal(size=(6, 6)) + 1j * rng.normal(size=(6, 6))
    U, _ = np.linalg.qr(A)
    rounded = U @ np.diag(np.arange(6.0)) @ U.conj().T  # Hermitian to a few eps
    assert np.any(rounded != rounded.conj().T)
    assert cd.sesolve(rounded, np.ones(6), TS).success
    single = cd.sesolve(rounded.astype(np.complex64), np.ones(6, np.complex64), TS.astype("f4"))
    assert single.success
    # Not so for a decay of one part in a million.
    with pytest.raises(ValueError, match=HERMITIAN):
        cd.sesolve(rounded - 1e-6j * np.eye(6), np.ones(6), TS)


@pytest.mark.slow
def test_tolerances_that_the_precision_cannot_meet():
    with jax.enable_x64(False):
        psi0 = np.array([1.0, 0.0], np.complex128)
        with pytest.raises(ValueError, match=r"rtol=1e-09.*complex64.*complex128.*jax_enable_x64"):
            cd.sesolve(X, psi0, TS, rtol=1e-9)
        with pytest.raises(ValueError, match=r"atol=1e-09.*complex64.*jax_enable_x64"):
            cd.sesolve(X, psi0, TS, atol=1e-9)
        # Nothing was asked for: single precision does what it can.
        result = cd.sesolve(X, psi0, TS)
        assert result.states.dtype == jnp.complex64 and result.success
    with pytest.raises(ValueError, match=r"rtol=1e-09.*complex64"):
        cd.sesolve(X.astype(np.float32), np.ones(2, np.complex64), TS, rtol=1e-9)
