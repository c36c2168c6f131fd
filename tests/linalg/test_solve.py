"""A x = b by direct solvers: every kind of A, every solver, the rule, batches and failures."""

from typing import Any

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse

import cdiffeq as cd
from cdiffeq.linalg import _solver, factorize, solve
from cdiffeq.linalg._operator import as_operator
from cdiffeq.linalg._solve import default_solver
from cdiffeq.testing import check_linear_solver, check_rule
from tests.linalg.common import DTYPES, quick_jit, random_array

N = 5
QUICK = DTYPES[::3]
SLOW = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:3]]

L = cd.linalg
SOLVERS = {
    "LU": L.LU(),
    "QR": L.QR(),
    "Cholesky": L.Cholesky(),
    "Diagonal": L.Diagonal(),
    "lower": L.Triangular(lower=True),
    "upper": L.Triangular(lower=False),
    "Tridiagonal": L.Tridiagonal(),
    "Banded": L.Banded(lower=2, upper=1),
    "Sparse": L.Sparse(),
    "KLU": L.KLU(),
}


def _mostly_slow(quick: str, without: str = "") -> Any:
    """The names of solvers, for a test that is quick for some of them."""
    marks = lambda name: () if name in quick.split() else pytest.mark.slow
    names = [name for name in SOLVERS if name not in without.split()]
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks(n)) for n in names])


def _solver_named(name: str) -> Any:
    if name == "KLU":
        pytest.importorskip("klujax", reason="KLU() is an extra: pip install cdiffeq[klu]")
    return SOLVERS[name]


def _random(*shape: int, dtype: Any = np.complex128, seed: int = 0) -> np.ndarray:
    return random_array(np.random.default_rng(seed), *shape, dtype=dtype)


def _matrix(name: str, dtype: Any = np.complex128, n: int = N) -> np.ndarray:
    """One that the solver is for, and needs row exchanges where it makes any."""
    A = _random(n, n, dtype=dtype)
    A[0, 0] = 0
    form = {
        "Cholesky": lambda: A @ A.conj().T + np.eye(n),
        "Diagonal": lambda: np.diag(np.diag(A) + 2),
        "lower": lambda: np.tril(A) + 2 * np.eye(n),
        "upper": lambda: np.triu(A) + 2 * np.eye(n),
        "Tridiagonal": lambda: np.triu(np.tril(A, 1), -1),
        "Banded": lambda: np.triu(np.tril(A, 1), -2),
    }
    return form.get(name, lambda: A)().astype(dtype)


def _kinds(A: np.ndarray) -> dict[str, Any]:
    return {
        "array": A,
        "scipy": scipy.sparse.csr_matrix(A),
        "BCOO": jsparse.BCOO.fromdense(A, nse=np.count_nonzero(A) + 2),  # two beyond the matrix
        "BCSR": jsparse.BCSR.fromdense(A),
        "lineax": lx.MatrixLinearOperator(A),
        "lineax function": lx.FunctionLinearOperator(
            lambda x: jnp.asarray(A) @ x, jax.ShapeDtypeStruct((len(A),), A.dtype)
        ),
    }


def _close(A: Any, x: Any, b: Any) -> None:
    """norm(b - A x) is rounding, of a matrix which isn't far from the identity."""
    x = np.asarray(x)
    assert x.shape == b.shape and x.dtype == np.result_type(A, b)
    eps = np.finfo(x.dtype).eps
    norm = np.linalg.norm
    assert norm(b - A @ x) <= 50 * eps * (norm(A) * norm(x) + norm(b))


# Values.


@pytest.mark.parametrize("dtype", [*QUICK, *SLOW])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_in_every_dtype(name: str, dtype: Any):
    solver, A = _solver_named(name), _matrix(name, dtype)
    b, B = _random(N, dtype=dtype, seed=1), _random(N, 2, dtype=dtype, seed=2)

    @quick_jit
    def run(A, b, B):
        factors = factorize(A, solver)
        return (
            solve(A, b, solver),
            factors.solve(B),
            factors.solve_transposed(B),
            factors.solve_conjugate_transposed(B),
        )

    x, X, Y, Z = run(A, b, B)
    _close(A, x, b)
    _close(A, X, B)
    _close(A.T, Y, B)
    _close(A.conj().T, Z, B)
    np.testing.assert_allclose(X, np.linalg.solve(A, B), rtol=1e4 * np.finfo(dtype).eps)


