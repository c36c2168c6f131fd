"""Fixed points against plain iteration, and gradients against the iterated ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

import cdiffeq as cd
from cdiffeq.implicit import fixed_point
from tests.linalg.common import quick_jit, random_array

RNG = np.random.default_rng(11)
COUPLING = 0.5 * random_array(RNG, 3, 3) / 3


def layer(z: Any, b: Any) -> Any:
    """A contraction that isn't holomorphic."""
    return jnp.tanh(jnp.abs(z)) * (COUPLING @ jnp.conj(z)) + b


BIAS = random_array(RNG, 3)


def iterated(b: Any) -> Any:
    return jax.lax.fori_loop(0, 200, lambda _, z: layer(z, b), jnp.zeros(3, complex))


SOLVERS = {
    "Anderson": cd.implicit.Anderson(),
    "Newton": cd.implicit.Newton(),
    "optimistix": optimistix.FixedPointIteration(rtol=1e-11, atol=1e-11),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_it(name: str):
    find = quick_jit(lambda b: fixed_point(layer, 0 * b, b, solver=SOLVERS[name], throw=False))
    z, report = find(BIAS)
    assert report.code == 0 and report.iterations < 60
    np.testing.assert_allclose(z, iterated(BIAS), rtol=1e-9)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_iteration():
    w = random_array(RNG, 3)
    gradient = lambda find: jax.grad(lambda b: jnp.abs(w @ find(b)) ** 2)
    got = quick_jit(gradient(lambda b: fixed_point(layer, 0 * b, b)))(BIAS)
    by_steps = lambda b: jax.lax.scan(lambda z, _: (layer(z, b), None), 0 * b, length=200)[0]
    np.testing.assert_allclose(got, quick_jit(gradient(by_steps))(BIAS), rtol=1e-8)


def test_anderson_needs_fewer_steps_than_the_iteration():
    # A linear map with the spectral radius 0.99: 2000 plain steps.
    turn = 0.99 * np.exp(1j * np.array([0.0, 1.0, 2.5]))
    G = lambda z, b: turn * z + b
    z, report = fixed_point(G, 0 * BIAS, BIAS, throw=False)
    assert report.code == 0 and report.iterations < 30
    np.testing.assert_allclose(z, BIAS / (1 - turn), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, cd.implicit.Newton()])
def test_against_finite_differences(solver: Any):
    def f(b, s):
        G = lambda z, s: {
            "a": layer(z["a"], b) * s,
            "b": 0.3 * jnp.sin(z["b"]) + jnp.abs(z["a"][0]),
        }
        return fixed_point(G, {"a": 0 * b, "b": jnp.zeros(())}, s, solver=solver)

    cd.testing.check_rule(f, BIAS, 0.7, key=jax.random.key(4))


def test_a_map_that_has_none():
    with pytest.raises(RuntimeError, match=r"fixed_point: .* residual has the norm"):
        fixed_point(lambda z, _: z + 1, 0j, max_steps=50)


@pytest.mark.parametrize(
    "G, z0, message",
    [
        (lambda z, _: (z,), 1j, "G must return the structure of z0"),
        (lambda z, _: jnp.stack([z, z]), 1j, r"G has shape \(2,\), and z0 has \(\) there"),
        (lambda z, _: z * 1j, 1.0, "G is complex, and z0 is real there"),
        (lambda z, _: 1, 1.0, "G must be floating or complex"),
    ],
)
def test_bad_maps(G: Any, z0: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        fixed_point(G, z0)
