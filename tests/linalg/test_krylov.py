"""Iterative solvers: values, derivatives, preconditioners in both directions, starts, and failures."""

from typing import Any

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

import cdiffeq as cd
from cdiffeq.linalg import _ilu, factorize, solve
from cdiffeq.linalg._bicgstab import BiCGStab
from cdiffeq.linalg._cg import CG
from cdiffeq.linalg._gmres import GMRES
from cdiffeq.linalg._ilu import ILU
from cdiffeq.linalg._minres import MINRES
from cdiffeq.linalg._preconditioner import Jacobi
from cdiffeq.linalg._solver import Code
from tests.linalg.common import DTYPES, quick_jit, random_array

RNG = np.random.default_rng(7)
SOLVERS = [CG, MINRES, GMRES, BiCGStab]


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    RNG.bit_generator.state = np.random.default_rng(7).bit_generator.state


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _matrix(solver: Any, n: int = 5, dtype: Any = np.complex128) -> np.ndarray:
    """One that the solver is for."""
    A = _random(n, n, dtype=dtype)
    if solver is CG:
        return (A @ A.conj().T / n + np.eye(n)).astype(dtype)
    if solver is MINRES:
        return A + A.conj().T
    return (A + 4 * np.eye(n)).astype(dtype)


def _tridiagonal(n: int, dtype: Any = np.complex128) -> Any:
    """Sparse, neither Hermitian nor symmetric."""
    parts = [_random(n - 1, dtype=dtype), 4 + _random(n, dtype=dtype), _random(n - 1, dtype=dtype)]
    return scipy.sparse.diags_array(parts, offsets=[-1, 0, 1]).tocsr().astype(dtype)


def _report(A: Any, b: Any, solver: Any, **kwargs: Any) -> Any:
    x, report = solve(A, b, solver, throw=False, **kwargs)
    return x, int(report.code), float(report.residual), int(report.iterations)


# Values and derivatives.


QUICK = {(CG, np.complex64), (MINRES, np.float64), (GMRES, np.complex64)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver, dtype",
    [
        pytest.param(s, d, marks=() if (s, d) in QUICK else pytest.mark.slow)
        for s in SOLVERS
        for d in DTYPES
    ],
)
def test_every_kind_of_right_side(solver: Any, dtype: Any):
    rtol = 1e-5 if np.finfo(dtype).bits == 32 else 1e-12
    cd.testing.check_linear_solver(solver(rtol=rtol), _matrix(solver, dtype=dtype), rtol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", [CG, GMRES, *(pytest.param(s, marks=pytest.mark.slow) for s in (MINRES, BiCGStab))]
)
def test_derivatives(solver: Any):
    # By finite differences in an A that stays Hermitian where it has to; the rule takes any dA.
    A, b = _matrix(solver, 3), _random(3)
    hermitian = solver in (CG, MINRES)
    full = lambda A: (A + A.conj().T) / 2 if hermitian else A
    f = lambda A, b: solve(full(A), b, solver(rtol=1e-14, max_steps=60))
    modes = ("jvp", "vjp", "hvp") if solver is GMRES else ("jvp", "vjp")
    cd.testing.check_rule(f, A, b, modes=modes, pairing_rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [np.complex64, *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[:2])]
)
def test_derivatives_in_the_other_dtypes(dtype: Any):
    A, b = _matrix(GMRES, 3, dtype), _random(3, dtype=dtype)
    eps = float(np.finfo(dtype).eps)
    f = lambda A, b: solve(A, b, GMRES(rtol=8 * eps))
    cd.testing.check_rule(f, A, b, pairing_rtol=1e5 * eps)


