"""Extreme eigenpairs against LAPACK's, and their derivatives against finite differences."""

from typing import Any

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse

import cdiffeq as cd
from cdiffeq.linalg import eigh
from cdiffeq.linalg._eigsh import eigsh
from tests.linalg.common import quick_jit

RNG = np.random.default_rng(0)


def hermitian(n: int, dtype: Any = np.complex128) -> np.ndarray:
    A = RNG.normal(size=(n, n))
    if np.issubdtype(dtype, np.complexfloating):
        A = A + 1j * RNG.normal(size=(n, n))
    return ((A + A.conj().T) / 2).astype(dtype)


def laplacian(side: int) -> scipy.sparse.csr_array:
    D = scipy.sparse.diags_array(
        [-np.ones(side - 1), 2 * np.ones(side), -np.ones(side - 1)], offsets=[-1, 0, 1]
    )
    one = scipy.sparse.eye_array(side)
    return (scipy.sparse.kron(D, one) + scipy.sparse.kron(one, D)).tocsr()


def check_pairs(A: np.ndarray, w: Any, U: Any, k: int, which: str) -> None:
    expected = np.linalg.eigvalsh(np.asarray(A, np.result_type(A, np.float64)))
    expected = expected[:k] if which == "SA" else expected[-k:]
    tol = 1e3 * np.finfo(w.dtype).eps * np.abs(A).sum(0).max()
    np.testing.assert_allclose(w, expected, rtol=0, atol=tol)
    np.testing.assert_allclose(A @ U, U * w[None], rtol=0, atol=tol)
    np.testing.assert_allclose(
        np.conj(U.T) @ U, np.eye(k), rtol=0, atol=1e3 * np.finfo(w.dtype).eps
    )


@pytest.mark.parametrize("which", ["SA", "LA"])
@pytest.mark.parametrize("n, k", [(1, 1), (4, 4), (60, 3)])
def test_against_lapack(n: int, k: int, which: Any):
    A = hermitian(n)
    check_pairs(A, *eigsh(A, k, which), k, which)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_dtypes(dtype: Any):
    A = hermitian(50, dtype)
    w, U = eigsh(A, 2)
    assert U.dtype == dtype and w.dtype == np.finfo(dtype).dtype
    check_pairs(A, w, U, 2, "SA")