@pytest.mark.slow
@_mostly_slow("LU Tridiagonal Sparse KLU")
def test_every_kind_of_operator(name: str):
    solver, A = _solver_named(name), _matrix(name)
    b = _random(N, seed=1)
    kinds = _kinds(A)
    for x in quick_jit(lambda b: [solve(M, b, solver) for M in kinds.values()])(b):
        _close(A, x, b)
    if name != "KLU":  # which wants to know the pattern

        @quick_jit
        def traced(A, b):
            return solve(A, b, solver), factorize(A, solver).solve_conjugate_transposed(b)

        x, z = traced(jsparse.BCOO.fromdense(A, nse=np.count_nonzero(A) + 2), b)
        _close(A, x, b)
        _close(A.conj().T, z, b)


@pytest.mark.slow
def test_the_conformance_check():
    check_linear_solver(L.Sparse(), scipy.sparse.csr_matrix(_matrix("Sparse", np.complex64)))


@pytest.mark.parametrize("dtype", DTYPES)
@_mostly_slow("", without="KLU")
def test_the_conformance_check_of_all(name: str, dtype: Any):
    A = _matrix(name, dtype)
    check_linear_solver(SOLVERS[name], A)
    check_linear_solver(SOLVERS[name], scipy.sparse.csr_matrix(A))


def test_shapes_broadcast():
    A, b, vector = _random(2, 1, N, N), _random(3, N, 2, seed=1), _random(N, seed=2)
    both, of_vector, one = quick_jit(lambda: (solve(A, b), solve(A, vector), solve(A[0, 0], b)))()
    np.testing.assert_allclose(both, np.linalg.solve(A, b), rtol=1e-10)
    expected = np.linalg.solve(A, np.broadcast_to(vector[:, None], (2, 1, N, 1)))[..., 0]
    np.testing.assert_allclose(of_vector, expected, rtol=1e-10)
    np.testing.assert_allclose(one, np.linalg.solve(A[0, 0], b), rtol=1e-10)


def test_a_batch_of_one_keeps_its_shape():
    A, b = _random(1, 1, N, N), _random(1, N, 2, seed=1)
    x, report = solve(A, b, cd.linalg.GMRES(), guess=np.linalg.solve(A, b)[0], throw=False)
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-10)
    assert x.shape == (1, 1, N, 2)
    assert report.code.shape == report.iterations.shape == (1, 1)


def test_one_factorization_for_all_columns_of_one_matrix():
    A, b = _random(N, N), _random(3, 2, N, 2, seed=1)
    assert str(jax.make_jaxpr(solve)(A, b)).count("= lu") == 1
    assert str(jax.make_jaxpr(jax.vmap(solve, (None, 0)))(A, b)).count("= lu") == 1


@pytest.mark.parametrize("name", ["Tridiagonal", "Banded", "Sparse", "KLU"])
def test_batches_are_solved_one_by_one(name: str):
    solver, A, b = _solver_named(name), _matrix(name), _random(3, N, seed=1)
    stack = np.stack([A, 2 * A, A * (1 + 1j)])
    single = lambda A, b: solve(A, b, solver)

    @quick_jit
    def run(stack, b):
        return (
            jax.vmap(single, (0, None))(stack, b[0]),
            jax.vmap(single, (None, 0))(stack[0], b),
            jax.vmap(jax.vmap(single, (0, None)), (None, 0))(stack, b),
        )

    of_stack, of_b, nested = run(stack, b)
    expected = np.linalg.solve(stack[None], b[:, None, :, None])[..., 0]
    np.testing.assert_allclose(of_stack, expected[0], rtol=1e-10)
    np.testing.assert_allclose(of_b, expected[:, 0], rtol=1e-10)
    np.testing.assert_allclose(nested, expected, rtol=1e-10)