@pytest.mark.slow
def test_real_matrix_and_complex_right_side():
    A, b = _matrix(GMRES, 3, np.float64), _random(3)
    f = lambda A, b: solve(A, b, GMRES(rtol=1e-14))
    cd.testing.check_rule(f, A, b, pairing_rtol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_are_those_of_scipy(solver: Any):
    n = 60
    A, b = _matrix(solver, n), _random(n)
    if solver in (GMRES, BiCGStab):
        A = A / np.sqrt(n) + 1j * np.eye(n)
    steps = []
    reference = dict(cg=CG, minres=MINRES, gmres=GMRES, bicgstab=BiCGStab)
    name = next(name for name, kind in reference.items() if kind is solver)
    if solver is MINRES:  # SciPy's is for real numbers only
        A, b = A.real, b.real
    scipy_solve = getattr(scipy.sparse.linalg, name)
    more = dict(restart=n, callback_type="pr_norm") if solver is GMRES else {}
    scipy_solve(A, b, rtol=1e-8, callback=lambda _: steps.append(0), **more)
    mine = GMRES(rtol=1e-8, restart=n) if solver is GMRES else solver(rtol=1e-8)
    x, code, residual, iterations = _report(A, b, mine)
    assert code == Code.SUCCESS and residual <= 1e-8
    assert np.linalg.norm(A @ x - b) <= 1.01e-8 * np.linalg.norm(b)
    assert abs(iterations - len(steps)) <= 2 + len(steps) // 10


def test_bicgstab_takes_the_right_inner_product():
    # lineax's, with the arguments of one product exchanged, is 1e10 off here.
    n = 60
    A, b = (2 + 1j) * np.eye(n) + 0.1 * _random(n, n), _random(n)
    x, code, _, iterations = _report(A, b, BiCGStab(rtol=1e-10))
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-8)
    assert code == Code.SUCCESS and iterations < 30


@pytest.mark.slow
def test_restarts():
    n = 30
    A, b = _matrix(GMRES, n) + 6 * np.eye(n), _random(n)
    full, short = (_report(A, b, GMRES(rtol=1e-10, restart=m)) for m in (n, 4))
    assert full[1] == short[1] == Code.SUCCESS
    assert full[3] < short[3]
    np.testing.assert_allclose(short[0], np.linalg.solve(A, b), rtol=1e-7)


def test_vmap_over_matrices():
    A, b = np.stack([_matrix(GMRES), 5 * _matrix(GMRES)]), _random(2, 5)
    f = quick_jit(jax.vmap(lambda A, b: solve(A, b, GMRES(rtol=1e-12))))
    np.testing.assert_allclose(f(A, b), np.linalg.solve(A, b[..., None])[..., 0], rtol=1e-10)


@pytest.mark.slow
def test_each_column_to_its_own_tolerance():
    A = _matrix(GMRES)
    b = _random(5, 2) * np.array([1.0, 1e-9])
    x = solve(A, b, GMRES(rtol=1e-6))
    residual = np.linalg.norm(b - A @ x, axis=0) / np.linalg.norm(b, axis=0)
    assert np.all(residual <= 1e-6)


def test_right_sides_whose_squares_vanish():
    A, b = _matrix(CG, dtype=np.complex64), _random(5, dtype=np.complex64)
    x = solve(A, (1e-30 * b).astype(np.complex64), CG())
    np.testing.assert_allclose(1e30 * np.asarray(x, complex), np.linalg.solve(A, b), rtol=1e-3)


# Preconditioners. With M = A one step is all, in either direction, and max_steps is an alarm.


