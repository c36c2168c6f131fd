"""diffrax's own `diffeqsolve` takes our adjoint methods."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd

# diffrax says so of every complex leaf, also where the solve is done elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:Complex dtype support in Diffrax")

Y0 = {"z": np.array([1 + 1j, 0.3]), "x": np.array([0.5])}
P = {"w": 1.0 + 0.5j, "g": 0.7}


def field(t, y, p):
    """Not holomorphic, driven, and of complex and real leaves, which diffrax itself refuses."""
    dz = 1j * p["w"] * y["z"] - 0.1 * jnp.abs(y["z"]) ** 2 * y["z"] + t * y["x"]
    return {"z": dz, "x": -p["g"] * y["x"] + y["z"].real[:1]}


def solve(y0, p, t1, adjoint, **options):
    saveat = diffrax.SaveAt(t0=True, ts=jnp.array([0.3, 0.7]) * jnp.sign(t1), t1=True)
    options = dict(saveat=saveat, max_steps=256) | options
    controller = diffrax.PIDController(rtol=1e-9, atol=1e-9)
    y0 = jax.tree.map(jnp.asarray, y0)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Tsit5(), 0.0, t1, None, y0, p,
        stepsize_controller=controller, adjoint=adjoint, **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("t1", [1.0, -1.0])
def test_values_are_those_of_our_solve(t1):
    solution = solve(Y0, P, t1, cd.ode.Discrete())
    ts = np.array([0, 0.3, 0.7, 1]) * t1
    ours = cd.ode.solve(field, Y0, ts, P, solver=diffrax.Tsit5(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(solution.ts, ts)
    for name in Y0:
        np.testing.assert_allclose(solution.ys[name], ours.ys[name], rtol=1e-7)
    assert solution.result == diffrax.RESULTS.successful
    assert solution.stats["num_accepted_steps"] == ours.stats.steps


@pytest.mark.slow
def test_derivatives():
    f = lambda y0, p, t1: solve(y0, p, t1, cd.ode.Discrete()).ys
    cd.testing.check_rule(f, Y0, P, 1.0, rtol=1e-6)


@pytest.mark.slow
def test_failure_is_diffraxs():
    solution = solve(Y0, P, 1.0, cd.ode.Discrete(), max_steps=3, throw=False)
    assert solution.result == diffrax.RESULTS.max_steps_reached
    assert np.all(np.isnan(solution.ys["z"]))
    with pytest.raises(Exception, match="maximum number of solver steps"):
        solve(Y0, P, 1.0, cd.ode.Discrete(), max_steps=3)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (dict(saveat=diffrax.SaveAt(steps=True)), "saveat"),
        (dict(saveat=diffrax.SaveAt(t1=True, dense=True)), "saveat"),
        (dict(event=diffrax.Event(lambda t, y, args, **_: y[0])), "event"),
        (dict(stepsize_controller=diffrax.ConstantStepSize(), dt0=0.1), "stepsize_controller"),
        (dict(max_steps=None), "max_steps=None"),
    ],
)
def test_what_is_not_supported_says_so(options, what):
    controller = diffrax.PIDController(rtol=1e-6, atol=1e-6)
    options = dict(dt0=None, stepsize_controller=controller) | options
    term = diffrax.ODETerm(lambda t, y, p: -y)
    with pytest.raises(TypeError, match=rf"doesn't support this {what}"):
        diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 1.0, y0=jnp.ones(1), adjoint=cd.ode.Discrete(), **options
        )
