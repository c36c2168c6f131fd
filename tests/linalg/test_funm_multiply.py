"""f(A) v by Lanczos against LAPACK's eigenvectors, its derivatives against `funm` and finite differences."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from cdiffeq.linalg import funm, funm_multiply
from cdiffeq.linalg._funm import with_parameters
from cdiffeq.linalg._funm_multiply import Problem, derivative, gradients
from cdiffeq.linalg._operator import as_operator
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
    np.testing.assert_allclose(y, expected, rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.slow
def test_kinds_of_operators():
    A, v = hermitian(20).real, random_array(np.random.default_rng(3), 20)
    expected = by_eigenvectors(lambda w: np.exp(0.5j * w), A, v)
    f = lambda x: jnp.exp(0.5j * x)
    for operator in (A, scipy.sparse.csr_array(A), lambda x: A @ x):
        np.testing.assert_allclose(funm_multiply(f, operator, v), expected, rtol=0, atol=1e-13)
    # A real A with a real v and a complex function.
    y = funm_multiply(f, A, v.real)
    np.testing.assert_allclose(
        y, by_eigenvectors(lambda w: np.exp(0.5j * w), A, v.real), rtol=0, atol=1e-13
    )


@pytest.mark.slow
def test_where_the_space_ends():
    """No vectors are left after two: of those that f has no value for none gets in."""
    A = np.diag([1.0, 1.0, 4.0, 4.0])
    for v in ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]):
        f = lambda v: funm_multiply(lambda x: 1 / jnp.sqrt(x), A, v)
        np.testing.assert_allclose(f(jnp.array(v)), np.array(v) / [1, 1, 2, 2], rtol=0, atol=1e-14)
    gradient = jax.grad(lambda A: funm_multiply(SQRT, A, np.array([0.0, 0.0, 1.0, 2.0]))[2])(A)
    expected = jax.grad(lambda A: (funm(SQRT, A) @ np.array([0.0, 0.0, 1.0, 2.0]))[2])(A)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-14)


@pytest.mark.slow
def test_derivatives_in_spaces_smaller_than_the_matrix():
    """Every kind of the first and second, of a polynomial, which such spaces hold exactly."""
    n = 100
    rng = np.random.default_rng(4)
    point = 0.3, hermitian(n), random_array(rng, n)
    # Not Hermitian: A moves by the Hermitian part of that.
    along = 0.7, random_array(rng, n, n), random_array(rng, n)

    def ours(a, A, v):
        return funm_multiply(lambda x: 1j * a * x + a**2 * x**3, A, v, dimension=6)

    def products(a, A, v):
        H = (A + jnp.conj(A.T)) / 2
        return 1j * a * (H @ v) + a**2 * (H @ (H @ (H @ v)))

    def derivatives(of):
        loss = lambda *x: jnp.mean(jnp.abs(of(*x) - 0.3) ** 2 * jnp.arange(n))
        gradient = jax.grad(loss, (0, 1, 2))
        inner = lambda *x: sum(
            jnp.sum(jnp.real(d * g)) for d, g in zip(along, gradient(*x), strict=True)
        )
        # In a direction that moves with the point.
        push = lambda a, A, v: jax.jvp(loss, (a, A, v), (a**2, a * along[1] - A, jnp.conj(v)))[1]
        tangent = lambda dv: jax.jvp(lambda v: of(*point[:2], v), (point[2],), (dv,))[1]
        linear = lambda dv: jnp.sum(tangent(dv) * along[2]).real
        return (
            gradient(*point),
            jax.jvp(gradient, point, along)[1],
            jax.grad(inner, (0, 1, 2))(*point),
            jax.jvp(push, point, along),
            # Its gradient in the direction, which doesn't depend on that.
            jnp.stack(jax.jvp(jax.grad(linear), (along[2],), (point[2],))),
        )

    got, expected = (quick_jit(lambda of=of: derivatives(of))() for of in (ours, products))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@pytest.mark.slow
def test_the_rules_in_directions_that_move():
    """D y [d] and its gradients as functions of d, too, as third derivatives meet them."""
    rng, n = np.random.default_rng(8), 60
    f, f_params, others = with_parameters("f", lambda x: 1j * x + x**3, np.complex128)
    fixed = eqx.partition(as_operator("A", np.eye(n)), eqx.is_inexact_array)[1]
    problem = Problem(f, others, fixed, 5)

    def made(A, v):
        return eqx.partition(as_operator("A", A), eqx.is_inexact_array)[0], f_params, v

    random = lambda: made(random_array(rng, n, n), random_array(rng, n))
    point, d, dpoint, dd = made(hermitian(n), random_array(rng, n)), random(), random(), random()
    g, dg, u = random_array(rng, n), random_array(rng, n), (random(), (random(),))

    def value(point):
        (A,), v = jax.tree.leaves(point[0]), point[2]
        H = (A + jnp.conj(A.T)) / 2
        return 1j * (H @ v) + H @ (H @ (H @ v))

    push = lambda point, d: jax.jvp(value, (point,), (d,))[1]

    def pull(point, d, g):
        conj = lambda tree: jax.tree.map(jnp.conj, tree)
        by_point, by_d = conj(jax.vjp(push, point, d)[1](jnp.conj(g)))
        return by_point, (by_d,)

    def rules():
        args, dargs = (problem, point, (d,)), (None, dpoint, (dd,))
        return (
            derivative.tangent(args, None, dargs),
            gradients.tangent((*args, g), None, (*dargs, dg)),
            gradients.adjoint((*args, g), None, u),
        )

    moved, moved_gradients, back = quick_jit(rules)()
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())
    close(moved, jax.jvp(push, (point, d), (dpoint, dd))[1])
    expected = jax.jvp(pull, (point, d, g), (dpoint, dd, dg))[1]
    jax.tree.map(close, moved_gradients, expected)
    pairing = lambda a, b: sum(
        np.vdot(x, y).real for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    close(pairing(back, (dpoint, (dd,), dg)), pairing(u, expected))


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
    np.testing.assert_allclose(got, expected[:, *A.nonzero()], rtol=0, atol=1e-13)


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