@pytest.mark.slow
def test_the_adjoint_solve_keeps_its_preconditioner():
    # lineax's GMRES loses it (lineax #160).
    A, b = _matrix(GMRES), _random(5)
    inverse = np.linalg.inv(A)

    def f(A, b, preconditioner):
        solver = GMRES(rtol=1e-12, max_steps=1, preconditioner=preconditioner)
        return solve(A, b, solver)

    single = lambda r: jnp.asarray(inverse) @ r
    pair = single, lambda r: jnp.asarray(inverse).conj().T @ r
    loss = lambda A, b, preconditioner: jnp.sum(jnp.abs(f(A, b, preconditioner)) ** 2)
    for preconditioner in (single, pair):
        g_A, g_b = jax.grad(loss, (0, 1))(A, b, preconditioner)
        x = inverse @ b
        w = inverse.conj().T @ (2 * x)
        np.testing.assert_allclose(g_b, w.conj(), rtol=1e-10)
        np.testing.assert_allclose(g_A, -np.outer(w, x.conj()).conj(), rtol=1e-10)
    with pytest.raises(RuntimeError, match="limit of steps"):
        wrong = single, lambda r: jnp.asarray(inverse) @ r
        jax.grad(lambda b: jnp.sum(jnp.abs(f(A, b, wrong)) ** 2))(b)


@pytest.mark.slow
def test_cg_with_a_complex_preconditioner():
    # jax's takes the transpose of the preconditioner for its own adjoint: 4e-3 off in few steps.
    A, b = _matrix(CG), _random(5)
    inverse = np.linalg.inv(A)
    solver = CG(rtol=1e-12, max_steps=1, preconditioner=lambda r: jnp.asarray(inverse) @ r)
    g = jax.grad(lambda b: jnp.sum(jnp.abs(solve(A, b, solver)) ** 2))(b)
    np.testing.assert_allclose(g, (2 * inverse.conj().T @ inverse @ b).conj(), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_preconditioners_of_each_method(solver: Any):
    # The square root of a diagonal that spreads over six decades.
    n = 20
    D = np.geomspace(1, 1e3, n)
    A = D[:, None] * _matrix(solver, n) * D
    if solver in (GMRES, BiCGStab):
        A = A + 40 * np.diag(D**2)
    b = D * _random(n)
    P = jnp.asarray(D**-2)
    plain = _report(A, b, solver(rtol=1e-9))
    helped = _report(A, b, solver(rtol=1e-9, preconditioner=lambda r: P * r))
    assert helped[1] == Code.SUCCESS
    assert helped[3] < plain[3] / 2
    np.testing.assert_allclose(A @ helped[0], b, rtol=0, atol=1.01e-9 * np.linalg.norm(b))


@pytest.mark.slow
def test_a_preconditioner_of_traced_values():
    # It has no derivative, and no derivative depends on it; it can be mapped and come from jit.
    A, b = _matrix(GMRES), _random(5)

    def f(A):
        exact = lambda r: jnp.linalg.solve(A, r)
        return solve(A, b, GMRES(rtol=1e-12, max_steps=1, preconditioner=exact))

    expected = jax.grad(lambda A: jnp.sum(jnp.abs(jnp.linalg.solve(A, b)) ** 2))(A)
    loss = lambda A: jnp.sum(jnp.abs(f(A)) ** 2)
    np.testing.assert_allclose(jax.grad(loss)(A), expected, rtol=1e-9)
    np.testing.assert_allclose(quick_jit(jax.vmap(f))(jnp.stack([A, 2 * A]))[0], f(A), rtol=1e-9)
    exact = lambda A: GMRES(preconditioner=lambda r: jnp.linalg.solve(A, r))
    factors = jax.jit(lambda A: factorize(A, exact(A)))(A)
    x = jax.jit(lambda factors: factors.solve_transposed(b))(factors)
    np.testing.assert_allclose(x, np.linalg.solve(A.T, b), rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.complex128, np.float32])
