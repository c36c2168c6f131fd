"""A x + B conj(x) = c, in every form that A and B may have, against the real system of NumPy."""

from typing import Any

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

import cdiffeq as cd
from cdiffeq.linalg import GMRES, LU, solve
from cdiffeq.linalg._real_linear import real_linear_solve
from tests.linalg.common import quick_jit, random_array

RNG = np.random.default_rng(11)


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _solution(A: np.ndarray, B: np.ndarray, c: np.ndarray) -> np.ndarray:
    """By the real system, each column of which is the image of a real or an imaginary unit vector."""
    image = lambda X: A @ X + B @ X.conj()
    eye = np.eye(len(A))
    M = np.hstack([image(eye), image(1j * eye)])
    z = np.linalg.solve(np.vstack([M.real, M.imag]), np.concatenate([c.real, c.imag]))
    return z[: len(A)] + 1j * z[len(A) :]


def _of_scipy(M: np.ndarray) -> Any:
    return scipy.sparse.csr_array(M)


def _of_lineax(M: np.ndarray) -> Any:
    form = jax.ShapeDtypeStruct(M.shape[:1], M.dtype)
    return lx.FunctionLinearOperator(lambda x: M @ x, form)


FORMS = {
    "dense": lambda M: M,
    "scipy.sparse": _of_scipy,
    "BCOO": lambda M: jsparse.BCOO.fromdense(jnp.asarray(M)),
    "lineax": _of_lineax,
    "function": lambda M: lambda x: M @ x,
}


@pytest.mark.parametrize("of_A, of_B", [*((f, f) for f in FORMS), ("scipy.sparse", "dense")])
def test_every_form(of_A: str, of_B: str):
    A, B, c = 3 * np.eye(4) + _random(4, 4), _random(4, 4), _random(4)
    solver = None if of_A in ("dense", "scipy.sparse", "BCOO") and of_A == of_B else GMRES(1e-12)
    given = FORMS[of_A](A), FORMS[of_B](B)
    x = quick_jit(lambda c: real_linear_solve(*given, c, solver))(c)
    assert x.dtype == complex and x.shape == (4,)
    np.testing.assert_allclose(x, _solution(A, B, c), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_dtypes(dtype: Any):
    A, B = 4 * np.eye(3, dtype=dtype) + _random(3, 3, dtype=dtype), _random(3, 3, dtype=dtype)
    c = _random(3, dtype=dtype)
    for form in (FORMS["dense"], FORMS["scipy.sparse"]):
        x = real_linear_solve(form(A), form(B), c)
        assert x.dtype == np.result_type(dtype, np.complex64)
        np.testing.assert_allclose(x, _solution(A, B, c), rtol=200 * np.finfo(dtype).eps)


@pytest.mark.slow
def test_columns_and_batches():
    A, B, c = 4 * np.eye(3) + _random(2, 3, 3), _random(3, 3), _random(3, 2)
    expected = np.stack([_solution(M, B, c) for M in A])
    np.testing.assert_allclose(real_linear_solve(A, B, c), expected, rtol=1e-10)
    sparse = real_linear_solve(_of_scipy(A[0]), _of_scipy(B), c)
    np.testing.assert_allclose(sparse, expected[0], rtol=1e-10)
    mapped = jax.vmap(lambda A, c: real_linear_solve(A, B, c), (0, None))
    np.testing.assert_allclose(mapped(A, c[:, 0]), expected[:, :, 0], rtol=1e-10)
    np.testing.assert_allclose(real_linear_solve(A, None, c), np.linalg.solve(A, c), rtol=1e-10)


@pytest.mark.slow
def test_derivatives():
    A, B, c = 4 * np.eye(2) + _random(2, 2), _random(2, 2), _random(2)
    cd.testing.check_rule(real_linear_solve, A, B, c, modes=("jvp", "vjp", "hvp"))
    # A^H l + B^T conj(l) = g is solved by the transpose: l = g_c, g_A = - l x^H, g_B = - l x^T.
    g = _random(2)
    x, pull = jax.vjp(real_linear_solve, A, B, c)
    g_A, g_B, g_c = (y.conj() for y in pull(g.conj()))
    np.testing.assert_allclose(A.conj().T @ g_c + B.T @ g_c.conj(), g, rtol=1e-10)
    np.testing.assert_allclose(g_A, -np.outer(g_c, x.conj()), rtol=1e-10)
    np.testing.assert_allclose(g_B, -np.outer(g_c, x), rtol=1e-10)


@pytest.mark.slow
def test_derivatives_of_real_matrices():
    A, B, c = (4 * np.eye(2) + _random(2, 2)).real, _random(2, 2, dtype=np.float64), _random(2)
    cd.testing.check_rule(real_linear_solve, A, B, c)


@pytest.mark.slow
def test_derivatives_of_sparse_matrices():
    place = np.array([[0, 0], [1, 1], [2, 2], [0, 2], [1, 0]])
    a, b, c = 3 + _random(5), _random(5), _random(3)

    def f(a, b, c):
        A, B = (jsparse.BCOO((data, jnp.asarray(place)), shape=(3, 3)) for data in (a, b))
        return real_linear_solve(A, B, c)

    cd.testing.check_rule(f, a, b, c)


@pytest.mark.slow
def test_pytrees_of_real_and_complex_leaves():
    # What the adjoint of an equation on mixed states needs; the matrix is told by its images.
    W, t = _random(3, 3), RNG.normal(size=3)

    def A(x, W, t):
        z, r = x["z"], x["r"]
        return {
            "z": 4 * z + W[:2, :2] @ jnp.conj(z) + W[:2, 2] * r,
            "r": 3 * r + jnp.sum(t[:2] * z.real + t[1:] * z.imag),
        }

    c = {"z": _random(2), "r": np.array(0.7)}
    solver = GMRES(rtol=1e-14, max_steps=30)
    f = lambda W, t, c: real_linear_solve(lambda x: A(x, W, t), None, c, solver)
    x = f(W, t, c)
    assert x["z"].dtype == complex and x["r"].dtype == float
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-12), A(x, W, t), c)
    cd.testing.check_rule(f, W, t, c, pairing_rtol=1e-10)