KINDS = {
    "scipy": scipy.sparse.csr_matrix,
    "bcoo": lambda A: jsparse.BCOO.fromdense(jnp.asarray(A)),
    "lineax": lambda A: lx.MatrixLinearOperator(jnp.asarray(A)),
    "function": lambda A: lambda x: jnp.asarray(A) @ x,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_operator(kind: str):
    A = hermitian(8)
    v0 = np.ones(8, complex) if kind == "function" else None
    check_pairs(A, *eigsh(KINDS[kind](A), 2, v0=v0), 2, "SA")


@pytest.mark.slow
def test_many_restarts_and_equal_eigenvalues():
    # In exact arithmetic one vector leads to one of the two equal pairs alone.
    A = laplacian(20)
    w, U = eigsh(A, 4)
    check_pairs(A.toarray(), w, U, 4, "SA")


@pytest.mark.slow
@pytest.mark.parametrize("values", [[1.0, 1, 1, 2, 2, 3], [0.0] * 4, [-1.0, -1, 5, 5, 5, 5, 5]])
def test_spaces_that_end(values: Any):
    A = np.diag(values)
    for k in (1, 3):
        check_pairs(A, *eigsh(A, k), k, "SA")
        check_pairs(A, *eigsh(A, k, "LA"), k, "LA")


@pytest.mark.slow
def test_the_phases_of_eigh():
    A = hermitian(6)
    w, U = eigh(A)
    got = eigsh(A, 3)
    np.testing.assert_allclose(got.eigenvalues, w[:3], rtol=0, atol=1e-13)
    np.testing.assert_allclose(got.eigenvectors, U[:, :3], rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["SA", "LA"])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_against_finite_differences(dtype: Any, which: Any):
    f = lambda A: eigsh(A + jnp.conj(A.T), 2, which)
    cd.testing.check_rule(f, hermitian(5, dtype), pairing_rtol=1e-8)


@pytest.mark.slow
def test_single_precision_against_finite_differences():
    f = lambda A: eigsh(A + jnp.conj(A.T), 2)
    cd.testing.check_rule(f, hermitian(5, np.complex64), rtol=3e-3, pairing_rtol=1e-3)


@pytest.mark.slow
def test_second_derivatives():
    f = lambda A: eigsh(A + jnp.conj(A.T), 2)
    cd.testing.check_rule(f, hermitian(5), modes=("hvp",))


@pytest.mark.slow
def test_parameters_of_a_sparse_matrix_and_of_a_function():
    A = jsparse.BCOO.from_scipy_sparse(scipy.sparse.csr_matrix(laplacian(3)))
    on = np.asarray(A.indices[:, 0] == A.indices[:, 1])
    potential = RNG.normal(size=9)

    def of_entries(p):
        data = A.data + jnp.zeros(len(on)).at[np.flatnonzero(on)].set(p)
        return eigsh(jsparse.BCOO((data, A.indices), shape=A.shape), 2)

    of_function = lambda p: eigsh(lambda x: A @ x + p * x, 2, v0=np.ones(9))
    cd.testing.check_rule(of_entries, potential, pairing_rtol=1e-8)
    loss = lambda f, p: jnp.sum(f(p).eigenvectors ** 3) + f(p).eigenvalues[0]
    gradient = lambda f: quick_jit(jax.grad(lambda p: loss(f, p)))(potential)
    np.testing.assert_allclose(gradient(of_entries), gradient(of_function), rtol=0, atol=1e-8)


@pytest.mark.slow
def test_the_projector_of_equal_eigenvalues():
    A = np.diag([1.0, 1.0, 4.0, 6.0])
    E = hermitian(4, np.float64)

    def f(t):
        w, U = eigsh(A + t * E, 2)
        return jnp.sum(w), U @ U.T

    value, P = jax.jvp(f, (0.0,), (1.0,))[1]
    np.testing.assert_allclose(value, np.trace(E[:2, :2]), rtol=1e-10)
    expected = np.zeros((4, 4))
    expected[2:, :2] = -E[2:, :2] / np.array([3.0, 5.0])[:, None]
    np.testing.assert_allclose(P, expected + expected.T, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_vmap():
    A = np.stack([hermitian(4), hermitian(4)])
    got = quick_jit(jax.vmap(lambda A: eigsh(A, 2)))(A)
    for i in range(2):
        check_pairs(A[i], got.eigenvalues[i], got.eigenvectors[i], 2, "SA")


@pytest.mark.slow
def test_products_of_a_gradient_of_the_values():
    A, calls = hermitian(30, np.float64), []

    def count(x):
        calls.append(1)
        return x

    def apply(p, x):
        form = jax.ShapeDtypeStruct(x.shape, x.dtype)
        seen = jax.pure_callback(count, form, jax.lax.stop_gradient(x), vmap_method="sequential")
        return p * (jnp.asarray(A) @ (x + 0 * seen))

    value = lambda p: eigsh(lambda x: apply(p, x), 1, v0=np.ones(30)).eigenvalues[0]
    jax.block_until_ready(value(1.0))
    alone = len(calls)
    assert 24 <= alone <= 24 + 12 * 12
    calls.clear()
    slope = jax.block_until_ready(jax.grad(value)(1.0))
    np.testing.assert_allclose(slope, np.linalg.eigvalsh(A)[0], rtol=1e-10)
    assert len(calls) <= alone + 8  # one pull-back, and nothing to solve for


def test_refused():
    A = hermitian(5)
    with pytest.raises(ValueError, match="k must be an integer from 1 to 5, got 6"):
        eigsh(A, 6)
    with pytest.raises((ValueError, TypeError), match="which"):
        eigsh(A, 1, "LM")
    with pytest.raises(ValueError, match="A must be square"):
        eigsh(A[:3], 1)
    with pytest.raises(ValueError, match=r"v0 must be of shape \(5,\)"):
        eigsh(A, 1, v0=np.ones(4))
    with pytest.raises(TypeError, match="nothing says what it acts on"):
        eigsh(lambda x: x, 1)
    with pytest.raises(ValueError, match="dimension must be at least"):
        eigsh(A, 2, dimension=3)


@pytest.mark.slow
@pytest.mark.parametrize("bad", ["not Hermitian", "NaN", "no convergence"])
def test_failures_raise(bad: str):
    A = hermitian(40)
    if bad == "not Hermitian":
        A = A + 1e-6j * np.eye(40)
    if bad == "NaN":
        A = jnp.asarray(A) * jnp.nan
    options = dict(dimension=4, max_restarts=2) if bad == "no convergence" else {}
    message = "after 3 restarts" if bad == "no convergence" else "isn't Hermitian"
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(eigsh(A, 1, **options))
