"""exp(tA) v against SciPy's dense exponential, and its derivatives against finite differences."""

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
from cdiffeq.linalg._action import Action
from cdiffeq.linalg._action_chebyshev import Chebyshev, bernstein_degree, chebyshev_coefficients
from cdiffeq.linalg._action_krylov import Krylov
from cdiffeq.linalg._action_taylor import _DEGREES, Taylor, _thetas, backwards
from cdiffeq.linalg._arnoldi import arnoldi
from cdiffeq.linalg._expm_multiply import _default, expm_multiply
from cdiffeq.linalg._operator import as_operator
from cdiffeq.linalg._padded import Padded, padded
from cdiffeq.linalg._spectrum import adjoint_sign, entries, norm_estimate, real_bounds
from tests.linalg.common import quick_jit

RNG = np.random.default_rng(0)
N = 5


def random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    A = RNG.normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        A = A + 1j * RNG.normal(size=shape)
    return A.astype(dtype)


def hermitian(n: int = N, dtype: Any = np.complex128) -> np.ndarray:
    A = random(n, n, dtype=dtype)
    return (A + A.conj().T) / 2


def sparse_matrix(n: int, dtype: Any = np.complex128) -> np.ndarray:
    """With rows and columns of different lengths, and an empty row."""
    A = random(n, n, dtype=dtype) * (RNG.random((n, n)) < 0.5)
    A[1] = 0
    return A.astype(dtype)


def exact(A: Any, v: Any, t: Any = 1.0) -> np.ndarray:
    double = lambda x: np.asarray(x, np.result_type(x, np.float64))
    return scipy.linalg.expm(t * double(A)) @ double(v)


def bcoo(A: np.ndarray) -> jsparse.BCOO:
    return jsparse.BCOO.from_scipy_sparse(scipy.sparse.csr_matrix(A))


def close(got: Any, expected: Any, tol: float) -> None:
    """To `tol` of the expected's norm."""
    assert got.shape == np.shape(expected)
    assert np.linalg.norm(got - expected) <= tol * np.linalg.norm(expected)


METHODS = {"chebyshev": Chebyshev(), "taylor": Taylor(), "krylov": Krylov()}
KINDS = {
    "array": lambda A: A,
    "scipy": scipy.sparse.csc_matrix,
    "bcoo": bcoo,
    "bcsr": lambda A: jsparse.BCSR.from_bcoo(bcoo(A)),
    "lineax": lambda A: lx.MatrixLinearOperator(jnp.asarray(A)),
    "function": lambda A: lambda x: jnp.asarray(A) @ x,
}


# Values.


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, method",
    [
        *[(kind, "taylor") for kind in KINDS],
        *[(kind, method) for kind in ("bcoo", "function") for method in ("chebyshev", "krylov")],
    ],
)
def test_every_kind_of_operator(kind: str, method: str):
    A, v = hermitian(), random(N)
    got = quick_jit(lambda v: expm_multiply(KINDS[kind](A), v, -0.7j, METHODS[method]))(v)
    close(got, exact(A, v, -0.7j), 1e-12 if method == "krylov" else 1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "A, v, t",
    [
        (np.float32, np.float32, 1.3),
        (np.float64, np.float64, 1.3),
        (np.complex64, np.float32, 1.3),
        (np.float32, np.complex64, 1.3),
        (np.float32, np.float32, 1.3j),
        (np.float64, np.complex64, 1.3),
    ],
)
def test_dtypes(A: Any, v: Any, t: Any, method: str):
    dtype = np.result_type(A, v)
    dtype = np.result_type(dtype, np.complex64) if isinstance(t, complex) else dtype
    A, v = scipy.sparse.csr_matrix(hermitian(dtype=A)), random(N, 2, dtype=v)
    got = quick_jit(lambda v: expm_multiply(A, v, t, METHODS[method]))(v)
    assert got.dtype == dtype
    close(got, exact(A.toarray(), v, t), 1e-12 if np.finfo(dtype).bits == 64 else 1e-5)