@pytest.mark.slow
def test_complex_krylov_methods_are_wrong_here():
    n = 6
    A, B, c = 4 * np.eye(n) + _random(n, n), _random(n, n), _random(n)
    fn = lambda x: A @ x + B @ x.conj()
    expected = _solution(A, B, c)

    operator = scipy.sparse.linalg.LinearOperator((n, n), matvec=fn, dtype=complex)
    textbook, _ = scipy.sparse.linalg.gmres(operator, c, rtol=1e-12, restart=n, maxiter=1)
    assert np.linalg.norm(textbook - expected) > 0.1 * np.linalg.norm(expected)
    with pytest.raises(RuntimeError, match=r"linalg\.solve"):  # the true residual tells
        solve(fn, c, GMRES(restart=n, max_steps=n))

    x, report = real_linear_solve(fn, None, c, GMRES(rtol=1e-12, restart=2 * n), throw=False)
    assert report.iterations <= 2 * n
    np.testing.assert_allclose(x, expected, rtol=1e-10)


def test_one_factorization_for_value_and_gradient():
    A, B, c = 4 * np.eye(3) + _random(3, 3), _random(3, 3), _random(3)
    loss = lambda A, B, c: jnp.sum(jnp.abs(real_linear_solve(A, B, c, LU())) ** 2)
    program = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(A, B, c).as_text()
    assert program.count("@lapack_dgetrf") == 1


def test_nothing_of_the_size_of_a_dense_matrix():
    n = 400
    A = scipy.sparse.diags_array([np.full(n, 3 + 1j), np.ones(n - 1)], offsets=[0, 1])
    f = lambda c: jnp.sum(jnp.abs(real_linear_solve(A, A.conj() * 0.1j, c)) ** 2)
    c = jnp.ones(n, complex)
    memory = jax.jit(jax.grad(f)).lower(c).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 200 * c.nbytes < n * c.nbytes


def test_errors():
    A, c = np.eye(3) + 0j, np.ones(3)
    with pytest.raises(ValueError, match=r"real_linear_solve: .* B of shape \(2, 2\)"):
        real_linear_solve(A, np.eye(2), c)
    with pytest.raises(ValueError, match=r"real_linear_solve: .* c of shape \(2,\)"):
        real_linear_solve(_of_scipy(A), None, np.ones(2))
    with pytest.raises(TypeError, match="B is a function, so A has to be one"):
        real_linear_solve(A, lambda x: x, c)
    with pytest.raises(TypeError, match="A must be a matrix"):
        real_linear_solve(None, A, c)
    with pytest.raises(TypeError, match="must return what they are given"):
        real_linear_solve(lambda x: x.real, None, c + 0j)
    with pytest.raises(ValueError, match="A must be finite"):
        real_linear_solve(A * np.nan, A, c)
    # x + conj(x) = c is singular.
    with pytest.raises(RuntimeError, match="singular"):
        real_linear_solve(A, A, c)
    x, report = real_linear_solve(A, A, c, throw=False)
    assert np.all(np.isnan(x)) and report.code != 0