@pytest.mark.slow
def test_the_wider_precision_of_A_and_b_is_taken():
    A, b = _random(N, N, dtype=np.complex64), _random(N, dtype=np.float64, seed=1)
    for M in (A, scipy.sparse.csr_matrix(A), lx.MatrixLinearOperator(A)):
        _close(A.astype(np.complex128), solve(M, b), b)
    _close(
        A.astype(np.complex128),
        solve(A.astype(np.complex128), b.astype(np.float32)),
        b.astype(np.float32),
    )
    with pytest.raises(TypeError, match="factorized in complex64, and b is float64"):
        factorize(A).solve(b)
    function = _kinds(A)["lineax function"]
    with pytest.raises(TypeError, match="operator of complex64, which can't be made complex128"):
        solve(function, b)


@pytest.mark.slow
def test_systems_of_size_none_and_one():
    solvers = [solver for name, solver in SOLVERS.items() if name != "KLU"]
    none, one = np.zeros((0, 0)), np.full((1, 1), 2.0)
    run = quick_jit(
        lambda one: [(solve(none, np.zeros((0, 2)), s), solve(one, np.ones(1), s)) for s in solvers]
    )
    for empty, half in run(one):
        assert empty.shape == (0, 2)
        np.testing.assert_allclose(half, [0.5])


# Derivatives.


@pytest.mark.slow
@_mostly_slow("LU Cholesky Tridiagonal Sparse KLU")
def test_the_rule(name: str):
    solver, A = _solver_named(name), _matrix(name)
    where = np.nonzero(A)
    hermitian = name == "Cholesky"

    def f(entries, b):
        M = jnp.zeros((N, N), entries.dtype).at[where].set(entries)
        return solve((M + jnp.conj(M.T)) / 2 if hermitian else M, b, solver)

    modes = ("jvp", "vjp", "hvp") if name in ("LU", "Sparse") else ("jvp", "vjp")
    check_rule(f, A[where], _random(N, seed=1), modes=modes)


def test_the_rule_for_a_sparse_matrix_and_columns():
    A = scipy.sparse.coo_array(_matrix("Banded"))
    indices = jnp.asarray(np.stack([A.row, A.col], 1))

    def f(data, b):
        return solve(jsparse.BCOO((data, indices), shape=(N, N)), b, L.Sparse())

    check_rule(jax.vmap(f), np.stack([A.data, 2j * A.data]), _random(2, N, 2, seed=1))


@pytest.mark.slow
def test_the_rule_for_factors_solved_three_times():
    def f(A, b):
        factors = factorize(A)
        x = factors.solve(b)
        return factors.solve_transposed(x), factors.solve_conjugate_transposed(x)

    check_rule(f, _matrix("LU"), _random(N, seed=1))


@pytest.mark.slow
def test_a_real_matrix_takes_complex_columns_and_has_a_real_gradient():
    A, b = _matrix("LU", np.float64), _random(N, 2, seed=1)
    _close(A, solve(A, b), b)
    _close(
        A, solve(lx.MatrixLinearOperator(jnp.asarray(A)), b[:, 0]), b[:, 0]
    )  # which lineax refuses
    check_rule(solve, A, b)
    gradient = jax.grad(lambda A: jnp.sum(jnp.abs(solve(A, b)) ** 2))(A)
    assert gradient.dtype == np.float64


@pytest.mark.slow
def test_the_rule_for_operators_of_lineax():
    def f(lower, diagonal, upper, b):
        return solve(lx.TridiagonalLinearOperator(diagonal, lower, upper), b)

    check_rule(
        f, _random(N - 1), 3 + _random(N, seed=1), _random(N - 1, seed=2), _random(N, seed=3)
    )


@pytest.mark.slow
def test_the_gradient_of_a_positive_definite_matrix_is_that_of_any_matrix():
    # jax.scipy.linalg.solve(assume_a="pos") is off by 85 % here; a gradient in a matrix that lineax was
    # told is positive semidefinite isn't Hermitian.
    A, b, w = _matrix("Cholesky"), _random(N, seed=1), _random(N, seed=2)
    loss = lambda A, solver: jnp.abs(jnp.vdot(w, solve(A, b, solver))) ** 2
    by_lu, by_cholesky = (jax.grad(loss)(jnp.asarray(A), s) for s in (L.LU(), L.Cholesky()))
    np.testing.assert_allclose(by_cholesky, by_lu, rtol=1e-9)
    tagged = lambda A: loss(lx.MatrixLinearOperator(A, lx.positive_semidefinite_tag), None)
    np.testing.assert_allclose(jax.grad(tagged)(jnp.asarray(A)), by_lu, rtol=1e-9)


