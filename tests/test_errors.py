"""Tolerances that no arithmetic can meet are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdiffeq._errors import check_tolerance


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
