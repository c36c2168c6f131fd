"""Results as datasets with labelled axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd

xarray = pytest.importorskip("xarray")
to_xarray = cd.interop.xarray.to_xarray
SIGMA_X, SIGMA_Z = np.array([[0.0, 1.0], [1.0, 0.0]]), np.diag([1.0, -1.0])
TS = np.linspace(0, 1, 4)


@pytest.fixture(scope="module")
def result():
    return cd.sesolve(SIGMA_X, np.eye(2)[None].repeat(3, 0), TS, exp_ops=[SIGMA_Z, SIGMA_X])


def test_result(result):
    data = to_xarray(
        result, batch=["shot", "start"], levels=["g", "e"], exp_ops=["z", "x"], time_unit="ns"
    )
    assert data.states.dims == ("time", "shot", "start", "level")
    assert data.expects.dims == ("exp_op", "shot", "start", "time")
    assert data.time.attrs == {"units": "ns"} and data.attrs["success"] == 1
    assert data.attrs["steps"] == int(result.stats.steps)
    np.testing.assert_array_equal(data.states.sel(level="e", shot=2), result.states[:, 2, :, 1])
    np.testing.assert_allclose(data.expects.sel(exp_op="z", start=0, shot=1), np.cos(2 * TS))
    assert to_xarray(result).states.dims == ("time", "batch_0", "batch_1", "level")


def test_one_state_and_no_expectation_values():
    data = to_xarray(cd.sesolve(SIGMA_X, [1.0, 0.0], TS))
    assert list(data) == ["states"] and data.states.dims == ("time", "level")


def test_density_matrices(result):
    # As mesolve returns them: two axes for each state, as the expectation values tell.
    rho = cd.schrodinger.Result(
        result.ts, jnp.ones((4, 3, 2, 2)) + 0j, jnp.ones((1, 3, 4)) + 0j, result.stats, result.success
    )  # fmt: skip
    data = to_xarray(rho, levels="ge")
    assert data.states.dims == ("time", "batch_0", "level", "level_right")
    assert data.states.sel(level="g", level_right="e").shape == (4, 3)


@pytest.mark.slow
def test_solution_of_an_initial_value_problem():
    f = lambda t, y, _: {"field": 1j * y["field"], "gain": [-y["gain"][0]]}
    y0 = {"field": jnp.ones(2) + 0j, "gain": [1.0]}
    data = to_xarray(cd.ode.solve(f, y0, TS, cost=lambda t, y, _: y["gain"][0]), time_unit="s")
    assert data.field.dims == ("time", "field_0") and data["gain.0"].dims == ("time",)
    np.testing.assert_allclose(data.field[:, 1], np.exp(1j * TS), rtol=1e-5)
    np.testing.assert_allclose(data.cost, 1 - np.exp(-TS), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_arrays_of_xarray_are_taken():
    axis = lambda a: xarray.DataArray(a, dims=["i", "j"][: np.ndim(a)])
    H, psi0 = axis(SIGMA_X), axis([1.0, 0.0])
    states = cd.sesolve(cd.constant(H) + cd.pwc(axis([0.0, 1.0]), axis([1.0]), H), psi0, axis(TS))
    np.testing.assert_allclose(states.states[:, 0], np.cos(2 * TS), rtol=0, atol=1e-12)
    np.testing.assert_allclose(cd.linalg.solve(H, axis([1.0, 2.0])), [2, 1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(batch=["a"]), ValueError, r"2 axes of a batch, batch names \['a'\]"),
        (dict(levels="abc"), ValueError, "levels has 3 labels for 2"),
        (dict(exp_ops="z"), ValueError, "exp_ops has 1 labels for 2"),
    ],
)
def test_labels_that_do_not_fit(result, change, error, message):
    with pytest.raises(error, match=message):
        to_xarray(result, **change)


def test_refusals(result):
    with pytest.raises(TypeError, match="expected a Result or a Solution, got ArrayImpl"):
        to_xarray(result.states)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), result)
    with pytest.raises(ValueError, match="this is a batch of results"):
        to_xarray(stacked)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda r: to_xarray(r).states.values)(result)


def test_a_single_array_is_y():
    solution = cd.ode.solve(lambda t, y, _: -y, 1.0, TS)
    assert to_xarray(solution).y.dims == ("time",)
    with pytest.raises(ValueError, match="batch is for a Result"):
        to_xarray(solution, batch=["a"])