@pytest.mark.parametrize("norm", [0.0, 1e-8, 0.1, 3.0, 60.0])
@pytest.mark.parametrize("t", [1.0, -1.0, 1j, np.exp(2j)])
@pytest.mark.parametrize("name", ["chebyshev", "taylor"])
def test_any_norm_and_time(name: str, t: Any, norm: float):
    H, v = hermitian(), random(N)
    A = norm / np.linalg.norm(H, 2) * H
    method = METHODS[name]
    if name == "chebyshev":  # by Gershgorin's bounds it would be beyond what can be resolved
        w = np.linalg.eigvalsh(A)
        method = Chebyshev(bounds=(w[0] - 1e-3, w[-1] + 1e-3))
    got = expm_multiply(A, v, t, method)
    # Relative to the largest that exp(tA) v could be.
    error = np.linalg.norm(got - exact(A, v, t))
    assert error <= 1e-14 * (1 + norm) * np.linalg.norm(exact(A, np.eye(N), t), 2) * np.linalg.norm(
        v
    )


@pytest.mark.slow
@pytest.mark.parametrize("t", [2.0, -3j])
def test_matrices_that_are_not_normal(t: Any):
    A = np.diag([-1.0, -1, -1, 2]) + np.diag([5.0, 0, 1], 1)
    for method in (Taylor(), Krylov(), None):
        close(
            expm_multiply(scipy.sparse.csr_matrix(A), np.ones(4), t, method),
            exact(A, np.ones(4), t),
            1e-12,
        )


@pytest.mark.slow
def test_shifts_far_from_the_origin():
    A = sparse_matrix(6) + 1e3j * np.eye(6)
    v = random(6)
    for method in (Taylor(), Krylov(6)):
        close(expm_multiply(scipy.sparse.csr_matrix(A), v, 1.0, method), exact(A, v), 1e-11)


