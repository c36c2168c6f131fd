"""Sylvester's and Lyapunov's equations against one large linear system, in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import cdiffeq as cd
from cdiffeq.linalg import _schur
from cdiffeq.linalg._schur import adjoint_schur, schur
from cdiffeq.linalg._sylvester import _nearness, lyapunov, sylvester
from tests.linalg.common import DTYPES, quick_jit, random_array

RNG = np.random.default_rng(7)


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _operator(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """What the equation is to the columns of X, one under the other."""
    return np.kron(np.eye(len(B)), A) + np.kron(B.T, np.eye(len(A)))


def _solution(A: np.ndarray, B: np.ndarray, C: np.ndarray) -> np.ndarray:
    wide = [np.asarray(x, np.result_type(x, np.float64)) for x in (A, B, C)]
    x = np.linalg.solve(_operator(*wide[:2]), wide[2].T.ravel())
    return x.reshape(C.T.shape).T


def _adjoint(A: np.ndarray) -> np.ndarray:
    return A.conj().swapaxes(-1, -2)


NONNORMAL = {
    "triangular": (10 * np.triu(_random(5, 5)), 30 * np.triu(_random(4, 4), 1) + np.eye(4)),
    "defective": (np.eye(4) + np.eye(4, k=1), 2 * np.eye(3) + np.eye(3, k=-1)),
    "Kahan": (np.eye(8) - np.triu(np.ones((8, 8)), 1), np.eye(9) - np.triu(np.ones((9, 9)), 1)),
    "Grcar": (np.tri(12, k=3) - np.tri(12, k=-1) - np.eye(12, k=-1), np.eye(3) + _random(3, 3) / 9),
    "rotations": (np.array([[0, 5.0], [-5, 0]]), np.array([[1.0, 2], [-2, 1]])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NONNORMAL)
def test_against_a_linear_system(name: str):
    A, B = NONNORMAL[name]
    C = _random(len(A), len(B), dtype=np.result_type(A, B))
    X, expected = sylvester(A, B, C), _solution(A, B, C)
    eps = np.finfo(float).eps
    # Backward stable: the residual is one of rounding.
    size = (np.linalg.norm(A) + np.linalg.norm(B)) * np.linalg.norm(X)
    assert np.linalg.norm(A @ X + X @ B - C) < 10 * eps * size
    condition = np.linalg.cond(_operator(A, B))
    assert np.linalg.norm(X - expected) < 10 * eps * condition * np.linalg.norm(expected)
    # The estimate of the least relative change that makes it singular.
    sep = np.linalg.svd(_operator(A, B))[1][-1]
    nearness = (np.linalg.norm(A) + np.linalg.norm(B)) / sep
    estimate = _nearness(*(schur(jnp.asarray(M)).T for M in (A, B)))
    assert nearness / 30 < estimate < 30 * nearness


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_finite_differences(dtype: Any):
    A, B, C = (_random(*shape, dtype=dtype) for shape in ((2, 3, 3), (2, 2, 2), (2, 3, 2)))
    A, B = A + 3 * np.eye(3, dtype=dtype), B + 3 * np.eye(2, dtype=dtype)
    X = quick_jit(sylvester)(A, B, C)
    assert X.dtype == dtype
    tolerance = 1e3 * np.finfo(dtype).eps
    expected = np.stack([_solution(*one) for one in zip(A, B, C, strict=True)])
    np.testing.assert_allclose(X, expected, rtol=0, atol=tolerance)
    cd.testing.check_rule(sylvester, A, B, C)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_lyapunov_against_scipy_and_finite_differences(dtype: Any):
    A, Q = _random(3, 3, dtype=dtype) - 3 * np.eye(3, dtype=dtype), _random(3, 3, dtype=dtype)
    X = lyapunov(A, Q)
    assert X.dtype == dtype
    np.testing.assert_allclose(X, scipy.linalg.solve_continuous_lyapunov(A, Q), rtol=0, atol=1e-13)
    X = lyapunov(A, Q + _adjoint(Q))
    np.testing.assert_allclose(X, _adjoint(np.asarray(X)), rtol=0, atol=1e-14)
    cd.testing.check_rule(lyapunov, A, Q)


@pytest.mark.slow
def test_second_derivatives_against_finite_differences():
    A, B, C = _random(3, 3), _random(2, 2), _random(3, 2)
    both = lambda A, B, C: (sylvester(A, B, C), lyapunov(A, jnp.eye(3)))
    cd.testing.check_rule(both, A, B, C, modes=("hvp",))


@pytest.mark.slow
def test_types_and_batches_that_differ():
    A, B, C = _random(3, 1, 3, 3, dtype=np.float64), _random(2, 2), _random(2, 3, 2, dtype="f")
    X = sylvester(A, B, C)
    assert (X.shape, X.dtype) == ((3, 2, 3, 2), np.complex128)
    expected = [[_solution(a, B, c) for c in C] for a in A[:, 0]]
    np.testing.assert_allclose(X, expected, rtol=0, atol=1e-12)
    loss = lambda A, B, C: jnp.sum(jnp.abs(sylvester(A, B, C)))
    for got, x in zip(quick_jit(jax.grad(loss, (0, 1, 2)))(A, B, C), (A, B, C), strict=True):
        assert (got.shape, got.dtype) == (x.shape, x.dtype)


@pytest.mark.slow
def test_vmap_along_any_axis():
    A, B, C = _random(3, 2, 3), _random(2, 2), _random(3, 2, 2)
    loss = lambda A, C: jnp.sum(jnp.abs(sylvester(A, B, C)))
    both = jax.value_and_grad(loss, (0, 1))
    value, (g_A, g_C) = quick_jit(jax.vmap(both, in_axes=1, out_axes=(0, 1)))(A, C)
    for k in range(2):
        expected = both(A[:, k], C[:, k])
        np.testing.assert_allclose(value[k], expected[0], rtol=1e-12)
        np.testing.assert_allclose(g_A[:, k], expected[1][0], rtol=0, atol=1e-11)
        np.testing.assert_allclose(g_C[:, k], expected[1][1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("batch, m, n", [((), 1, 1), ((), 0, 2), ((2,), 3, 0), ((0,), 2, 2)])
def test_small_and_empty_shapes(batch: tuple[int, ...], m: int, n: int):
    A, B, C = (_random(*batch, *shape) for shape in ((m, m), (n, n), (m, n)))
    X, gradients = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(sylvester(*x).real), (0, 1, 2)))(
        A, B, C
    )
    assert [g.shape for g in gradients] == [x.shape for x in (A, B, C)]
    if m == n == 1:
        np.testing.assert_allclose(X, (C / (A + B)).real.item(), rtol=1e-14)
        np.testing.assert_allclose(gradients[0], -C / (A + B) ** 2, rtol=1e-13)


# The Schur forms.


def test_schur_forms_with_and_without_the_host():
    A = jnp.asarray(_random(2, 4, 4))
    on_the_host = jax.jit(jax.vmap(_schur._on_the_host))(A)
    for form in (schur(A), jax.vmap(schur)(A), _schur.Schur(*on_the_host)):
        for U, T, M in ((*form, A), (*adjoint_schur(form), _adjoint(np.asarray(A)))):
            np.testing.assert_allclose(U @ T @ _adjoint(np.asarray(U)), M, rtol=0, atol=1e-13)
            np.testing.assert_allclose(
                U @ _adjoint(np.asarray(U)), [np.eye(4)] * 2, rtol=0, atol=1e-14
            )
            assert (jnp.tril(T, -1) == 0).all()
    assert schur(jnp.eye(2, dtype=jnp.float32)).T.dtype == np.complex64
    assert _schur._on_the_host(jnp.zeros((0, 0), complex))[0].shape == (0, 0)


def test_two_schur_forms_for_value_and_gradient():
    A, B, C = _random(3, 3), _random(2, 2), _random(3, 2)
    loss = lambda A, B, C: jnp.sum(jnp.abs(sylvester(A, B, C)))
    text = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(A, B, C).as_text()
    assert text.count("gees_ffi") == 2
    loss = lambda A: jnp.sum(jnp.abs(lyapunov(A, jnp.eye(3))))
    assert jax.jit(jax.value_and_grad(loss)).lower(A).as_text().count("gees_ffi") == 1


# What has no solution.


def _similar(T: np.ndarray) -> np.ndarray:
    W = _random(*T.shape)
    return W @ T @ np.linalg.inv(W)


def _raises(message: str, f: Any, *args: Any) -> None:
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(f(*args))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_singular_equations(dtype: Any):
    H = np.linalg.qr(_random(3, 3))[0]
    solve = quick_jit(sylvester)
    pairs = [
        (np.zeros((3, 3)), np.zeros((2, 2))),
        (H @ np.diag([1, 2, 3]) @ _adjoint(H), _similar(np.diag([-2, 5]))),
        (_similar(np.diag([1, 2, 3j])), _similar(np.diag([1, -3j]))),
        (_similar(np.eye(3) + np.eye(3, k=1)), _similar(np.eye(2, k=1) - np.eye(2))),
    ]
    for A, B in pairs:
        A, B = A.astype(dtype), B.astype(dtype)
        C = _random(3, 2, dtype=dtype)
        _raises("sylvester: the equation is singular to working precision", solve, A, B, C)


@pytest.mark.slow
def test_singular_equations_in_a_batch():
    A = np.stack([np.eye(2), np.diag([1j, 2])])
    with pytest.raises(RuntimeError, match=r"matrix \[1\] of the batch: lyapunov: the equation is"):
        lyapunov(A, np.eye(2))
    solve = lambda A: lyapunov(A, jnp.eye(2))
    _raises("lyapunov: the equation is", jax.vmap(solve), A)
    _raises("A and -A", jax.grad(lambda A: solve(A)[0, 0].real), A[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number_comes_of_nan_or_infinity(bad: float):
    arguments = [np.stack([np.eye(2), np.eye(2)]) for _ in range(3)]
    results = quick_jit(jax.value_and_grad(lambda *x: jnp.sum(sylvester(*x)[0]), (0, 1, 2)))
    for i in range(3):
        moved = [x.copy() for x in arguments]
        moved[i][0, 1, 0] = bad
        value, gradients = results(*moved)
        assert np.isnan(value)
        assert all(np.isnan(g[0]).any() for g in gradients)
        assert np.isfinite(sylvester(*moved)[1]).all()


def test_bad_arguments():
    A, C = jnp.eye(3), jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"C must be \(\.\.\., 3, 3\); got shape \(3, 2\)"):
        cd.linalg._sylvester.sylvester.__wrapped__(A, A, C)
    with pytest.raises(ValueError, match="of one size"):
        cd.linalg._sylvester.lyapunov.__wrapped__(A, jnp.eye(2))
    with pytest.raises((ValueError, TypeError)):
        sylvester(C, A, C)
    with pytest.raises(TypeError):
        lyapunov(jnp.eye(2, dtype=int), jnp.eye(2))
