"""Tolerances that no arithmetic can meet are refused; failures at run time are errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdiffeq._errors import check_tolerance, poison, raise_if


@pytest.mark.parametrize("dtype", [np.float32, np.complex64, np.float64, np.complex128])
def test_the_limit_is_four_eps(dtype):
    eps = float(np.finfo(dtype).eps)
    check_tolerance("rtol", 4 * eps, dtype)
    check_tolerance("rtol", 1e-3, dtype)
    for value in (3.9 * eps, 0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"atol=.* below what {np.dtype(dtype)} can resolve"):
            check_tolerance("atol", value, dtype)


def test_single_precision_data_under_x64():
    data = jnp.ones(2, jnp.complex64)
    with pytest.raises(ValueError) as error:
        check_tolerance("rtol", 1e-8, data.dtype)
    assert str(error.value) == (
        "rtol=1e-08 is below what complex64 can resolve (4.8e-07). "
        "Ask for no less, or pass complex128 data"
    )


@pytest.mark.parametrize("given, used", [("complex128", "complex64"), ("float64", "float32")])
def test_double_precision_data_without_x64(given: str, used: str):
    data = np.ones(2, given)
    with jax.enable_x64(False):
        assert jnp.asarray(data).dtype == used  # the silent loss that the error is about
        check_tolerance("rtol", 1e-6, data.dtype)
        with pytest.raises(ValueError) as error:
            check_tolerance("rtol", 1e-8, data.dtype)
    assert str(error.value) == (
        f"rtol=1e-08 is below what {used} can resolve (4.8e-07). The data came as {given}, but "
        f'JAX cuts it down to {used}: run jax.config.update("jax_enable_x64", True) before any '
        "array is made"
    )


def test_single_precision_data_without_x64():
    with jax.enable_x64(False), pytest.raises(ValueError) as error:
        check_tolerance("rtol", 1e-8, jnp.ones(2).dtype)
    assert str(error.value).endswith(
        'Ask for no less, or run jax.config.update("jax_enable_x64", True) before any array is '
        "made and pass float64 data"
    )


# Errors that depend on the numbers of a run.


# What JAX makes of an exception in a callback: the one or the other, as the program was dispatched.
WRAPPED = (ValueError, jax.errors.JaxRuntimeError)


def _too_large(x, limit):
    return RuntimeError(f"x = {x} is above {limit}")


def _guarded(x, limit=3.0):
    """x^2, unless x is above the limit."""
    return raise_if({"y": x**2, "n": jnp.asarray(1)}, x > limit, _too_large, x, jnp.asarray(limit))


def test_an_error_at_once():
    assert _guarded(jnp.asarray(2.0))["y"] == 4.0
    with pytest.raises(RuntimeError, match=r"^x = 5\.0 is above 3\.0$"):
        _guarded(jnp.asarray(5.0))


def test_an_error_when_a_compiled_program_runs():
    run = jax.jit(_guarded)
    assert run(jnp.asarray(2.0)) == {"y": 4.0, "n": 1}
    with pytest.raises(WRAPPED, match=r"x = 5\.0 is above 3\.0"):
        jax.block_until_ready(run(jnp.asarray(5.0)))


def test_an_error_in_one_of_a_batch():
    run = jax.jit(jax.vmap(_guarded))
    np.testing.assert_array_equal(run(jnp.array([1.0, 2.0]))["y"], [1.0, 4.0])
    with pytest.raises(WRAPPED, match=r"x = 5\.0 is above 3\.0"):
        jax.block_until_ready(run(jnp.array([1.0, 5.0, 2.0, 7.0])))


def test_a_limit_shared_by_a_batch():
    run = jax.jit(jax.vmap(_guarded, (None, 0)))
    with pytest.raises(WRAPPED, match=r"x = 2\.5 is above 2\.0"):
        jax.block_until_ready(run(jnp.asarray(2.5), jnp.array([3.0, 2.0])))


def test_derivatives_of_what_may_fail():
    f = lambda x: _guarded(x)["y"]
    x = jnp.asarray(2.0)
    for run in (lambda g: g, jax.jit):
        assert run(jax.grad(f))(x) == 4.0
        assert run(jax.grad(jax.grad(f)))(x) == 2.0
        assert run(lambda x: jax.jvp(f, (x,), (x,)))(x) == (4.0, 8.0)
        with pytest.raises((RuntimeError, *WRAPPED), match=r"x = 5\.0 is above"):
            jax.block_until_ready(run(jax.grad(f))(jnp.asarray(5.0)))


def test_poison():
    tree = {
        "f": jnp.ones(2, jnp.float32),
        "c": jnp.ones((), complex),
        "i": jnp.arange(2),
        "b": jnp.array(True),
    }
    sound = poison(tree, jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, sound, tree)
    bad = poison(tree, jnp.array(True))
    assert np.isnan(bad["f"]).all() and np.isnan(bad["c"])
    assert jax.tree.map(lambda x: x.dtype, bad) == jax.tree.map(lambda x: x.dtype, tree)
    np.testing.assert_array_equal(bad["i"], tree["i"])


def test_poison_spreads_to_derivatives():
    f = lambda x, failed: jnp.abs(poison(x**2, failed))
    z = jnp.asarray(1 + 2j)
    np.testing.assert_allclose(jax.grad(f)(z, jnp.array(False)), jax.grad(lambda z: abs(z**2))(z))
    assert np.isnan(jax.grad(f)(z, jnp.array(True)))