@pytest.mark.slow
def test_anti_hermitian_ones():
    K, S, v = 1j * hermitian() + 3j * np.eye(N), random(N, N, dtype=float), random(N, dtype=float)
    close(expm_multiply(K, v, 2.0, Chebyshev()), exact(K, v, 2.0), 1e-13)
    # A real one stays real.
    got = expm_multiply(S - S.T, v, 2.0, Chebyshev())
    assert got.dtype == np.float64
    close(got, exact(S - S.T, v, 2.0), 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_grid_of_times(method: str):
    A, v = hermitian(), random(N, 2)
    ts = np.array([0.0, 0.3, 0.3, 1.0, -0.5])
    got = expm_multiply(A, v, ts, METHODS[method])
    assert got.shape == (5, N, 2)
    for y, t in zip(got, ts, strict=True):
        close(y, exact(A, v, t), 1e-11)
    assert expm_multiply(A, v, np.zeros(0), METHODS[method]).shape == (0, N, 2)


def test_pytrees():
    H, v = hermitian(), {"a": random(2), "b": (random(3, 1),)}
    flat = lambda v: jnp.concatenate([v["a"], v["b"][0][:, 0]])
    tree = lambda x: {"a": x[..., :2], "b": (x[..., 2:, None],)}
    got = expm_multiply(lambda v: tree(jnp.asarray(H) @ flat(v)), v, np.array([0.2, 1.0]))
    expected = tree(np.stack([exact(H, np.asarray(flat(v)), t) for t in (0.2, 1.0)]))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(lambda x, y: close(x, y, 1e-13), got, expected)


@pytest.mark.slow
def test_a_real_function_and_a_complex_time():
    A, v = hermitian(dtype=float), random(N, dtype=float)
    close(expm_multiply(lambda x: jnp.asarray(A) @ x, v, 1j), exact(A, v, 1j), 1e-13)


@pytest.mark.slow
def test_the_default_is_chosen_by_what_is_known():
    default = lambda A, t: type(_default(padded(as_operator("A", A)), jnp.asarray(t)))
    H = hermitian()
    assert default(H, 1j) is default(bcoo(1j * H), 1.0) is Chebyshev
    assert default(H, 1.0) is default(1j * H, 1 + 1j) is default(random(N, N), 1j) is Taylor
    jax.eval_shape(lambda A: 1.0 if default(A, 1j) is Taylor else 1 / 0, H)
    jax.eval_shape(lambda t: 1.0 if default(1j * H, t) is Taylor else 1 / 0, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_vmap(method: str):
    A, v, t = np.stack([hermitian(3), 4 * hermitian(3)]), random(2, 3), np.array([0.3, 2.0])
    got = quick_jit(jax.vmap(lambda *args: expm_multiply(*args, METHODS[method])))(A, v, t)
    for i in range(2):
        close(got[i], exact(A[i], v[i], t[i]), 1e-11)


# Tolerances.


@pytest.mark.slow
@pytest.mark.parametrize("tol", [1e-4, 1e-8])
def test_tolerances_bound_errors_and_save_products(tol: float):
    H, v = hermitian(40), random(40)
    H = 20 / np.linalg.norm(H, 2) * H
    y = exact(H, v, 1j)
    for make in (Chebyshev, Taylor):
        error = np.linalg.norm(expm_multiply(H, v, 1j, make(tol=tol)) - y)
        # Taylor's is relative to norm(A), in the exponent.
        assert 1e-14 < error / np.linalg.norm(v) <= tol * (1 if make is Chebyshev else 100)
    error = np.linalg.norm(expm_multiply(H, v, 1j, Krylov(20, tol=tol)) - y)
    assert error <= 1.1 * tol * np.linalg.norm(v)


@pytest.mark.parametrize("dimension", [6, 9])
def test_the_error_of_a_krylov_step_is_estimated(dimension: int):
    A, v = hermitian(20), random(20)
    y, estimate = Krylov(dimension)._step(
        as_operator("A", A), jnp.asarray(0.1j), jnp.asarray(v), jnp.zeros(())
    )
    error = np.linalg.norm(y - exact(A, v, 0.1j)) / np.linalg.norm(v)
    assert error > 1e-12 and 0.9 * error < estimate < 1.1 * error


@pytest.mark.slow
@pytest.mark.parametrize("z", [0.0, 0.1, 5.0, 40.0j, 300.0, 20 - 50j])
def test_bernsteins_degree(z: Any):
    x = np.linspace(-1, 1, 999)
    for tol in (1e-3, 1e-13):
        degree = int(bernstein_degree(jnp.asarray(z), tol))
        c = chebyshev_coefficients(lambda x: jnp.exp(z * x), 600, jnp.ones(()), jnp.complex128)
        cut = lambda m, c=c: np.polynomial.chebyshev.chebval(x, c[: m + 1])
        off = lambda m, cut=cut: np.max(np.abs(cut(m) - np.exp(z * x)))
        scale = np.exp(abs(np.real(z)))
        rounding = 1e-14 * (1 + abs(z)) * scale
        assert off(degree) <= tol * scale + rounding
        assert degree < 10 or off(int(0.7 * degree)) > tol * scale


def test_the_thetas_are_those_of_the_paper():
    # Al-Mohy and Higham 2011, table 3.1, tol = 2^-53 and 2^-24.
    table = dict(zip(_DEGREES, _thetas(2.0**-53), strict=True))
    paper = {5: 2.4e-3, 10: 1.4e-1, 20: 1.4, 30: 3.5, 40: 6.0, 55: 9.9}
    for m, theta in paper.items():
        assert abs(table[m] - theta) <= 0.05 * theta
    single = dict(zip(_DEGREES, _thetas(2.0**-24), strict=True))
    for m, theta in {5: 1.3e-1, 30: 6.3, 55: 13}.items():
        assert abs(single[m] - theta) <= 0.05 * theta


# What is known before a method starts.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["array", "bcoo", "traced pattern"])
def test_entries(kind: str):
    A = sparse_matrix(6)
    if kind == "traced pattern":
        B = bcoo(A)
        of = lambda d, i: entries(padded(as_operator("A", jsparse.BCOO((d, i), shape=B.shape))))
        diagonal, rows, columns = jax.jit(of)(B.data, B.indices)
    else:
        diagonal, rows, columns = entries(padded(as_operator("A", KINDS[kind](A))))
    off = np.abs(A - np.diag(np.diag(A)))
    np.testing.assert_allclose(diagonal, np.diag(A))
    np.testing.assert_allclose(rows, off.sum(1))
    np.testing.assert_allclose(columns, off.sum(0))


@pytest.mark.slow
def test_norms_and_bounds_of_functions():
    H = hermitian(60)
    w = np.linalg.eigvalsh(H)
    A = as_operator("A", lambda x: jnp.asarray(H) @ x, like=random(60))
    assert 1 <= norm_estimate(A) / np.abs(w).max() <= 1.3
    low, high = real_bounds(A, jnp.asarray(False), None)
    width = w[-1] - w[0]
    assert w[0] - 0.2 * width <= low <= w[0] and w[-1] <= high <= w[-1] + 0.2 * width


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["array", "bcoo", "function"])
def test_hermitian_or_not(kind: str):
    of = lambda A: adjoint_sign(padded(as_operator("A", KINDS[kind](A), like=random(N))))
    H = hermitian()
    assert of(H) == 1
    assert of(1j * H) == -1
    H[0, 1] += 1e-9
    assert np.isnan(of(H))


@pytest.mark.slow
def test_products_in_slots():
    A, X = sparse_matrix(6)[:, :5], random(5, 3)
    P = padded(as_operator("A", bcoo(A)))
    assert isinstance(P, Padded)
    for op, M in ((P, A), (P.adjoint(), A.conj().T), (P.adjoint().adjoint(), A)):
        Y = jnp.asarray(X if M.shape[1] == 5 else random(6, 3))
        np.testing.assert_allclose(op.mm(Y), M @ Y, rtol=0, atol=1e-14)
        np.testing.assert_allclose(op.mm(Y[:, :1]), M @ Y[:, :1], rtol=0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.complex64])
