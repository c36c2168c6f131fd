"""f(A) v by Lanczos against LAPACK's eigenvectors, its derivatives against `funm` and finite differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from cdiffeq.linalg import funm, funm_multiply
from cdiffeq.testing import check_rule
from tests.linalg.common import DTYPES, quick_jit, random_array

KEY = jax.random.key(7)
SQRT = lambda x: jnp.sqrt(x)


def hermitian(n: int, dtype: Any = np.complex128) -> np.ndarray:
    """Eigenvalues between about 1 and 5."""
    A = random_array(np.random.default_rng(1), n, n, dtype=dtype) / np.sqrt(n)
    return ((A + A.conj().T) / 2 + 3 * np.eye(n)).astype(dtype)


def by_eigenvectors(f: Any, A: Any, v: np.ndarray) -> np.ndarray:
    w, U = np.linalg.eigh(A)
    return (U * f(w)) @ (U.conj().T @ v)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_eigenvectors(dtype: Any):
    A, v = hermitian(60, dtype), random_array(np.random.default_rng(2), 60, 2, dtype=dtype)
    y = funm_multiply(SQRT, A, v, dimension=40)
    assert y.dtype == dtype and y.shape == v.shape
    expected = by_eigenvectors(np.sqrt, A.astype(np.result_type(A, np.float64)), v)
    np.testing.assert_allclose(y, expected, atol=100 * np.finfo(dtype).eps)


@pytest.mark.slow
def test_kinds_of_operators():
    A, v = hermitian(20).real, random_array(np.random.default_rng(3), 20)
    expected = by_eigenvectors(lambda w: np.exp(0.5j * w), A, v)
    f = lambda x: jnp.exp(0.5j * x)
    for operator in (A, scipy.sparse.csr_array(A), lambda x: A @ x):
        np.testing.assert_allclose(funm_multiply(f, operator, v), expected, atol=1e-13)
    # A real A with a real v and a complex function.
    y = funm_multiply(f, A, v.real)
    np.testing.assert_allclose(
        y, by_eigenvectors(lambda w: np.exp(0.5j * w), A, v.real), atol=1e-13
    )


@pytest.mark.slow
def test_where_the_space_ends():
    """No vectors are left after two: of those that f has no value for none gets in."""
    A = np.diag([1.0, 1.0, 4.0, 4.0])
    for v in ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]):
        f = lambda v: funm_multiply(lambda x: 1 / jnp.sqrt(x), A, v)
        np.testing.assert_allclose(f(jnp.array(v)), np.array(v) / [1, 1, 2, 2], atol=1e-14)
    gradient = jax.grad(lambda A: funm_multiply(SQRT, A, np.array([0.0, 0.0, 1.0, 2.0]))[2])(A)
    expected = jax.grad(lambda A: (funm(SQRT, A) @ np.array([0.0, 0.0, 1.0, 2.0]))[2])(A)
    np.testing.assert_allclose(gradient, expected, atol=1e-14)


def _loss(function: Any, a: Any, A: Any, v: Any) -> Any:
    y = function(lambda x: jnp.sqrt(x) * jnp.exp(1j * a * x), A, v)
    return jnp.sum(jnp.abs(y - 0.3) ** 2 * jnp.arange(len(v)))


@pytest.mark.slow
def test_derivatives_in_a_space_smaller_than_the_matrix():
    """Gradients, tangents, and both kinds of second derivatives against those of all of the matrix."""
    n = 20
    rng = np.random.default_rng(4)
    point = 0.3, hermitian(n), random_array(rng, n)
    # Not Hermitian: A moves by the Hermitian part of that.
    along = 0.7, random_array(rng, n, n), random_array(rng, n)
    ours = lambda *args: _loss(lambda *a: funm_multiply(*a, dimension=18), *args)
    whole = lambda *args: _loss(lambda f, A, v: funm(f, A) @ v, *args)

    def derivatives(loss):
        gradient = jax.grad(loss, (0, 1, 2))
        inner = lambda *x: sum(
            jnp.sum(jnp.real(d * g)) for d, g in zip(along, gradient(*x), strict=True)
        )
        return (
            gradient(*point),
            jax.jvp(loss, point, along)[1],
            jax.jvp(gradient, point, along)[1],
            jax.grad(inner, (0, 1, 2))(*point),
        )

    got, expected = (jax.jit(lambda loss=loss: derivatives(loss))() for loss in (ours, whole))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11 * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_against_finite_differences(dtype: Any):
    A, v = hermitian(6, dtype), random_array(np.random.default_rng(5), 6, dtype=dtype)
    modes = ("jvp", "vjp", "hvp") if dtype == np.complex128 else ("jvp", "vjp")
    a = jnp.asarray(0.3, jnp.finfo(dtype).dtype)
    half = lambda A: (A + jnp.conj(A.T)) / 2
    f = jax.jit(lambda a, A, v: funm_multiply(lambda x: jnp.sqrt(x + a), half(A), v))
    check_rule(f, a, A, v, modes=modes, key=KEY)


@pytest.mark.slow
def test_gradient_of_a_sparse_matrix_and_vmap():
    A = scipy.sparse.csr_array(np.diag([2.0, 3.0, 4.0, 5.0]) + np.eye(4, k=1) + np.eye(4, k=-1))
    data, v = jnp.asarray(A.data), random_array(np.random.default_rng(6), 3, 4)

    def loss(data, v):
        operator = scipy.sparse.csr_array(A)
        rows, columns = operator.nonzero()
        y = funm_multiply(SQRT, jax.experimental.sparse.BCOO(
            (data, jnp.stack([rows, columns], 1)), shape=(4, 4)
        ), v)  # fmt: skip
        return jnp.sum(jnp.abs(y) ** 2 * jnp.arange(4)) + jnp.imag(y[0])

    dense = lambda A, v: (
        jnp.sum(jnp.abs(y := funm(SQRT, A) @ v) ** 2 * jnp.arange(4)) + jnp.imag(y[0])
    )
    got = jax.vmap(jax.grad(loss), (None, 0))(data, v)
    expected = jax.vmap(jax.grad(dense), (None, 0))(A.toarray(), v)
    np.testing.assert_allclose(got, expected[:, *A.nonzero()], atol=1e-13)


def test_it_says_what_is_wrong():
    A, v = hermitian(30), np.ones(30)
    with pytest.raises(Exception, match="dimension 5 change f"):
        funm_multiply(SQRT, A, v, dimension=5)
    with pytest.raises(Exception, match="A isn't Hermitian"):
        funm_multiply(SQRT, A + np.eye(30, k=3), v)
    with pytest.raises(ValueError, match="A must be square"):
        funm_multiply(SQRT, A[:20], v)
    with pytest.raises(ValueError, match=r"v must be \(30,\)"):
        funm_multiply(SQRT, A, np.ones(29))
    with pytest.raises(ValueError, match="f must return a scalar"):
        funm_multiply(lambda x: jnp.stack([x, x]), A, v)
    with pytest.raises(ValueError, match="dimension must be a positive"):
        funm_multiply(SQRT, A, v, dimension=0)
    with pytest.raises(ValueError, match="v"):
        funm_multiply(SQRT, A, np.full(30, np.nan))


def test_nothing_grows_with_the_size_squared():
    n = 2000
    D = scipy.sparse.diags_array(
        [-np.ones(n - 1), 3 * np.ones(n), -np.ones(n - 1)], offsets=[-1, 0, 1]
    )
    loss = lambda v: jnp.sum(funm_multiply(SQRT, D.tocsr(), v, dimension=16) ** 2)
    compiled = quick_jit(jax.grad(loss)).lower(jnp.ones(n)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * n * 16 * 16
