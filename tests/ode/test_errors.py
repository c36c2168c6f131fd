"""What can't be solved is refused by name, before tracing where that is possible."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd

F = lambda t, z, w: 1j * z
TS = [0.0, 1.0]
WRAPPED = (ValueError, RuntimeError, jax.errors.JaxRuntimeError)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: cd.ode.solve(F, 1.0, TS), TypeError, r"f returns complex128 for y.*make y0 complex"),
        (lambda: cd.ode.solve(F, {"a": 1.0j, "b": np.arange(2)}, TS), TypeError, r"y0\['b'\].*int64"),
        (lambda: cd.ode.solve(F, "no", TS), TypeError, "y0 must be a floating or complex array, got str"),
        (lambda: cd.ode.solve(F, (), TS), ValueError, "y0 holds no arrays"),
        (lambda: cd.ode.solve(F, np.nan + 0j, TS), ValueError, "y0 must be finite"),
        (
            lambda: cd.ode.solve(F, {"a": 1j, "b": jnp.ones((), jnp.float32)}, TS),
            TypeError,
            "single or all of double precision; got complex128, float32",
        ),
        (lambda: cd.ode.solve(lambda t, z, w: (z, z), 1j, TS), TypeError, "structure of y0"),
        (
            lambda: cd.ode.solve(lambda t, z, w: {"a": jnp.zeros(3) + z["a"]}, {"a": 1j}, TS),
            ValueError,
            r"shape \(3,\) for y\['a'\], whose initial value has shape \(\)",
        ),
        (
            lambda: cd.ode.solve(lambda t, z, w: z * w, jnp.ones(1, jnp.complex64), TS, np.ones(1)),
            TypeError,
            "f returns complex128 for y, but y0 is complex64",
        ),
        (lambda: cd.ode.solve(F, 1j, [0j, 1.0]), TypeError, "ts must be real, got complex128"),
        (lambda: cd.ode.solve(F, 1j, [0.0, 2.0, 1.0]), ValueError, "ts must ascend or descend"),
        (lambda: cd.ode.solve(F, 1j, [0.0, np.inf]), ValueError, "ts must be finite"),
        (lambda: cd.ode.solve(F, 1j, [[0.0, 1.0]]), ValueError, "ts must be a vector of times"),
        (lambda: cd.ode.solve(F, 1j, TS, rtol=1e-17), ValueError, "rtol=1e-17 is below"),
        (lambda: cd.ode.solve(F, 1j, TS, rtol=0.0, atol=1e-18), ValueError, "atol=1e-18 is below"),
        (lambda: cd.ode.solve(F, 1j, TS, rtol=-1.0), ValueError, "rtol must be a number"),
        (lambda: cd.ode.solve(F, 1j, TS, max_steps=0), ValueError, "max_steps must be a positive"),
        (lambda: cd.ode.solve(F, 1j, TS, solver="Tsit5"), TypeError, "solver"),
        (
            lambda: cd.ode.solve(F, 1j, TS, solver=diffrax.ReversibleHeun()),
            TypeError,
            r"solver=ReversibleHeun\(\) isn't supported",
        ),
        (
            lambda: cd.ode.solve(F, 1j, TS, solver=diffrax.KenCarp4()),
            TypeError,
            r"f must be a pair of functions \(explicit, implicit\).*KenCarp4.*got function",
        ),
        (
            lambda: cd.ode.solve((F, 1), 1j, TS, solver=diffrax.KenCarp4()),
            TypeError,
            r"'f'|f\[1\] must be a function",
        ),
        (
            lambda: cd.ode.solve((F, lambda *_: jnp.ones(2)), 1j, TS, solver=diffrax.KenCarp4()),
            ValueError,
            r"f\[1\] returns shape \(2,\)",
        ),
        (
            lambda: cd.ode.solve((F, F), 1j, TS, solver=diffrax.KenCarp4(), adjoint=cd.ode.Backsolve()),
            TypeError,
            r"adjoint must be Discrete\(\) for an implicit-explicit method, got Backsolve",
        ),
        (lambda: cd.ode.solve((F, F), 1j, TS), TypeError, "f must be a function"),
        (lambda: cd.ode.solve(F, 1j, TS, solver=diffrax.Euler()), ValueError, "stepsize=0.01"),
        (lambda: cd.ode.solve(F, 1j, TS, stepsize=-0.1), ValueError, "stepsize must be positive"),
        (
            lambda: cd.ode.solve(F, 1j, TS, stepsize=diffrax.ConstantStepSize()),
            TypeError,
            "stepsize",
        ),
        (lambda: cd.ode.solve(F, 1j, TS, adjoint="backsolve"), TypeError, "adjoint must be"),
        (
            lambda: cd.ode.solve(F, 1j, TS, adjoint=cd.ode.Backsolve(), dense=True),
            ValueError,
            r"needs adjoint=Discrete\(\)",
        ),
        (
            lambda: cd.ode.solve(F, 1j, TS, solver=diffrax.Euler(), stepsize=0.1, adjoint=cd.ode.Discrete()),
            TypeError,
            "Euler has none",
        ),
        (
            lambda: cd.ode.solve(F, 1j, TS, stiff=True, adjoint=cd.ode.Reversible()),
            TypeError,
            "explicit Runge-Kutta solver; got Kvaerno5",
        ),
        (
            lambda: cd.ode.solve(F, 1j, TS, adjoint=cd.ode.Reversible(l=1.0)),
            ValueError,
            "l must be between 0 and 1, got 1.0",
        ),
        (
            lambda: cd.ode.solve(F, 1j, TS, adjoint=cd.ode.Interpolated(checkpoints=0)),
            ValueError,
            "checkpoints must be a positive integer, got 0",
        ),
        (lambda: cd.ode.solve(F, 1j, TS, event=lambda t, z, w: z), TypeError, "event must return a real"),
        (lambda: cd.ode.solve(F, 1j, TS, event=3), TypeError, "event"),
        (
            lambda: cd.ode.solve(F, 1j, TS, cost=lambda t, z, w: jnp.ones(2)),
            TypeError,
            r"cost must be a real or complex number, got float64\[2\]",
        ),
    ],
)  # fmt: skip
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


BLOWS_UP = lambda t, z, w: z**2  # infinite at t = 1 from z = 1
NAN_LATER = lambda t, z, w: z * jnp.where(t > 0.5, jnp.nan, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "f, options, message",
    [
        (F, dict(max_steps=3), "max_steps = 3 were tried"),
        (BLOWS_UP, {}, r"at t = 1\b"),
        (NAN_LATER, {}, r"the solution is not finite at t = 0\.5"),
        (NAN_LATER, dict(stepsize=0.1), "the solution is not finite"),
    ],
)
def test_failures_at_run_time(f, options, message):
    run = lambda z, **more: cd.ode.solve(
        f, z, [0.0, 3.0], solver=diffrax.Tsit5(), **options, **more
    )
    with pytest.raises(RuntimeError, match=message):
        run(1 + 0j)
    with pytest.raises(WRAPPED, match=message):
        jax.block_until_ready(jax.jit(lambda z: run(z).ys)(1 + 0j))
    solution = run(1 + 0j, throw=False)
    assert not solution.success and np.isnan(solution.ys).all() and np.isnan(solution.ts).all()
    assert np.isnan(jax.grad(lambda z: run(z, throw=False).ys[-1].real)(1 + 0j))


def test_traced_times_out_of_order():
    with pytest.raises(WRAPPED, match="ts must ascend or descend"):
        jax.block_until_ready(
            jax.jit(lambda ts: cd.ode.solve(F, 1j, ts).ys)(jnp.array([0.0, 2, 1]))
        )


@pytest.mark.slow
def test_backsolve_says_by_how_much_it_drifted():
    def end(k, throw):
        adjoint = cd.ode.Backsolve()
        decay = lambda t, z, k: -k * z
        return (
            cd.ode.solve(decay, 1 + 0j, TS, k, adjoint=adjoint, throw=throw, max_steps=500)
            .ys[-1]
            .real
        )

    np.testing.assert_allclose(jax.grad(end)(0.1, True), -np.exp(-0.1), rtol=1e-4)
    with pytest.raises(
        WRAPPED, match=r"Backsolve: (solved backward, the state came back \S+ off|the back)"
    ):
        jax.grad(end)(30.0, True)
    assert np.isnan(jax.grad(end)(30.0, False))


@pytest.mark.slow
def test_reversible_computes_its_bound():
    def end(w, throw, l):
        adjoint = cd.ode.Reversible(l=l)
        return cd.ode.solve(
            lambda t, z, w: 1j * w * z, 1 + 0j, [0.0, 10.0], w, adjoint=adjoint, throw=throw, stepsize=0.05,
            solver=diffrax.Bosh3(),
        ).ys[-1].real  # fmt: skip

    np.testing.assert_allclose(jax.grad(end)(1.0, True, 0.95), -10 * np.sin(10.0), rtol=1e-4)
    # 0.9^-200 eps = 3.1e-7
    with pytest.raises(WRAPPED, match=r"200 steps at l = 0\.9 rounding may grow to 3\.1e-07"):
        jax.grad(end)(1.0, True, 0.9)
    assert np.isnan(jax.grad(end)(1.0, False, 0.9))