def test_derivatives_of_products_in_slots(dtype: Any):
    P = padded(as_operator("A", bcoo(sparse_matrix(4, dtype))))
    product = lambda values, x: Padded(values, P.column, P.flat, P.row).mv(x)
    cd.testing.check_rule(product, P.values, random(4, dtype=dtype))
    cd.testing.check_rule(product, P.values, random(4, dtype=np.result_type(dtype, np.complex64)))


@pytest.mark.slow
def test_arnoldi():
    A, v = random(8, 8), jnp.asarray(random(8))
    Q, H, beta, norm = arnoldi(lambda x: jnp.asarray(A) @ x, v, 5)
    np.testing.assert_allclose(norm * Q[0], v)
    np.testing.assert_allclose(Q.conj() @ Q.T, np.eye(6), rtol=0, atol=1e-14)
    left = A @ Q[:5].T - Q[:5].T @ H
    np.testing.assert_allclose(left, np.outer(beta * Q[5], np.eye(5)[4]), rtol=0, atol=1e-13)
    # Vectors that are nearly parallel to those before: once isn't enough.
    Q = arnoldi(lambda x: x + 1e-9 * jnp.asarray(A) @ x, v, 5).Q
    np.testing.assert_allclose(Q.conj() @ Q.T, np.eye(6), rtol=0, atol=1e-14)
    # A space that A doesn't lead out of ends.
    Q, H, beta, _ = arnoldi(lambda x: jnp.asarray([1.0, 1, 2, 2]) * x, jnp.ones(4), 3)
    assert beta == 0 and not Q[2:].any() and not H[2:].any()


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 64, 65, 150])
def test_states_in_reverse(steps: int):
    step = lambda y: 3 * y % 1009
    y, states = jnp.ones(1), []
    for _ in range(steps):
        states.append(int(y[0]))
        y = step(y)
    seen = jnp.zeros(steps)
    note = lambda y, state: (state[0] + 1, state[1].at[state[0]].set(y[0]))
    start = jnp.asarray(0), seen
    count = jnp.asarray(steps, jnp.int32)
    got = jax.jit(lambda n: backwards(step, note, jnp.ones(1), n, start))(count)
    np.testing.assert_array_equal(got[1], states[::-1])


# Rules.


def _of_hermitian(method: Action) -> Any:
    return lambda A, v, t: expm_multiply(A + jnp.conj(A.T), v, t, method)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("name", ["chebyshev", "taylor"])
