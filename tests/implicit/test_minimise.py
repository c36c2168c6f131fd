"""Minima against closed forms, their derivatives against the matrices that give them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

import cdiffeq as cd
from cdiffeq.implicit import minimise
from tests.linalg.common import quick_jit, random_array

RNG = np.random.default_rng(7)
A, B = random_array(RNG, 5, 2), random_array(RNG, 5, 2)
DATA = random_array(RNG, 5)


def quadratic(z: Any, d: Any) -> Any:
    """|A z + B conj(z) - d|^2, in which z and its conjugate both count."""
    return jnp.sum(jnp.abs(A @ z + B @ jnp.conj(z) - d) ** 2)


def closed_form(d: np.ndarray) -> np.ndarray:
    M = np.block([[(A + B).real, -(A - B).imag], [(A + B).imag, (A - B).real]])
    x = np.linalg.lstsq(M, np.concatenate([d.real, d.imag]))[0]
    return x[:2] + 1j * x[2:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        None,
        pytest.param(optimistix.NonlinearCG(rtol=1e-6, atol=1e-6), marks=pytest.mark.slow),
    ],
)
def test_a_minimum_and_its_derivative(solver: Any):
    least = lambda d: minimise(quadratic, jnp.zeros(2, complex), d, solver=solver)
    along = random_array(RNG, 5)
    z, dz = quick_jit(lambda d, v: jax.jvp(least, (d,), (v,)))(DATA, along)
    np.testing.assert_allclose(z, closed_form(DATA), rtol=1e-9)
    np.testing.assert_allclose(dz, closed_form(along), rtol=1e-9)  # it is linear


@pytest.mark.slow
def test_against_finite_differences():
    def L(p, args):
        z, s = p["z"], p["s"]
        quartic = jnp.sum(jnp.abs(z**2 - args["c"]) ** 2)
        return quartic + 0.3 * jnp.sum(jnp.abs(z) ** 2) + (s - jnp.abs(z[0]) * args["r"]) ** 2

    start = {"z": jnp.array([1 + 0.5j, -1j]), "s": jnp.array(0.2)}
    args = {"c": np.array([1 + 1j, -1.2 + 0.4j]), "r": np.array(0.7)}
    f = lambda args: minimise(L, start, args)
    cd.testing.check_rule(f, args, modes=("jvp", "vjp", "hvp"), key=jax.random.key(6))


@pytest.mark.slow
def test_a_large_one_forms_no_matrix():
    n = 400
    d = random_array(RNG, n)

    def L(z, d):
        left = z + 0.2 * jnp.conj(jnp.roll(z, 1)) - d
        return jnp.sum(
            left.real**2 + left.imag**2
        )  # abs(left)**2 has no Hessian in JAX where left is 0

    f = lambda d: jnp.sum(jnp.abs(minimise(L, jnp.zeros(n, complex), d)) ** 2)
    compiled = jax.jit(jax.grad(f)).lower(d).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.4 * (2 * n) ** 2 * 8
    # The least value is zero, z the solution of a linear system, and its derivative that system's.
    h, v = 1e-4, random_array(RNG, n)
    solve = lambda d: cd.linalg.real_linear_solve(
        np.eye(n), 0.2 * np.roll(np.eye(n), 1, 0), d, cd.linalg.LU()
    )
    power = lambda d: np.sum(np.abs(solve(d)) ** 2)
    slope = (power(d + h * v) - power(d - h * v)) / (2 * h)
    np.testing.assert_allclose(np.sum(compiled(d) * v).real, slope, rtol=1e-7)


def test_a_saddle_is_no_minimum():
    L = lambda z, _: z.real**2 - z.imag**2 + z.imag**4
    with pytest.raises(RuntimeError, match="what was found is no minimum"):
        minimise(L, 0j)
    np.testing.assert_allclose(minimise(L, 0.1j), 1j / np.sqrt(2), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_a_flat_minimum_has_no_derivative():
    L = lambda z, a: jnp.abs(z - a) ** 4
    with pytest.raises(Exception, match="minimise: there is no derivative, as the Hessian"):
        jax.block_until_ready(quick_jit(jax.grad(lambda a: minimise(L, 1 + 0j, a).real))(0.2j))


@pytest.mark.parametrize(
    "L, options, message",
    [
        (lambda z, _: z, {}, r"L must return a real number, got complex128\[\]"),
        (lambda z, _: jnp.abs(jnp.stack([z, z])), {}, r"L must return a real number, got float64"),
        (
            lambda z, _: jnp.abs(z),
            {"solver": "BFGS"},
            "solver must be a minimiser|AbstractMinimiser",
        ),
    ],
)
def test_bad_arguments(L: Any, options: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        minimise(L, 1 + 1j, **options)


def test_without_a_minimum():
    with pytest.raises(RuntimeError, match="minimise: "):
        minimise(lambda z, _: z.real, 1 + 1j, max_steps=30)
