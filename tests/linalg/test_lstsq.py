"""Least squares of every shape and rank, with and without damping, against NumPy; and their derivatives."""

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
from cdiffeq.linalg._lsmr import LSMR
from cdiffeq.linalg._lstsq import lstsq
from cdiffeq.linalg._solver import Code
from cdiffeq.linalg._svd_solver import SVD
from tests.linalg.common import DTYPES, quick_jit, random_array

RNG = np.random.default_rng(13)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    RNG.bit_generator.state = np.random.default_rng(13).bit_generator.state


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _of_rank(r: int, m: int, n: int) -> np.ndarray:
    return _random(m, r) @ _random(r, n)


def _solution(A: np.ndarray, b: np.ndarray, mu: float = 0.0) -> np.ndarray:
    n = A.shape[1]
    below = np.zeros((n, *b.shape[1:]))
    return np.linalg.pinv(np.vstack([A, mu * np.eye(n)]), rcond=1e-10) @ np.concatenate([b, below])


SHAPES = {"tall": (4, 2), "wide": (2, 4), "square": (3, 3)}


# Values.


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mu", [0.0, -0.7])
def test_values(shape: str, mu: float):
    m, n = SHAPES[shape]
    A, b = _random(2, m, n), _random(m, 2)
    expected = np.stack([_solution(M, b, mu) for M in A])
    np.testing.assert_allclose(lstsq(A, b, mu), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(lstsq(A[0], b[:, 0], mu), expected[0, :, 0], rtol=0, atol=1e-12)
    several = lstsq(A[0], np.stack([b, 2 * b]), mu)
    np.testing.assert_allclose(several, [expected[0], 2 * expected[0]], rtol=0, atol=1e-12)
    by_lsmr = lstsq(scipy.sparse.csr_array(A[0]), b, mu, LSMR(rtol=1e-13))
    np.testing.assert_allclose(by_lsmr, expected[0], rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: Any):
    A, b = _random(5, 3, dtype=dtype), _random(5, dtype=dtype)
    for solver in (SVD(), LSMR(rtol=1e-5)):
        x = lstsq(A, b, 0.5, solver)
        assert x.dtype == dtype
        rtol = 1e-4 if isinstance(solver, LSMR) else 100 * np.finfo(dtype).eps
        np.testing.assert_allclose(x, _solution(A, b, 0.5), rtol=rtol, atol=rtol)
    x = lstsq(A.real, b + 1j)
    assert x.dtype == np.result_type(dtype, np.complex64)
    np.testing.assert_allclose(x, _solution(A.real, b + 1j), rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 4), (4, 5)])
