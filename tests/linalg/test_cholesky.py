"""The Cholesky factor against NumPy's, and its rule on matrices that are perturbed in any way."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.linalg._cholesky import _cholesky, cholesky
from tests.linalg.common import DTYPES, quick_jit, random_array

RNG = np.random.default_rng(11)


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _adjoint(A: np.ndarray) -> np.ndarray:
    return np.asarray(A).conj().swapaxes(-1, -2)


def _positive(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    A = _random(*shape, dtype=dtype)
    return A @ _adjoint(A) + np.eye(shape[-1], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_numpy_and_finite_differences(dtype: Any):
    A = _positive(2, 3, 3, dtype=dtype)
    L = quick_jit(cholesky)(A)
    assert L.dtype == dtype
    wide = A.astype(np.result_type(dtype, np.float64))
    np.testing.assert_allclose(L, np.linalg.cholesky(wide), rtol=0, atol=100 * np.finfo(dtype).eps)
    # Of its Hermitian part: what else there is in A changes nothing.
    E = _random(2, 3, 3, dtype=dtype)
    A = A + E - _adjoint(E)
    np.testing.assert_allclose(quick_jit(cholesky)(A), L, rtol=0, atol=100 * np.finfo(dtype).eps)
    # Long steps of finite differences leave the positive definite matrices: NaN tells, no error.
    cd.testing.check_rule(_cholesky, A)


def test_second_derivatives_against_finite_differences():
    A = _positive(3, 3) + _random(3, 3) / 9
    cd.testing.check_rule(_cholesky, A, modes=("hvp",))


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_the_gradient_is_hermitian(dtype: Any):
    A, w = _positive(3, 3, dtype=dtype), _random(3, 3, dtype=dtype)
    gradient = quick_jit(jax.grad(lambda A: jnp.sum(w * cholesky(A)).real))(A)
    np.testing.assert_allclose(gradient, _adjoint(gradient), rtol=0, atol=1e-14)
    # log det A = 2 sum log L_ii has the gradient A^-1, in JAX's convention its conjugate.
    log_det = lambda A: 2 * jnp.sum(jnp.log(jnp.diagonal(cholesky(A)).real))
    gradient = quick_jit(jax.grad(log_det))(A)
    np.testing.assert_allclose(gradient, np.linalg.inv(A).conj(), rtol=0, atol=1e-13)


@pytest.mark.slow
def test_vmap_along_any_axis():
    A = jnp.asarray(np.moveaxis(_positive(2, 3, 3), 0, 1))
    both = jax.value_and_grad(lambda A: jnp.sum(jnp.abs(cholesky(A))))
    value, gradient = quick_jit(jax.vmap(both, in_axes=1, out_axes=(0, 1)))(A)
    for k in range(2):
        expected = both(A[:, k])
        np.testing.assert_allclose(value[k], expected[0], rtol=1e-13)
        np.testing.assert_allclose(gradient[:, k], expected[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(0, 0), (0, 2, 2), (2, 3, 1, 1)])
def test_small_and_empty_shapes(shape: tuple[int, ...]):
    A = _positive(*shape)
    loss = lambda A: jnp.sum(cholesky(A).real)
    L, gradient = quick_jit(lambda A: (cholesky(A), jax.grad(loss)(A)))(A)
    np.testing.assert_allclose(L, np.linalg.cholesky(A))
    assert gradient.shape == shape
    if shape[-1] == 1:
        np.testing.assert_allclose(gradient, 1 / (2 * np.sqrt(A)), rtol=1e-13)


def _raises(message: str, f: Any, *args: Any) -> None:
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(f(*args))


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_that_are_not_positive_definite(dtype: Any):
    message = "cholesky: the Hermitian part of A must be positive definite; its smallest eigenvalue"
    factor = quick_jit(cholesky)
    Q = np.linalg.qr(_random(3, 3, dtype=dtype))[0]
    indefinite = (Q * np.array([3, 2, -0.5], dtype)) @ _adjoint(Q)
    _raises(f"{message} is -0.5", factor, indefinite)
    _raises(f"{message} is 0", factor, np.zeros((3, 3), dtype))
    _raises(f"{message} is -1", factor, -np.eye(3, dtype=dtype))


@pytest.mark.slow
def test_which_matrix_is_not_positive_definite():
    A = jnp.stack([jnp.eye(2), jnp.array([[1.0, 2.0], [2.0, 1.0]])])
    message = "cholesky: the Hermitian part of A must be positive definite; its smallest eigenvalue"
    with pytest.raises(RuntimeError, match=rf"^matrix \[1\] of the batch: {message} is -1"):
        cholesky(A)
    _raises(f"{message} is -1", jax.vmap(cholesky), A)
    _raises(f"{message} is -1", jax.grad(lambda A: cholesky(A)[0, 0]), A[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_number_comes_of_nan_or_infinity(bad: float):
    both = quick_jit(jax.value_and_grad(lambda A: jnp.sum(cholesky(A)[0])))
    for where in ((0, 0), (0, 2), (2, 0), (2, 2)):
        A = np.stack([np.eye(3), np.eye(3)])
        A[(0, *where)] = bad
        value, gradient = both(A)
        assert np.isnan(value)
        assert np.isnan(gradient[0]).all()
        assert np.isfinite(gradient[1]).all()
        assert np.isnan(cholesky(A)[0]).all()


def test_one_factorization_for_value_and_gradient():
    text = jax.jit(jax.value_and_grad(lambda A: jnp.sum(jnp.abs(cholesky(A))))).lower(
        _positive(3, 3)
    )
    assert text.as_text().count("potrf") == 1


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"cholesky: A must be square, .* got shape \(2, 3\)"):
        cholesky.__wrapped__(jnp.ones((2, 3)))
    with pytest.raises(TypeError):
        cholesky(jnp.eye(2, dtype=int))