def test_against_finite_differences(name: str, dtype: Any):
    A, v = random(3, 3, dtype=dtype), random(3, dtype=dtype)
    t = dtype(0.4 + 0.5j) if np.issubdtype(dtype, np.complexfloating) else dtype(0.7)
    cd.testing.check_rule(_of_hermitian(METHODS[name]), A, v, t)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_anti_hermitian_ones_against_finite_differences(dtype: Any):
    f = lambda A, v, t: expm_multiply(A - jnp.conj(A.T), v, t, Chebyshev())
    cd.testing.check_rule(f, random(3, 3, dtype=dtype), random(3, dtype=dtype), 0.7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chebyshev", "taylor"])
def test_second_derivatives(name: str):
    A, v = random(3, 3), random(3)
    cd.testing.check_rule(_of_hermitian(METHODS[name]), A, v, 0.5, modes=("hvp",))


@pytest.mark.slow
def test_derivatives_by_krylov_spaces():
    A, v = 0.3 * random(7, 7), random(7)
    f = lambda A, v, t: expm_multiply(A, v, t, Krylov(5))
    cd.testing.check_rule(f, A, v, 0.8 + 0.2j, pairing_rtol=1e-9)


@pytest.mark.slow
def test_second_derivatives_by_krylov_spaces():
    A, v = 0.3 * random(7, 7), random(7, 2)
    f = lambda A, v, t: expm_multiply(A, v, t, Krylov(5))
    cd.testing.check_rule(f, A, v, 0.8 + 0.2j, modes=("hvp",), atol=1e-9)


@pytest.mark.slow
def test_the_costate_may_need_more_krylov_steps_than_the_state():
    # One is enough for an eigenvector, of which the gradient is not one.
    A, g = 2 * hermitian(12), random(12)
    v = np.linalg.eigh(A)[1][:, 0]
    _, pull = jax.vjp(lambda v: expm_multiply(A, v, 1j, Krylov(8)), jnp.asarray(v))
    close(pull(jnp.asarray(g))[0], exact(A.T, g, 1j), 1e-10)


@pytest.mark.slow
def test_derivatives_with_many_steps_and_columns():
    # 16 of Taylor's steps, more than are kept; not normal, and a complex time.
    S = bcoo(sparse_matrix(4))
    data = 40 / abs(S).todense().sum() * np.asarray(S.data)
    f = lambda d, v, t: expm_multiply(
        jsparse.BCOO((d, S.indices), shape=S.shape), v, t, Taylor(norm=150.0)
    )
    cd.testing.check_rule(f, data, random(4, 2), 0.05 + 0.02j)


@pytest.mark.slow
def test_derivatives_of_a_grid_of_times_by_a_function():
    A, v = random(3, 3), random(3)
    f = lambda A, v, t: expm_multiply(lambda x: A @ x + jnp.conj(A.T) @ x, v, t, Chebyshev())
    cd.testing.check_rule(f, A, v, np.array([0.2, 0.5]))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_derivative_at_zero_and_at_an_eigenvector(name: str):
    # Where v alone would end the sum at once, its derivative needs all terms.
    A, dv = np.diag([0.0, 1.0, 2.0]) + np.diag([0.0, 1.0], 1), random(3)
    A = A if name != "chebyshev" else A + A.T - np.diag([0.0, 1.0, 2.0])
    A[0, 1] = A[1, 0] = 0
    f = lambda v: expm_multiply(A, v, 1.0, METHODS[name])
    for v in (np.zeros(3), np.eye(3)[0]):
        v = v.astype(complex)
        close(jax.jvp(f, (v,), (dv,))[1], exact(A, dv), 1e-12)
        close(jax.vjp(f, v)[1](dv)[0], exact(A.T, dv), 1e-12)


@pytest.mark.slow
def test_a_loose_tolerance_has_the_derivatives_of_what_was_computed():
    H, v = hermitian(4), random(4)
    f = lambda A, v: expm_multiply(A + jnp.conj(A.T), v, 1j, Chebyshev(bounds=(-8, 8), tol=1e-2))
    assert np.linalg.norm(f(H, v) - exact(2 * H, v, 1j)) > 1e-5
    cd.testing.check_rule(f, H, v)


# What it costs.


def _count_products(f: Any, *args: Any) -> int:
    """How often the function of a vector that f(apply, ...) is given is called."""
    calls = []

    def count(x):
        calls.append(1)
        return x

    diagonal = np.linspace(-1, 1, 50)

    def apply(x):
        form = jax.ShapeDtypeStruct(x.shape, x.dtype)
        x = jax.pure_callback(count, form, x, vmap_method="sequential")
        return diagonal * x

    jax.block_until_ready(f(apply, *args))
    return len(calls)


@pytest.mark.slow
def test_the_number_of_products():
    v = jnp.ones(50, complex)
    method = Chebyshev(bounds=(-1.0, 1.0))
    products = lambda t: _count_products(lambda A: expm_multiply(A, v, t, method))
    # Two for the proof that A is Hermitian, and by the theory of Bessel's functions 39 and 72 terms.
    assert products(10j) <= 2 * 2 + 40
    assert products(30j) <= 2 * 2 + 70
    products = lambda t: _count_products(lambda A: expm_multiply(A, v, t, Taylor(norm=1.0)))
    assert products(9j) <= 55


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chebyshev", "taylor"])
def test_memory_is_flat_in_the_degree(name: str):
    n = 2000
    bands = [np.ones(n - 1), np.zeros(n), np.ones(n - 1)]
    A = bcoo(scipy.sparse.diags_array(bands, offsets=[-1, 0, 1]).toarray())

    def loss(data, v, t):
        y = expm_multiply(jsparse.BCOO((data, A.indices), shape=A.shape), v, t, METHODS[name])
        return jnp.sum(jnp.abs(y) ** 2)

    def vectors(t):  # known while compiling: an unrolled program would show it
        gradient = jax.jit(jax.grad(lambda data, v: loss(data, v, t), (0, 1)))
        memory = gradient.lower(A.data, np.ones(n, complex)).compile().memory_analysis()
        return memory.temp_size_in_bytes / (16 * n)

    few, many = vectors(1j), vectors(400j)
    assert many <= 1.01 * few
    assert many <= {"chebyshev": 45, "taylor": 110}[name]


# What is refused.


def test_refused():
    A, v = hermitian(), random(N)
    with pytest.raises(ValueError, match=r"A must be square"):
        expm_multiply(random(N, 3), random(3))
    with pytest.raises(ValueError, match=r"v must be of shape \(5,\) or \(5, k\), got \(4,\)"):
        expm_multiply(A, random(4))
    with pytest.raises(ValueError, match="t must be a number or a vector"):
        expm_multiply(A, v, np.ones((2, 2)))
    with pytest.raises(ValueError, match="t must be finite"):
        expm_multiply(A, v, np.nan)
    with pytest.raises(ValueError, match="v must be finite"):
        expm_multiply(A, np.nan * v)
    with pytest.raises(TypeError, match="method"):
        expm_multiply(A, v, 1.0, "taylor")
    with pytest.raises(ValueError, match="neither"):
        expm_multiply(random(N, N), v, 1.0, Chebyshev())


@pytest.mark.parametrize(
    "method, message",
    [
        (Chebyshev(bounds=(-0.1, 0.1)), "isn't within the bounds"),
        (Chebyshev(bounds=(-400.0, 400.0)), "closer bounds"),
        (Chebyshev(max_degree=10), "above max_degree"),
        (Taylor(norm=1e-3), "don't decay"),
        (Krylov(2, max_steps=4), "after 4 steps"),
    ],
)
def test_a_method_that_fails_says_so(method: Action, message: str):
    A, v = 10 * hermitian(), random(N)
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(expm_multiply(A, v, 0.3 if "closer" in message else 1j, method))


@pytest.mark.parametrize("name", ["chebyshev", "taylor"])
def test_no_number_comes_of_nan(name: str):
    f = quick_jit(lambda A, v: expm_multiply(A, v, 1.0, METHODS[name]))
    A, v = hermitian(), random(N)
    bad = A.copy()
    bad[1, 1] = np.nan
    if name == "taylor":
        assert np.isnan(f(bad, v)).all()
        assert np.isnan(f(A, np.nan * v)).all()
    else:
        with pytest.raises(Exception, match="neither"):
            jax.block_until_ready(f(bad, v))