def test_incomplete_factors(dtype: Any):
    # Of a tridiagonal matrix they are complete but for what is dropped.
    rtol = 1e-5 if dtype == np.float32 else 1e-10
    A, b = _tridiagonal(12, dtype), _random(12, dtype=dtype)

    def loss(data):
        matrix = jsparse.BCOO((data, jnp.asarray(indices)), shape=A.shape)
        solver = GMRES(rtol=rtol, max_steps=3, preconditioner=ILU())
        x = solve(matrix, b, solver)
        return jnp.sum(jnp.abs(x) ** 2), x

    coo = A.tocoo()
    indices = np.stack([coo.row, coo.col], axis=1)
    g, x = quick_jit(jax.grad(loss, has_aux=True))(coo.data)
    expected = np.linalg.solve(A.toarray(), b)
    w = np.linalg.solve(A.toarray().conj().T, 2 * expected)
    np.testing.assert_allclose(x, expected, rtol=0, atol=10 * rtol)
    np.testing.assert_allclose(g, -(w[coo.row].conj() * expected[coo.col]), rtol=0, atol=30 * rtol)


def test_incomplete_factors_that_are_gone_are_made_again():
    A, b = _tridiagonal(12), _random(12)
    solve_it = quick_jit(lambda F, b: F.solve(b))
    gmres = GMRES(rtol=1e-10, max_steps=3, preconditioner=ILU())
    factors = quick_jit(lambda: factorize(A, gmres))()
    first = solve_it(factors, b)
    _ilu._FACTORS.clear()
    np.testing.assert_array_equal(solve_it(factors, b), first)


@pytest.mark.parametrize("data", [[1.0, 0, 1], [0, 0, 0], [1, np.nan, 1]])
def test_no_incomplete_factors(data: list[float]):
    # At an empty column SuperLU would end the process.
    place = jnp.array([[0, 0], [1, 1], [2, 2]])

    def f(data):
        A = jsparse.BCOO((data, place), shape=(3, 3))
        return solve(A, np.ones(3), GMRES(preconditioner=ILU()), throw=False)

    x, report = quick_jit(f)(jnp.array(data, complex))
    assert report.code == Code.NOT_FINITE
    assert np.all(np.isnan(x))


@pytest.mark.slow
def test_jacobi_of_sparse_and_dense():
    A, b = _tridiagonal(6), _random(6)
    sparse, dense = (
        _report(A, b, GMRES(rtol=1e-10, preconditioner=Jacobi())) for A in (A, A.toarray())
    )
    assert sparse[3] == dense[3] == 6
    np.testing.assert_allclose(sparse[0], dense[0], rtol=1e-9)
    with pytest.raises(TypeError, match="Jacobi: the diagonal of a matrix-free A"):
        solve(lambda x: 2 * x, b, GMRES(preconditioner=Jacobi()))
    with pytest.raises(TypeError, match="ILU: A must be a sparse matrix"):
        solve(A.toarray(), b, GMRES(preconditioner=ILU()))


# Starts and steps.


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_good_guess_saves_steps(solver: Any):
    A, b = _matrix(solver, 20), _random(20)
    if solver in (GMRES, BiCGStab):
        A = A + 6 * np.eye(20)
    x = np.linalg.solve(A, b)
    near = x + 1e-6 * _random(20)
    f = quick_jit(lambda guess: solve(A, b, solver(rtol=1e-6), guess=guess, throw=False))
    (_, cold), (warm_x, warm), (_, there) = f(0 * x), f(near), f(x)
    assert cold.code == warm.code == there.code == Code.SUCCESS
    assert there.iterations == 0 < warm.iterations < cold.iterations
    np.testing.assert_allclose(warm_x, x, rtol=1e-5)


def test_nothing_flows_through_a_guess():
    A, b = _matrix(CG), _random(5)
    slope = jax.grad(lambda s: jnp.abs(solve(A, b, CG(), guess=s * b)).sum())(1.0)
    assert slope == 0


@pytest.mark.parametrize("solver, per_step", [(CG, 1), (MINRES, 1), (GMRES, 1), (BiCGStab, 2)])
def test_products_with_a_matrix(solver: Any, per_step: int):
    A, b = jnp.asarray(_matrix(solver, 8)), _random(8)
    calls: list[int] = []

    def mv(x):
        jax.debug.callback(lambda: calls.append(0))
        return A @ x

    _, report = solve(mv, b, solver(rtol=1e-5), throw=False)
    jax.effects_barrier()
    # One at the end, for the true residual.
    assert len(calls) == per_step * int(report.iterations) + 1