def test_hermitian_is_not_taken_for_symmetric():
    # lax.custom_linear_solve(symmetric=True) is off by 110 % here; so is lineax, where a Hermitian matrix
    # has the symmetric tag.
    A, b = _matrix("Cholesky"), _random(N, seed=1)
    tagged = lambda A, b: solve(lx.MatrixLinearOperator((A + A.conj().T) / 2, lx.symmetric_tag), b)
    check_rule(tagged, A, b, modes=("vjp",))


def test_one_factorization_for_value_and_gradient():
    loss = lambda A, b: jnp.sum(jnp.abs(solve(A, b)) ** 2)
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(_random(N, N), _random(N))
    assert program.as_text().count("custom_call @lapack_zgetrf_ffi") == 1


# What the structure of A says.


def test_the_default_solver():
    A, coo = _random(200, 200), scipy.sparse.coo_array
    band = lambda lower, upper, n=200: coo(np.triu(np.tril(A[:n, :n], upper), -lower))
    sparse = coo((A * (np.random.default_rng(3).random(A.shape) < 0.02)) + np.eye(200))
    vector = jax.ShapeDtypeStruct((2,), np.complex128)
    tagged = lambda tag: lx.MatrixLinearOperator(A, tag)
    expected = [
        (A, L.LU()),
        (np.diag(np.diag(A)), L.Diagonal()),
        (np.tril(A), L.Triangular(lower=True)),
        (np.triu(A), L.Triangular(lower=False)),
        (band(0, 0), L.Diagonal()),
        (band(1, 0), L.Tridiagonal()),
        (band(1, 1), L.Tridiagonal()),
        (band(3, 1), L.Banded(3, 1)),
        (sparse, L.Sparse()),
        (jsparse.BCOO.from_scipy_sparse(sparse), L.Sparse()),
        (coo(A[:50, :50] * (sparse.toarray()[:50, :50] != 0) + np.eye(50)), L.LU()),
        (lx.DiagonalLinearOperator(A[0]), L.Diagonal()),
        (lx.IdentityLinearOperator(vector), L.Diagonal()),
        (lx.TridiagonalLinearOperator(A[0], A[0, 1:], A[0, 1:]), L.Tridiagonal()),
        (lx.MatrixLinearOperator(A), L.LU()),
        (tagged(lx.lower_triangular_tag), L.Triangular(lower=True)),
        (tagged(lx.upper_triangular_tag), L.Triangular(lower=False)),
        (tagged(lx.positive_semidefinite_tag), L.Cholesky()),
        (tagged(lx.symmetric_tag), L.LU()),
        (lx.FunctionLinearOperator(lambda x: 2 * x, vector), L.GMRES()),
    ]
    for matrix, solver in expected:
        assert default_solver(matrix, as_operator("A", matrix)) == solver, (matrix, solver)


@pytest.mark.slow
def test_a_pattern_or_values_that_are_traced_say_nothing():
    seen = []

    def look(A):
        seen.append(default_solver(A, as_operator("A", A)))
        return 0

    A = np.diag(_random(200))
    jax.eval_shape(look, A)
    jax.eval_shape(look, jsparse.BCOO.fromdense(A))
    indices = jnp.asarray(np.stack(np.nonzero(A), 1))
    jax.eval_shape(lambda d: look(jsparse.BCOO((d, indices), shape=A.shape)), np.ones(200))
    assert seen == [L.LU(), L.Sparse(), L.Diagonal()]


