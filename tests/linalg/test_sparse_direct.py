"""The sparse direct solver: how often it factors, what it keeps, and when it doesn't trust its factors."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from cdiffeq.linalg import Sparse, _sparse_direct, factorize, solve
from cdiffeq.linalg._operator import as_operator

SPARSE = Sparse()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The options of every factorization."""
    made: list[dict] = []
    splu = scipy.sparse.linalg.splu

    def counted(matrix, **options):
        made.append(options)
        return splu(matrix, **options)

    monkeypatch.setattr(scipy.sparse.linalg, "splu", counted)
    return made


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty store of factors."""
    store: Any = type(_sparse_direct._stored)()
    monkeypatch.setattr(_sparse_direct, "_stored", store)
    return store


def _helmholtz(m: int) -> Any:
    """-Laplacian - k^2 on m x m points, complex symmetric, with a lossy medium."""
    second = scipy.sparse.diags_array(
        [np.ones(m - 1), -2 * np.ones(m), np.ones(m - 1)], offsets=[-1, 0, 1]
    )
    eye = scipy.sparse.eye_array(m)
    laplacian = scipy.sparse.kron(second, eye) + scipy.sparse.kron(eye, second)
    return (-laplacian - (0.3 + 0.05j) * scipy.sparse.eye_array(m * m)).tocoo()


def _problem(m: int = 6) -> Any:
    """A, its values and indices, a right side and a loss of values and right side."""
    A = _helmholtz(m)
    n = A.shape[0]
    indices = jnp.asarray(np.stack([A.row, A.col], axis=1))
    rng = np.random.default_rng(0)
    b = jnp.asarray(rng.normal(size=n) + 1j * rng.normal(size=n))

    def x_of(data, b):
        return solve(jsparse.BCOO((data, indices), shape=(n, n)), b, SPARSE)

    return A, jnp.asarray(A.data), b, x_of


def _loss(x: Any) -> Any:
    return jnp.sum(jnp.abs(x) ** 4)


def test_one_factorization_for_value_and_gradient(calls: list[dict]):
    A, data, b, x_of = _problem()
    value_and_grad = jax.jit(jax.value_and_grad(lambda data, b: _loss(x_of(data, b)), (0, 1)))
    value, (g_data, g_b) = value_and_grad(data, b)
    jax.block_until_ready(g_b)
    assert len(calls) == 1

    x = scipy.sparse.linalg.spsolve(A.tocsc(), np.asarray(b))
    adjoint = scipy.sparse.linalg.spsolve(A.tocsc().conj().T.tocsc(), 4 * np.abs(x) ** 2 * x)
    np.testing.assert_allclose(value, np.sum(np.abs(x) ** 4), rtol=1e-11)
    np.testing.assert_allclose(g_b, adjoint.conj(), rtol=1e-9)
    # On the pattern alone: -(g_b x^H) at each entry, conjugated as JAX's convention has it.
    np.testing.assert_allclose(g_data, -(adjoint[A.row].conj() * x[A.col]), rtol=1e-9)


def test_one_factorization_for_all_that_a_factorization_solves(calls: list[dict]):
    A, _, b, _ = _problem()
    factors = factorize(A, SPARSE)

    @jax.jit
    def run(factors, B):
        forward = factors.solve(B)
        return forward, factors.solve_transposed(forward), factors.solve_conjugate_transposed(B)

    B = jnp.stack([b, 2j * b], axis=1)
    X, Y, Z = run(factors, B)
    dense = A.toarray()
    np.testing.assert_allclose(dense @ X, B, rtol=1e-11)
    np.testing.assert_allclose(dense.T @ Y, X, rtol=1e-11)
    np.testing.assert_allclose(dense.conj().T @ Z, B, rtol=1e-11)
    assert len(calls) == 1


@pytest.mark.slow
def test_a_tangent_and_a_second_derivative_take_the_same_factors(calls: list[dict]):
    _, data, b, x_of = _problem()
    jax.jvp(x_of, (data, b), (data, b))
    assert len(calls) == 1
    gradient = jax.grad(lambda data: _loss(x_of(data, b)))
    jax.block_until_ready(jax.jit(lambda d: jax.jvp(gradient, (d,), (d,)))(data))
    assert len(calls) == 2


def test_a_batch_of_values_takes_a_factorization_each_and_one_of_columns_takes_one(
    calls: list[dict],
):
    _, data, b, x_of = _problem()
    jax.jit(jax.vmap(x_of, (0, None)))(jnp.stack([data, 2 * data, 3 * data]), b).block_until_ready()
    assert len(calls) == 3
    jax.jit(jax.vmap(x_of, (None, 0)))(data, jnp.stack([b, 2 * b])).block_until_ready()
    assert len(calls) == 4


def test_factors_that_made_room_are_computed_again(
    calls: list[dict], store: Any, monkeypatch: pytest.MonkeyPatch
):
    A, _, b, _ = _problem()
    first, second = factorize(A, SPARSE), factorize(2 * A, SPARSE)
    assert len(calls) == len(store) == 2
    size = next(iter(store.values())).bytes
    monkeypatch.setattr(_sparse_direct, "FACTORS_BYTES", 1.5 * size)
    x = first.solve(b)  # is used, and stays
    factorize(3 * A, SPARSE)
    assert len(calls) == 3 and len(store) == 1
    np.testing.assert_allclose(second.solve(b), x / 2, rtol=1e-11)
    np.testing.assert_allclose(first.solve(b), x, rtol=1e-13)
    assert len(calls) == 5 and len(store) == 1


def test_a_pivot_too_small_leads_to_row_exchanges(calls: list[dict]):
    # The diagonal is there, and it is noise: its pivots lose all digits.
    n = 30
    rng = np.random.default_rng(0)
    A = np.where(rng.random((n, n)) < 0.2, rng.random((n, n)), 0) + np.eye(n, k=1)
    A[-1, 0] = 1
    np.fill_diagonal(A, 1e-18)
    b = rng.normal(size=n)
    x, report = solve(scipy.sparse.csc_array(A), b, SPARSE, throw=False)
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-9)
    assert report.code == 0 and report.residual < 1e-13
    assert [bool(options) for options in calls] == [True, False]

    raw = scipy.sparse.linalg.splu(scipy.sparse.csc_array(A), **_sparse_direct._DIAGONAL_PIVOTS)
    assert np.linalg.norm(A @ raw.solve(b) - b) > 1e-6 * np.linalg.norm(b)


def test_the_residual_is_at_rounding():
    A, _, b, _ = _problem(20)
    x, report = solve(A, b, SPARSE, throw=False)
    residual = np.linalg.norm(A @ np.asarray(x) - b) / np.linalg.norm(b)
    assert residual < 1e-14
    np.testing.assert_allclose(report.residual, residual, rtol=0.5)


@pytest.mark.slow
def test_entries_in_any_order_and_several_at_one_place():
    A = _helmholtz(4)
    n, entries = A.shape[0], len(A.data)
    order = np.random.default_rng(0).permutation(2 * entries)
    data = np.concatenate([0.25 * A.data, 0.75 * A.data])[order]
    indices = np.tile(np.stack([A.row, A.col], axis=1), (2, 1))[order]
    b = np.arange(1.0, n + 1)
    expected = scipy.sparse.linalg.spsolve(A.tocsc(), b)
    known = jsparse.BCOO((jnp.asarray(data), jnp.asarray(indices)), shape=(n, n))
    np.testing.assert_allclose(solve(known, b, SPARSE), expected, rtol=1e-10)
    traced = jax.jit(lambda A: solve(A, b, SPARSE))(known)
    np.testing.assert_allclose(traced, expected, rtol=1e-10)
    gradient = jax.grad(
        lambda d: _loss(solve(jsparse.BCOO((d, known.indices), shape=(n, n)), b, SPARSE))
    )
    g = gradient(known.data)
    _, place = np.unique(indices @ [1, n], return_inverse=True)
    for k in range(3):  # entries at one place have one gradient
        assert np.ptp(g[place == k].real) == 0


def test_the_keys_of_a_large_pattern_do_not_overflow():
    n = 160_000
    row = column = np.array([0, 5, n - 1], np.int32)
    pattern = _sparse_direct.analyse(row[::-1], column[::-1], n)
    assert list(pattern.indices) == [0, 5, n - 1]
    assert list(np.flatnonzero(np.diff(pattern.indptr))) == [0, 5, n - 1]


@pytest.mark.slow
def test_nothing_dense_is_formed():
    n = 20_000
    diagonals = [np.ones(n - 1), 4 + 1j * np.ones(n), np.ones(n - 1)]
    A = scipy.sparse.diags_array(diagonals, offsets=[-1, 0, 1]).tocoo()
    indices = jnp.asarray(np.stack([A.row, A.col], axis=1))

    for solver in (SPARSE, None):

        def loss(data, b, solver=solver):
            return _loss(solve(jsparse.BCOO((data, indices), shape=(n, n)), b, solver))

        program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(A.data, np.ones(n)).compile()
        # A column of the dense matrix would be a vector; all of it, 6.4 GB.
        assert program.memory_analysis().temp_size_in_bytes < 40 * 16 * n
        value, _ = program(A.data, np.ones(n))
    expected = scipy.sparse.linalg.spsolve(A.tocsc(), np.ones(n))
    np.testing.assert_allclose(value, np.sum(np.abs(expected) ** 4), rtol=1e-10)


def test_the_pattern_is_analysed_when_it_is_known(monkeypatch: pytest.MonkeyPatch):
    made = []
    analyse = _sparse_direct.analyse
    monkeypatch.setattr(_sparse_direct, "analyse", lambda *args: made.append(0) or analyse(*args))
    _, data, b, x_of = _problem()
    program = jax.jit(x_of)
    program(data, b)
    program(2 * data, b).block_until_ready()
    assert len(made) == 1


def test_a_dense_operator_is_taken_too():
    A = np.array([[0.0, 2j], [1.0, 1.0]])
    np.testing.assert_allclose(solve(A, A @ np.array([1.0, 2.0]), SPARSE), [1, 2])
    operator = as_operator("A", lambda x: jnp.asarray(A) @ x, like=jnp.ones(2))
    np.testing.assert_allclose(factorize(operator, SPARSE).solve(A @ np.array([1.0, 2.0])), [1, 2])


ON_ONE_CORE = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
from jax.experimental.sparse import BCOO
import cdiffeq as cd

n = 20_000
place = np.arange(n)
indices = jnp.asarray(np.stack([np.r_[place, place[1:]], np.r_[place, place[:-1]]], 1))
data, b = jnp.ones(2 * n - 1) + 2.0 * (jnp.arange(2 * n - 1) < n), jnp.ones(n)

@jax.jit
def gradient(data):
    x_of = lambda data: cd.linalg.solve(BCOO((data, indices), shape=(n, n)), b, cd.linalg.Sparse())
    return jax.grad(lambda data: jnp.sum(x_of(data) ** 2) + jnp.sum(x_of(2 * data)))(data)

for _ in range(5):
    gradient(data).block_until_ready()
"""


@pytest.mark.slow
def test_it_does_not_wait_for_itself_on_one_core():
    # `jax.pure_callback` does here: the thread that calls back is the one that would make its arguments.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", ON_ONE_CORE], check=True, timeout=300, env=environment)
