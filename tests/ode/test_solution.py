"""Dense output, events, running costs, times in any order, and what comes back."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd

ROTATION = lambda t, z, w: 1j * w * z
W = 0.7
TIGHT = dict(solver=diffrax.Tsit5(), rtol=1e-9, atol=1e-11)


def rotated(w, t):
    return np.exp(1j * w * np.asarray(t))


@pytest.mark.parametrize("ts", [[0.0, 1.0, 3.0], [3.0, 1.0, 0.0], [0.0, 1.0, 1.0, 3.0]])
def test_times_in_any_order(ts):
    solution = cd.ode.solve(ROTATION, 1 + 0j, ts, W, **TIGHT)
    np.testing.assert_allclose(solution.ys, rotated(W, np.array(ts) - ts[0]), rtol=0, atol=1e-8)
    np.testing.assert_array_equal(solution.ts, ts)


@pytest.mark.slow
def test_one_time_is_the_initial_state():
    solution = cd.ode.solve(ROTATION, 1 + 2j, [0.3], W)
    np.testing.assert_array_equal(solution.ys, [1 + 2j])
    assert (
        jax.grad(lambda z: jnp.abs(cd.ode.solve(ROTATION, z, [0.3], W).ys[0]) ** 2)(1 + 2j)
        == 2 - 4j
    )


@pytest.mark.slow
def test_dense_values_and_derivatives():
    def value(w, t):
        return cd.ode.solve(ROTATION, 1 + 0j, [0.0, 3.0], w, dense=True, **TIGHT).evaluate(t)

    t = jnp.array([[0.0, 0.4], [1.3, 3.0]])
    np.testing.assert_allclose(value(W, t), rotated(W, t), rtol=0, atol=1e-8)
    _, (by_w, by_t) = value(W, 1.3), (
        jax.jvp(value, (W, 1.3), (1.0, 0.0))[1],
        jax.jvp(value, (W, 1.3), (0.0, 1.0))[1],
    )  # fmt: skip
    np.testing.assert_allclose(by_w, 1.3j * rotated(W, 1.3), rtol=0, atol=1e-7)
    np.testing.assert_allclose(by_t, 1j * W * rotated(W, 1.3), rtol=0, atol=1e-7)
    reverse = jax.grad(lambda w, t: value(w, t).real, (0, 1))(W, 1.3)
    np.testing.assert_allclose(reverse, [by_w.real, by_t.real], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_dense_is_nan_outside():
    solution = cd.ode.solve(ROTATION, 1 + 0j, [0.0, 3.0], W, dense=True, **TIGHT)
    assert np.isnan(solution.evaluate(jnp.array([-0.1, 3.1]))).all()
    with pytest.raises(ValueError, match="dense=True"):
        cd.ode.solve(ROTATION, 1 + 0j, [0.0, 3.0], W).evaluate(1.0)


def _crossing(w, **options):
    options = TIGHT | options
    return cd.ode.solve(
        ROTATION, 1 + 0j, [0.0, 1.0, 5.0], w, event=lambda t, z, w: z.real, **options
    )


def test_an_event_stops_the_solve():
    solution = _crossing(W)
    when = np.pi / 2 / W
    assert solution.event_occurred
    np.testing.assert_allclose(solution.event_time, when, rtol=0, atol=1e-8)
    np.testing.assert_allclose(solution.ts, [0.0, 1.0, when], rtol=0, atol=1e-8)
    np.testing.assert_allclose(solution.ys, rotated(W, [0.0, 1.0, when]), rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint", [cd.ode.Discrete(), cd.ode.Interpolated(), cd.ode.ForwardSensitivity()]
)
def test_an_event_time_is_differentiable(adjoint):
    time = lambda w: _crossing(w, adjoint=adjoint).event_time
    slope = -np.pi / 2 / W**2
    np.testing.assert_allclose(jax.grad(time)(W), slope, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(time, (W,), (1.0,))[1], slope, rtol=1e-6)
    # At the event z = i, whatever w: the state there moves not at all.
    state = lambda w: _crossing(w, adjoint=adjoint).ys[-1]
    np.testing.assert_allclose(jax.jvp(state, (W,), (1.0,))[1], 0, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_second_derivative_of_an_event_time():
    hessian = jax.hessian(lambda w: _crossing(w).event_time)(W)
    np.testing.assert_allclose(hessian, np.pi / W**3, rtol=1e-6)


def test_an_event_that_does_not_happen():
    solution = cd.ode.solve(ROTATION, 1 + 0j, [0.0, 1.0], W, event=lambda t, z, w: z.real)
    assert not solution.event_occurred and solution.event_time == 1.0
    np.testing.assert_allclose(solution.ys[-1], rotated(W, 1.0), rtol=0, atol=1e-5)


def test_an_event_before_a_singularity():
    # z' = z^2 is infinite at t = 1; the event comes at z = 4, t = 3/4.
    solution = cd.ode.solve(
        lambda t, z, _: z**2, 1 + 0j, [0.0, 2.0], event=lambda t, z, _: jnp.abs(z) - 4, **TIGHT
    )
    np.testing.assert_allclose(solution.event_time, 0.75, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_running_cost():
    def run(w):
        cost = lambda t, z, w: {"z": z, "power": jnp.abs(z) ** 2}
        return cd.ode.solve(ROTATION, 2 + 0j, [0.0, 1.0, 2.0], w, cost=cost, **TIGHT)

    exact = lambda w: 2 * (rotated(w, [0.0, 1.0, 2.0]) - 1) / (1j * w)
    np.testing.assert_allclose(run(W).cost["z"], exact(W), rtol=0, atol=1e-8)
    np.testing.assert_allclose(run(W).cost["power"], [0.0, 4.0, 8.0], rtol=0, atol=1e-7)
    slope = jax.grad(lambda w: run(w).cost["z"][-1].real)(W)
    np.testing.assert_allclose(
        slope, (exact(W + 1e-5) - exact(W - 1e-5))[-1].real / 2e-5, rtol=0, atol=1e-6
    )


@pytest.mark.slow
def test_models_as_args_and_as_fields():
    class Model(eqx.Module):
        weight: jax.Array
        activation: object
        width: int = 2

        def __call__(self, t, z, args=None):
            return self.activation(self.weight @ z) / self.width

    model = Model(jnp.array([[0.1, 1j], [-1j, 0.3]]), jnp.tanh)
    y0 = jnp.array([0.5 + 0j, 0.2j])
    as_args = eqx.filter_grad(
        lambda m: jnp.sum(
            jnp.abs(cd.ode.solve(lambda t, z, m: m(t, z), y0, [0.0, 1.0], m).ys[-1, :1])
        )
    )
    as_field = eqx.filter_grad(
        lambda m: jnp.sum(jnp.abs(cd.ode.solve(m, y0, [0.0, 1.0]).ys[-1, :1]))
    )
    np.testing.assert_allclose(as_args(model).weight, as_field(model).weight, rtol=1e-12)
    assert np.max(np.abs(as_args(model).weight)) > 0.1


def test_equal_steps():
    solution = cd.ode.solve(ROTATION, 1 + 0j, [0.0, 0.3, 1.0], W, stepsize=0.1)
    assert solution.stats.steps == 10 and solution.stats.rejected_steps == 0


def test_prints_readably():
    text = repr(cd.ode.solve(ROTATION, 1 + 0j, [0.0, 1.0], W))
    assert text.startswith("Solution(ys=complex128[2], Stats(steps=") and "success=True" in text


def test_progress(capfd):
    meter = diffrax.TextProgressMeter()
    jax.block_until_ready(cd.ode.solve(ROTATION, 1 + 0j, [0.0, 1.0], W, progress=meter).ys)
    jax.effects_barrier()
    assert "100.00%" in capfd.readouterr().out