@pytest.mark.slow
def test_functions_of_pytrees_close_over_traced_values():
    b = {"u": _random(2), "v": _random(3, seed=1)}

    def f(p, b):
        A = lambda x: {"u": (3 + p) * x["u"] + jnp.sum(x["v"]), "v": 2 * x["v"] - p * x["u"][0]}
        return solve(A, b, L.LU())

    x = f(0.3, b)
    np.testing.assert_allclose(3.3 * x["u"] + jnp.sum(x["v"]), b["u"], rtol=1e-12)
    check_rule(f, 0.3 + 0.1j, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["Diagonal", "lower", "upper", "Tridiagonal", "Banded", "Cholesky"]
)
def test_entries_outside_of_the_structure_are_an_error(name: str):
    solver, b = SOLVERS[name], np.ones(N)
    A = _matrix(name)
    i, j = (N - 1, 0) if name != "lower" else (0, N - 1)
    A[i, j] = 1e-3
    message = "Hermitian" if name == "Cholesky" else rf"has an entry at \[{i}, {j}\]"
    for M in (A, scipy.sparse.csr_matrix(A), lx.MatrixLinearOperator(A)):
        with pytest.raises(ValueError, match=message):
            solve(M, b, solver)

    reason = "Hermitian" if name == "Cholesky" else "outside of the structure"
    with pytest.raises(RuntimeError, match=reason):
        jax.jit(lambda A: solve(A, b, solver))(A)
    x, report = jax.jit(lambda A: solve(A, b, solver, throw=False))(jsparse.BCOO.fromdense(A))
    codes = _solver.Code.OTHER_STRUCTURE, _solver.Code.NOT_HERMITIAN
    assert np.all(np.isnan(x)) and report.code == codes[name == "Cholesky"]


# Failures.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LU", "Tridiagonal"])
def test_a_function_that_is_linear_over_the_reals_alone_is_refused(name: str):
    # lineax solves with another operator here, and reports success.
    b = _random(N)
    for A in (lambda x: 2 * x + jnp.conj(x), lambda x: x.real + 2 * x):
        with pytest.raises(ValueError, match="A isn't linear over the complex numbers"):
            solve(A, b, SOLVERS[name])
        with pytest.raises(Exception, match="A isn't linear over the complex numbers"):
            jax.jit(lambda b, A=A: solve(A, b, SOLVERS[name]))(b)


def _singular(name: str) -> np.ndarray:
    """Of rank n - 1, but for rounding."""
    A = np.random.default_rng(2).normal(size=(N, N)) / 3  # LAPACK's last pivot is 6e-17, not zero
    if name in ("Diagonal", "lower", "upper"):
        A = np.tril(A) if name == "lower" else np.triu(A) if name == "upper" else np.diag(A[0])
        A[2, 2] = 0
        return A
    if name in ("Tridiagonal", "Banded", "Cholesky"):
        D = np.diag([0.3, 0.7, 1.1, 1.3, 0.9])
        laplacian = np.diag([1.0, 2, 2, 2, 1]) - np.eye(N, k=1) - np.eye(N, k=-1)
        return D @ laplacian @ D
    A[:, 0] = A[:, 1:] @ np.array([0.1, 0.2, 0.3, 0.7])
    return A


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LU", "Tridiagonal", "Banded", "Sparse", "KLU"])
def test_badly_scaled_is_not_singular(name: str):
    # A circuit has rows of 1e-12 siemens beside rows of 1e3.
    solver, A = _solver_named(name), _matrix(name)
    A = (
        np.diag(10.0 ** np.array([-14, 3, -2, -20, 8]))
        @ A
        @ np.diag(10.0 ** np.array([-9, 0, 9, 4, -3]))
    )
    assert np.linalg.cond(A) > 1e25
    x = np.arange(1.0, N + 1) / np.max(np.abs(A), axis=0)
    np.testing.assert_allclose(solve(A, A @ x, solver), x, rtol=1e-9)


@pytest.mark.slow
@_mostly_slow("LU QR Cholesky Tridiagonal Sparse", without="KLU")
def test_a_singular_matrix_is_an_error(name: str):
    solver, A = SOLVERS[name], _singular(name)
    assert np.linalg.cond(A) > 1e15  # NumPy's norm
    reason = "positive definite" if name == "Cholesky" else "singular"
    with pytest.raises(RuntimeError, match=f"linalg.solve: .*{reason}"):
        solve(A, np.ones(N), solver)
    with pytest.raises(RuntimeError, match=reason):
        jax.jit(lambda A: factorize(A, solver).solve_transposed(np.ones(N)))(A)
    # Marked also where A x = b has solutions; in a batch the others live.
    good = _matrix(name, np.float64)
    b = A @ np.ones(N)
    x, report = jax.vmap(lambda A: solve(A, b, solver, throw=False))(np.stack([A, good]))
    code = _solver.Code.NOT_DEFINITE if name == "Cholesky" else _solver.Code.SINGULAR
    assert np.all(np.isnan(x[0])) and report.code[0] == code
    _close(good, x[1], b)
    assert report.code[1] == _solver.Code.SUCCESS