@pytest.mark.slow
def test_memory_is_a_few_vectors():
    n = 4096
    laplace = lambda x: 3 * x - jnp.roll(x, 1) - jnp.roll(x, -1)
    vector = n * 16

    def memory(solver):
        f = jax.jit(jax.grad(lambda b: jnp.sum(jnp.abs(solve(laplace, b, solver)) ** 2)))
        return f.lower(jnp.ones(n, complex)).compile().memory_analysis().temp_size_in_bytes / vector

    assert memory(CG(max_steps=1000)) < 20
    assert memory(GMRES(max_steps=1000, restart=10)) < 50


# Failures.


@pytest.mark.slow
def test_errors_hold_the_reason_and_the_residual():
    A, b = _matrix(GMRES, 20), _random(20)
    message = r"limit of steps before its tolerance after 3 steps; relative residual \d"
    with pytest.raises(RuntimeError, match=message):
        solve(A, b, GMRES(max_steps=3, rtol=1e-10))
    with pytest.raises(RuntimeError, match=message):
        jax.jit(lambda A: solve(A, b, GMRES(max_steps=3, rtol=1e-10)))(A).block_until_ready()
    x, code, residual, iterations = _report(A, b, GMRES(max_steps=3, rtol=1e-10))
    assert np.all(np.isnan(x)) and code == Code.NOT_CONVERGED and iterations == 3
    assert 1e-10 < residual < 1


@pytest.mark.parametrize(
    "solver, A, code",
    [
        (CG, np.diag([1.0, -1.0, 2.0]), Code.NOT_HERMITIAN),
        (CG, np.diag([1.0, 1j, 2.0]), Code.NOT_HERMITIAN),
        (MINRES, np.diag([1.0, 1j, 2.0]), Code.NOT_HERMITIAN),
        (MINRES, np.diag([1.0, 1.0, 0.0]), Code.STAGNATED),
        (GMRES, np.diag([1.0, 1.0, 0.0]), Code.STAGNATED),
        (BiCGStab, np.array([[0, 1.0, 0], [-1, 0, 0], [0, 0, 1]]), Code.BREAKDOWN),
        (CG, np.diag([1.0, np.nan, 2.0]), Code.NOT_FINITE),
    ],
)
def test_what_a_method_cannot_solve(solver: Any, A: np.ndarray, code: int):
    x, report = quick_jit(lambda A: solve(A, np.ones(3), solver(), throw=False))(A)
    assert report.code == code
    assert np.all(np.isnan(x))


def test_a_tolerance_beyond_the_arithmetic():
    A, b = _matrix(CG, dtype=np.complex64), _random(5, dtype=np.complex64)
    with pytest.raises(ValueError, match=r"rtol=1e-08 is below what complex64 can resolve"):
        solve(A, b, CG(rtol=1e-8))
    # What a condition number leaves no room for is said, and not returned.
    H = np.linalg.qr(_random(5, 5))[0]
    A = (H @ np.diag(np.geomspace(1, 1e-12, 5)) @ H.conj().T).astype(np.complex64)
    x, code, _, _ = _report(A, b, GMRES(rtol=1e-6))
    assert code != Code.SUCCESS and np.all(np.isnan(x))


def test_preconditioners_that_are_none():
    b = _random(3)
    with pytest.raises(TypeError, match="preconditioner must be one such as"):
        GMRES(preconditioner=3)
    with pytest.raises(TypeError, match="preconditioner: it must return what it is given"):
        solve(np.eye(3), b, GMRES(preconditioner=lambda r: r[:2]))
    with pytest.raises(TypeError, match="preconditioner: it must return what it is given"):
        solve(np.eye(3), b, GMRES(preconditioner=lambda r: 1j * r))