def test_the_least_of_many_solutions(shape: tuple[int, int]):
    A, b = _of_rank(2, *shape), _random(shape[0])
    for solver in (SVD(), LSMR(rtol=1e-13)):
        np.testing.assert_allclose(lstsq(A, b, solver=solver), _solution(A, b), rtol=0, atol=1e-11)
    # Small singular values are cut off, or not.
    B = np.diag([1.0, 1e-6])
    cut = [lstsq(B, np.ones(2), solver=SVD(rcond=r))[1] for r in (1e-5, 1e-7)]
    np.testing.assert_allclose(cut, [0, 1e6])
    np.testing.assert_array_equal(lstsq(np.zeros((3, 2)), np.ones(3)), 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_damping_that_is_traced_may_be_zero(shape: str):
    A, b = _random(*SHAPES[shape]), _random(SHAPES[shape][0])
    f = quick_jit(lambda mu: lstsq(A, b, mu))
    for mu in (0.0, 1e-9, 0.3):
        np.testing.assert_allclose(f(mu), _solution(A, b, mu), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_lsmr_beside_scipy():
    entries = RNG.normal(size=(60, 20)) * (RNG.random((60, 20)) < 0.1)
    A = scipy.sparse.csr_array(entries + np.eye(60, 20))
    b = RNG.normal(size=60)
    expected, _, steps, *_ = scipy.sparse.linalg.lsmr(
        A, b, damp=0.1, atol=1e-13, btol=0, conlim=0, maxiter=200
    )
    x, report = lstsq(A, b, 0.1, LSMR(rtol=1e-13), throw=False)
    np.testing.assert_allclose(x, expected, rtol=1e-8)
    assert abs(report.iterations - steps) <= 2
    r = b - A @ x
    gradient = np.linalg.norm(A.T @ r - 0.01 * x)
    size = np.hypot(np.linalg.norm(A.toarray()), 0.1 * np.sqrt(20))
    assert gradient <= 1e-10 * size * np.hypot(np.linalg.norm(r), 0.1 * np.linalg.norm(x))


@pytest.mark.slow
def test_operators_of_lineax():
    A, b = _random(4, 3), _random(4)
    operator = lx.FunctionLinearOperator(
        lambda x: jnp.asarray(A) @ x, jax.ShapeDtypeStruct((3,), jnp.complex128)
    )
    x = lstsq(operator, b, solver=LSMR(rtol=1e-12))
    np.testing.assert_allclose(x, _solution(A, b), rtol=1e-9)


# Derivatives.


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives(shape: str):
    A, b = _random(*SHAPES[shape]), _random(SHAPES[shape][0])
    modes = ("jvp", "vjp", "hvp") if shape == "tall" else ("jvp", "vjp")
    cd.testing.check_rule(lstsq, A, b, modes=modes)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["wide", "square"])
def test_second_derivatives(shape: str):
    A, b = _random(*SHAPES[shape]), _random(SHAPES[shape][0])
    cd.testing.check_rule(lstsq, A, b, modes=("hvp",))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_derivatives_with_damping(shape: str):
    A, b = _random(*SHAPES[shape]), _random(SHAPES[shape][0])
    cd.testing.check_rule(lstsq, A, b, 0.6, modes=("jvp", "vjp"))
    # FORMULAS: (A^H A + mu^2) v = g, and g_mu = -2 mu Re(v^H x).
    g = _random(A.shape[1])
    x, pull = jax.vjp(lambda mu: lstsq(A, b, mu), 0.6)
    v = np.linalg.solve(A.conj().T @ A + 0.36 * np.eye(A.shape[1]), g)
    np.testing.assert_allclose(pull(g.conj())[0], -1.2 * np.vdot(v, x).real, rtol=1e-11)


@pytest.mark.slow
def test_second_derivatives_with_damping():
    A, b = _random(3, 2), _random(3)
    cd.testing.check_rule(lstsq, A, b, 0.6, modes=("hvp",))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_derivatives_in_single_precision(dtype: Any):
    A, b = _random(4, 2, dtype=dtype), _random(4, 2, dtype=dtype)
    cd.testing.check_rule(lstsq, A, b)


def test_derivatives_at_a_rank_that_stays():
    # A = L R has rank 2 for all L and R: there the derivative exists, and needs all three terms.
    L, R, b = _random(4, 2), _random(2, 3), _random(4)
    cd.testing.check_rule(lambda L, R, b: lstsq(L @ R, b, solver=SVD(1e-8)), L, R, b)


@pytest.mark.slow
@pytest.mark.parametrize("mu", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_derivatives_of_lsmr(mu: float):
    place = jnp.array([[0, 0], [1, 1], [2, 0], [2, 1], [3, 0]])
    data, b = _random(5), _random(4)

    def f(data, b, mu):
        A = jsparse.BCOO((data, place), shape=(4, 2))
        return lstsq(A, b, mu, LSMR(rtol=1e-14, max_steps=20))

    arguments = (data, b, mu) if mu else (data, b)
    g = f if mu else lambda data, b: f(data, b, 0.0)
    cd.testing.check_rule(g, *arguments, pairing_rtol=1e-9)


@pytest.mark.slow
def test_vmap_over_all():
    A, b, mu = _random(2, 4, 3), _random(2, 4), np.array([0.2, 0.9])
    loss = lambda A, b, mu: jnp.sum(jnp.abs(lstsq(A, b, mu)) ** 2)
    mapped = quick_jit(jax.vmap(jax.grad(loss, (0, 1, 2))))(A, b, mu)
    single = jax.grad(loss, (0, 1, 2))(A[1], b[1], mu[1])
    for many, one in zip(mapped, single, strict=True):
        np.testing.assert_allclose(many[1], one, rtol=1e-11)


def test_one_decomposition_for_value_and_gradient():
    A, b = _random(4, 3), _random(4)
    loss = lambda A, b, mu: jnp.sum(jnp.abs(lstsq(A, b, mu)) ** 2)
    program = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(A, b, 0.3).as_text()
    assert program.count("@lapack_zgesdd") == 1


@pytest.mark.slow
def test_the_memory_of_sparse_least_squares():
    n = 2000
    A = scipy.sparse.diags_array(
        [np.full(n, 3 + 1j), np.ones(n)], offsets=[0, -1], shape=(n + 1, n)
    )
    b = jnp.ones(n + 1, complex)
    f = lambda b, mu: jnp.sum(jnp.abs(lstsq(A, b, mu)) ** 2)
    memory = jax.jit(jax.grad(f, (0, 1))).lower(b, 0.1).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 100 * b.nbytes


# Failures.


def test_errors():
    A, b = _random(4, 3), _random(4)
    with pytest.raises(ValueError, match=r"lstsq: .* got shapes \(4, 3\) and \(3,\)"):
        lstsq(A, b[:3])
    with pytest.raises(ValueError, match=r"lstsq: .* got shapes \(4, 3\) and \(3,\)"):
        lstsq(scipy.sparse.csr_array(A), b[:3])
    with pytest.raises(ValueError, match="A must be finite"):
        lstsq(A * np.nan, b)
    with pytest.raises(ValueError, match="b must be finite"):
        lstsq(A, b * np.inf)
    with pytest.raises(TypeError, match="damping must be real"):
        lstsq(A, b, 1j)
    with pytest.raises(ValueError, match="damping must be a scalar"):
        lstsq(A, b, np.ones(2))
    with pytest.raises(TypeError, match="lstsq: A is a function"):
        lstsq(lambda x: x, b)
    with pytest.raises(TypeError, match="solver"):
        lstsq(A, b, solver="svd")
    with pytest.raises(ValueError, match="rtol=1e-17 is below"):
        lstsq(A, b, solver=LSMR(rtol=1e-17))


@pytest.mark.slow
def test_no_number_comes_of_a_failure():
    A, b = _random(8, 6), _random(8)
    message = r"linalg\.lstsq: .* limit of steps .* after 2 steps; relative gradient \d"
    with pytest.raises(RuntimeError, match=message):
        lstsq(A, b, solver=LSMR(rtol=1e-10, max_steps=2))
    x, report = lstsq(A, b, solver=LSMR(rtol=1e-10, max_steps=2), throw=False)
    assert np.all(np.isnan(x)) and report.code == Code.NOT_CONVERGED and report.residual > 1e-10
    for solver in (SVD(), LSMR()):
        f = quick_jit(lambda A, b, solver=solver: lstsq(A, b, 0.1, solver, throw=False))
        for bad in ((A * np.nan, b), (A, b * np.nan)):
            x, report = f(*bad)
            assert np.all(np.isnan(x)) and report.code == Code.NOT_FINITE