def test_the_residual_of_a_solution_that_is_nearly_all_rounding():
    # It is small by cancellation alone, of a solution of size 1e14.
    P, lower, upper = scipy.linalg.lu(np.random.default_rng(2).normal(size=(N, N)))
    upper[-1, -1] = 50 * np.finfo(float).eps
    A, b = factorize(P @ lower @ upper, L.LU()), np.arange(1.0, N + 1)
    for solve_with in (A.solve, A.solve_conjugate_transposed):
        _, report = solve_with(b, throw=False)
        assert report.code == _solver.Code.SINGULAR and 0 < report.residual < 0.1


def test_klu_says_that_a_matrix_is_singular():
    with pytest.raises(RuntimeError, match=r"linalg\.solve: the matrix is singular"):
        solve(_singular("KLU"), np.ones(N), _solver_named("KLU"))
    with pytest.raises(Exception, match="singular"):  # klujax's own
        solve(np.zeros((N, N)), np.ones(N), _solver_named("KLU"))


@_mostly_slow("LU Cholesky Banded Sparse")
def test_not_a_number_is_never_lost(name: str):
    solver, A = _solver_named(name), _matrix(name)
    run = jax.jit(lambda A, b: solve(A, b, solver, throw=False))
    b = np.ones(N, complex)
    for M, rhs in ((A, np.where(np.arange(N) == 2, np.nan, b)), (A * np.nan, b)):
        x, report = run(M, rhs)
        assert np.all(np.isnan(x)) and report.code != _solver.Code.SUCCESS
    with pytest.raises(ValueError, match="A must be finite"):
        solve(A * np.nan, b, solver)
    with pytest.raises(ValueError, match="b must be finite"):
        solve(A, b * np.nan, solver)
    with pytest.raises(ValueError, match=r"A\.data must be finite"):
        solve(scipy.sparse.csr_matrix(A) * np.nan, b, solver)


@pytest.mark.slow
def test_gradients_of_a_failed_solve_are_not_numbers():
    loss = lambda A: jnp.sum(solve(A, np.ones(N), throw=False)[0] ** 2)
    assert np.all(np.isnan(jax.grad(loss)(jnp.asarray(_singular("LU")))))


@pytest.mark.parametrize(
    "A, b, error, message",
    [
        (np.ones((2, 3)), np.ones(2), ValueError, r"A must be square, .* got shape \(2, 3\)"),
        (np.ones(2), np.ones(2), ValueError, r"A must be square, .* got shape \(2,\)"),
        (np.eye(2), np.ones(3), ValueError, r"b must be of shape \(2,\) .* got \(3,\)"),
        (np.eye(2), np.ones((5, 2)), ValueError, r"a batch of vectors is b\[..., None\]"),
        (np.eye(2), 1.0, ValueError, r"b must be of shape .* got \(\)"),
        (scipy.sparse.eye_array(2, 3), np.ones(2), ValueError, "A must be square"),
        (scipy.sparse.eye_array(2), np.ones((1, 2, 1)), ValueError, "b must be of shape"),
        ("A", np.ones(2), TypeError, "A must be an array, got str"),
        (lambda x: x[:1], np.ones(2), TypeError, "A must return what it is given"),
    ],
)
def test_bad_arguments(A: Any, b: Any, error: Any, message: str):
    with pytest.raises(error, match=message):
        solve(A, b)


def test_bad_solvers():
    with pytest.raises(Exception, match="solver"):
        solve(np.eye(2), np.ones(2), "LU")
    with pytest.raises(TypeError, match="nothing says what it acts on"):
        factorize(lambda x: x)
    with pytest.raises(ValueError, match="can't be negative, got lower=-1, upper=0"):
        L.Banded(-1, 0)
