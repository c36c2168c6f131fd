"""Square roots and logarithms against SciPy's, and by squaring and by exponentials."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import cdiffeq as cd
from cdiffeq.linalg import _logm, _sqrtm
from cdiffeq.linalg._logm import logm
from cdiffeq.linalg._schur import Schur, schur
from cdiffeq.linalg._sqrtm import sqrtm
from tests.linalg.common import DTYPES, quick_jit, random_array

RNG = np.random.default_rng(13)


def _both(A: Any) -> Any:
    return sqrtm(A), logm(A)


values = quick_jit(_both)
push = quick_jit(lambda A, E: jax.jvp(_both, (A,), (E,)))
pull = quick_jit(lambda A, g: jax.vjp(_both, A)[1](g)[0])


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _spread(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    """Matrices, not normal, with eigenvalues on both sides of the imaginary axis."""
    A = _random(*shape, dtype=dtype)
    return scipy.linalg.expm(A.astype(np.result_type(dtype, np.float64)) / 1.5).astype(dtype)


def _scipy_logm(A: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():  # SciPy warns where exp(log A) is not A to rounding
        warnings.simplefilter("ignore", RuntimeWarning)
        return scipy.linalg.logm(A)


def _derivative_of_sqrtm(A: np.ndarray, E: np.ndarray) -> np.ndarray:
    X = scipy.linalg.sqrtm(A)
    return scipy.linalg.solve_sylvester(X, X, E)


def _derivative_of_logm(A: np.ndarray, E: np.ndarray) -> np.ndarray:
    """By a logarithm of twice the size."""
    return _scipy_logm(np.block([[A, E], [np.zeros_like(A), A]]))[: len(A), len(A) :]


def _close(got: Any, expected: Any, tolerance: float = 1e-13) -> None:
    assert got.shape == np.shape(expected)
    scale = np.max(np.abs(expected), initial=0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


def _adjoint(A: np.ndarray) -> np.ndarray:
    return np.asarray(A).conj().swapaxes(-1, -2)


# Values and derivatives.

SPECIAL = {
    "identity": np.eye(4),
    "nearly the identity": np.eye(4) + 1e-9 * _random(4, 4, dtype=np.float64),
    "defective": 2 * np.eye(4) + np.eye(4, k=1),
    "far from normal": np.eye(4) + 1e3 * np.triu(np.ones((4, 4)), 1),
    "rotations": scipy.linalg.block_diag(*(scipy.linalg.expm([[0, t], [-t, 0]]) for t in (1, 3))),
    "nearly a rotation by pi": scipy.linalg.expm(
        np.diag([3.14, 1, 0], 1) - np.diag([3.14, 1, 0], -1)
    ),
    "real": _spread(4, 4, dtype=np.float64),
    "unitary, degenerate": np.diag([1j, 1j, -1j, np.exp(3j)]),
    "Hermitian": (lambda A: A @ _adjoint(A))(_random(4, 4)),
    "large": 1e12 * _spread(4, 4),
    "small": 1e-12 * _spread(4, 4),
    "spread": _spread(4, 4),
}


@pytest.mark.slow
def test_against_scipy():
    of_type = lambda t: {k: A for k, A in SPECIAL.items() if np.iscomplexobj(A) == t}
    for special in (of_type(False), of_type(True)):
        A = np.stack(list(special.values()))
        E = _random(*A.shape, dtype=A.dtype)
        E *= np.linalg.norm(A, axis=(1, 2), keepdims=True)
        (X, L), (dX, dL) = push(A, E)
        assert X.dtype == L.dtype == A.dtype
        _close(X @ X, A, 1e-14)
        # <g, L(A, E)> = <L(A^H, g), E>, for both at once.
        g = _random(*A.shape, dtype=A.dtype), _random(*A.shape, dtype=A.dtype)
        pulled = pull(A, g)
        for i in range(len(A)):
            # What a relative change of A of size 1 does to them, in one direction.
            sizes = [np.max(np.abs(d[i])) for d in (dX, dL)]
            atol = [1e-14 * size for size in sizes]
            np.testing.assert_allclose(X[i], scipy.linalg.sqrtm(A[i]), rtol=0, atol=atol[0])
            np.testing.assert_allclose(L[i], _scipy_logm(A[i]), rtol=0, atol=atol[1])
            _close(dX[i], _derivative_of_sqrtm(A[i], E[i]), 1e-12)
            _close(dL[i], _derivative_of_logm(A[i], E[i]), 1e-12)
            forward = np.sum(g[0][i] * dX[i] + g[1][i] * dL[i])
            backward = np.sum(pulled[i] * E[i])
            np.testing.assert_allclose(forward.real, backward.real, rtol=0, atol=1e-13 * sum(sizes))


@pytest.mark.slow
def test_more_than_scipy_knows():
    # log (I + N) = N - N^2 / 2 + ..., whose powers end.
    N = 1e3 * np.triu(_random(4, 4), 1)
    expected = N - N @ N / 2 + N @ N @ N / 3
    _close(logm(np.eye(4) + N), expected, 1e-13)
    for x in (1e-200, 1e200, 1 + 1e-12):
        np.testing.assert_allclose(logm(jnp.array([[x]])), [[np.log(x)]], rtol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.complex64,
        pytest.param(np.float64, marks=pytest.mark.slow),
        pytest.param(np.complex128, marks=pytest.mark.slow),
    ],
)
def test_against_finite_differences(dtype: Any):
    A = np.stack([_spread(3, 3), 3 * np.eye(3) + np.eye(3, k=1)])
    A = A if np.issubdtype(dtype, np.complexfloating) else _spread(2, 3, 3, dtype=dtype)
    A = A.astype(dtype)
    X, L = values(A)
    assert X.dtype == L.dtype == dtype
    tolerance = 300 * np.finfo(dtype).eps
    wide = A.astype(np.result_type(dtype, np.float64))
    _close(X, [scipy.linalg.sqrtm(a) for a in wide], tolerance)
    _close(L, [_scipy_logm(a) for a in wide], tolerance)
    cd.testing.check_rule(_unchecked, A)


def _unchecked(A: Any) -> Any:
    """Both by their rules: long steps of finite differences may cross the negative axis."""
    factors = schur(A)
    root = Schur(factors.U, _sqrtm.sqrt_of_triangular(factors.T))
    return _sqrtm._sqrtm(A, root), _logm._logm(A, factors)


@pytest.mark.slow
@pytest.mark.parametrize("f", [sqrtm, logm])
def test_second_derivatives_against_finite_differences(f: Any):
    A = np.stack([_spread(3, 3) + 2 * np.eye(3), 3 * np.eye(3) + np.eye(3, k=1)])
    cd.testing.check_rule(f, A, modes=("hvp",))


@pytest.mark.slow
@pytest.mark.parametrize(
    "outer, inner",
    [
        (jax.jacrev, jax.jacrev),
        pytest.param(jax.jacfwd, jax.jacrev, marks=pytest.mark.slow),
        pytest.param(jax.jacrev, jax.jacfwd, marks=pytest.mark.slow),
    ],
)
def test_every_second_derivative_of_the_logarithm(outer: Any, inner: Any):
    # For commuting matrices log(x A + y A B) = B + log(x + y B), where A = exp(B): at (1, 0) the
    # derivatives are I, B and -I, -B, -B^2.
    B = _random(3, 3) / 2
    A = scipy.linalg.expm(B)
    C = A @ B
    loss = lambda x: jnp.sum(jnp.abs(logm(x[0] * A + x[1] * C)) ** 2)
    hessian = quick_jit(outer(inner(loss)))(jnp.array([1.0, 0.0]))
    first, second = (np.eye(3), B), ((-np.eye(3), -B), (-B, -B @ B))
    re = lambda x, y: 2 * np.sum(x.conj() * y).real
    expected = [[re(first[i], first[j]) + re(B, second[i][j]) for j in range(2)] for i in range(2)]
    np.testing.assert_allclose(hessian, expected, rtol=1e-11)


# Batches.


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(0, 0), (0, 2, 2), (2, 3, 1, 1)])
def test_small_and_empty_shapes(shape: tuple[int, ...]):
    A = _random(*shape)
    X, L = values(A)
    _close(X, np.sqrt(A))
    _close(L, np.log(A))
    gradient = pull(A, (np.ones_like(A), np.ones_like(A)))
    _close(gradient, 1 / (2 * np.sqrt(A)) + 1 / A)


@pytest.mark.slow
def test_each_of_a_batch_alone_and_along_any_axis():
    A = np.stack([np.eye(3), 1e6 * _spread(3, 3)])
    E = _random(2, 3, 3)
    mapped = quick_jit(jax.vmap(lambda A, E: jax.jvp(_both, (A,), (E,)), (1, 1), 1))
    along = mapped(A.swapaxes(0, 1), E.swapaxes(0, 1))
    for i in range(2):
        alone = jax.tree.leaves(push(A[i], E[i]))
        for a, b, c in zip(alone, *map(jax.tree.leaves, (push(A, E), along)), strict=True):
            _close(b[i], a, 1e-14)
            _close(c[:, i], a, 1e-14)


# What it costs.


@pytest.mark.parametrize("f", [sqrtm, logm])
def test_one_schur_form_for_value_and_gradient(f: Any):
    loss = lambda A: jnp.sum(jnp.abs(f(A)))
    text = jax.jit(jax.value_and_grad(loss)).lower(_spread(3, 3)).as_text()
    assert text.count("gees_ffi") == 1


@pytest.mark.slow
@pytest.mark.parametrize("f, most", [(sqrtm, 20), (logm, 100)])
def test_the_memory_of_a_gradient(f: Any, most: int):
    # Counted in matrices, and the same for any number of square roots: that is known at run time only.
    A = jnp.asarray(np.stack([_spread(16, 16)] * 5))
    loss = lambda A: jnp.sum(jnp.abs(f(A)) ** 2)
    memory = jax.jit(jax.grad(loss)).lower(A).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= most * A.nbytes


# What has none.


def _raises(message: str, f: Any, *args: Any) -> None:
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(f(*args))


@pytest.mark.parametrize("f", [sqrtm, logm])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_the_closed_negative_axis(dtype: Any, f: Any):
    run = quick_jit(f)
    W = _random(3, 3, dtype=dtype)
    for eigenvalues in ([-1, 2, 3], [0, 1, 2], [-2, -2, 1]):
        A = (W * eigenvalues) @ np.linalg.inv(W)
        _raises(f"{f.__name__}: A has the eigenvalue", run, A.astype(dtype))
    _raises(f"{f.__name__}: A has the eigenvalue 0\\+0j", run, np.zeros((3, 3), dtype))


@pytest.mark.slow
@pytest.mark.parametrize("f", [sqrtm, logm])
def test_which_matrix_is_on_the_closed_negative_axis(f: Any):
    A = jnp.stack([jnp.eye(2), jnp.diag(jnp.array([1.0, -3.0]))])
    message = rf"{f.__name__}: A has the eigenvalue -3\+0j, .* no principal (sq|log)"
    with pytest.raises(RuntimeError, match=rf"^matrix \[1\] of the batch: {message}"):
        f(A)
    _raises(message, quick_jit(jax.vmap(f)), A)
    _raises(message, quick_jit(jax.grad(lambda A: f(A)[0, 0])), A[1])


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_number_comes_of_nan_or_infinity(bad: float):
    A = np.stack([np.eye(2), np.eye(2)])
    A[0, 1, 0] = bad
    g = (np.ones_like(A), np.ones_like(A))
    for result in (*values(A), pull(A, g)):
        assert np.isnan(result[0]).all()
        assert np.isfinite(result[1]).all()


@pytest.mark.parametrize("f", [sqrtm, logm])
def test_bad_arguments(f: Any):
    with pytest.raises(ValueError, match=rf"{f.__name__}: A must be square, .* got shape \(2, 3\)"):
        f.__wrapped__(jnp.ones((2, 3)))
    with pytest.raises(TypeError):
        f(jnp.eye(2, dtype=int))
