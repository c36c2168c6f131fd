"""Eigenvalues and eigenvectors of general matrices, their derivatives, and defective matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import cdiffeq as cd
from cdiffeq.linalg._eig import block_eig, eig
from tests.linalg.common import DTYPES, random_array

RNG = np.random.default_rng(1)
decompose = jax.jit(eig)


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test alone and among others."""
    global RNG
    RNG = np.random.default_rng(1)  # not 0, of which check_rule makes its directions


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _with_form(J: Any) -> np.ndarray:
    """S J S^-1, of moderate condition: its entries carry rounding errors."""
    S = np.eye(len(J)) + 0.3 * _random(len(J), len(J))
    return S @ J @ np.linalg.inv(S)


# Values.


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_numpy(dtype: Any):
    A = _random(2, 2, 4, 4, dtype=dtype)
    l, V = decompose(A)
    assert l.shape == (2, 2, 4) and V.shape == A.shape
    assert l.dtype == V.dtype == np.result_type(dtype, np.complex64)
    tol = 1000 * np.finfo(dtype).eps
    np.testing.assert_allclose(A @ V, V * l[..., None, :], rtol=0, atol=tol)
    np.testing.assert_allclose(np.linalg.norm(V, axis=-2), 1, rtol=0, atol=tol)
    expected = np.sort_complex(np.linalg.eigvals(A.reshape(4, 4, 4)))
    order = np.argsort(np.asarray(l).reshape(4, 4), axis=1)
    np.testing.assert_allclose(
        np.take_along_axis(np.asarray(l).reshape(4, 4), order, 1), expected, rtol=0, atol=tol
    )


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_the_pivot_of_each_vector_is_real_and_positive(dtype: Any):
    V = np.asarray(decompose(_random(50, 4, 4, dtype=dtype)).eigenvectors)
    size = np.abs(V)
    first = np.argmax(size > 0.55 * size.max(axis=1, keepdims=True), axis=1)[:, None]
    pivot = np.take_along_axis(V, first, axis=1)
    assert (pivot.real > 0).all() and (np.abs(pivot.imag) <= np.finfo(dtype).eps).all()


# Derivatives.


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_finite_differences(dtype: Any):
    """TRAPS: `eig` vectors: JAX raises unless `enable_eigvec_derivs`."""

    def f(A: Any) -> Any:
        l, V = eig(A)
        # Steps in single precision are long, and a phase may jump on the way: see what doesn't know it.
        return l, (V[:, None] * V.conj()[None] if np.finfo(dtype).bits == 32 else V)

    # A rotation and a stretch: real and complex eigenvalues, far from each other.
    A = scipy.linalg.block_diag([[0.0, 2.0], [-2.0, 0.0]], 3.0) + 0.3 * _random(3, 3, dtype=dtype)
    cd.testing.check_rule(f, A.astype(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param(np.float64, marks=pytest.mark.slow), np.complex128])
def test_second_derivatives_against_finite_differences(dtype: Any):
    cd.testing.check_rule(eig, _random(3, 3, dtype=dtype), modes=("hvp",))


def test_left_and_right_eigenvectors():
    # dl = y^H dA x / (y^H x), with both vectors from LAPACK.
    A, dA = _random(4, 4), _random(4, 4)
    l, Y, X = scipy.linalg.eig(A, left=True, right=True)
    expected = np.sum(Y.conj() * (dA @ X), axis=0) / np.sum(Y.conj() * X, axis=0)
    values, rates = jax.jit(lambda A, dA: jax.jvp(lambda A: eig(A).eigenvalues, (A,), (dA,)))(A, dA)
    np.testing.assert_allclose(values, l, rtol=1e-12)
    np.testing.assert_allclose(rates, expected, rtol=1e-11)


def test_of_a_hermitian_matrix():
    # There the vectors are those of eigh, in another order.
    H = _random(3, 3)
    H = H + H.conj().T
    w, U = np.linalg.eigh(H)
    dH = _random(3, 3)
    (l, V), (dl, _) = jax.jit(lambda H, dH: jax.jvp(eig, (H,), (dH,)))(H, dH)
    order = np.argsort(l.real)
    np.testing.assert_allclose(l[order], w, rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.abs(U.conj().T @ V[:, order]), np.eye(3), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dl[order], np.diag(U.conj().T @ dH @ U), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_real_gradient_of_the_dtype_of_the_matrix():
    for dtype in (np.float32, np.complex64):
        loss = lambda A: jnp.sum(jnp.abs(eig(A).eigenvectors + eig(A).eigenvalues[None, :]) ** 2)
        g = jax.jit(jax.grad(loss))(_random(3, 3, dtype=dtype))
        assert g.dtype == dtype and np.isfinite(g).all()


@pytest.mark.slow
def test_vmap():
    A, dA = _random(3, 3, 3), _random(3, 3, 3)
    push = lambda A, dA: jax.jvp(eig, (A,), (dA,))
    batched, mapped = jax.jit(push)(A, dA), jax.jit(jax.vmap(push))(A, dA)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12), batched, mapped
    )


def test_a_batch_of_none():
    assert eig(jnp.zeros((0, 2, 2))).eigenvalues.shape == (0, 2)


# Equal eigenvalues.


def _of_block(A: Any) -> tuple[jax.Array, jax.Array]:
    """What the eigenvalues near 1 determine: their projector and their sum."""
    l, V = eig(A)
    inside = jnp.abs(l - 1) < 0.5
    return (V * inside[None, :]) @ jnp.linalg.inv(V), jnp.sum(jnp.where(inside, l, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "A",
    [
        _with_form(np.diag([1, 1, 2j, -1])),
        pytest.param(np.diag([1.0, 1.0, 2.0, -1.0]), marks=pytest.mark.slow),
    ],
)
def test_projectors_and_sums_of_blocks(A: np.ndarray):
    cd.testing.check_rule(_of_block, A, modes=("jvp", "vjp", "hvp"))


@pytest.mark.slow
def test_no_gradient_where_the_eigenvalues_of_a_block_are_told_apart():
    A = jnp.asarray(_with_form(np.diag([1, 1, 2j])))

    def by_parts(A: Any) -> jax.Array:
        l, V = eig(A)
        return ((V * jnp.exp(l)[None, :]) @ jnp.linalg.inv(V))[0, 1].real

    weighted = lambda A: jnp.sum(jnp.arange(3.0) * eig(A).eigenvalues.real)
    for f in (by_parts, weighted):
        assert np.isnan(jax.jit(jax.grad(f))(A)).all()


# Defective matrices.


JORDAN = {
    "two": np.array([[1.0, 1.0], [0.0, 1.0]]),
    "two of three": np.array([[2.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -1.0]]),
    "three": np.diag([3.0, 3.0, 3.0]) + np.diag([1.0, 1.0], 1),
    "nilpotent": np.diag([1.0, 1.0, 1.0], 1),
}


@pytest.mark.parametrize("dtype", [np.float64, np.complex64])
@pytest.mark.parametrize("name", JORDAN)
def test_raises_at_a_defective_matrix(name: str, dtype: Any):
    turned = scipy.linalg.expm(
        (lambda K: K - K.conj().T)(_random(*JORDAN[name].shape, dtype=dtype))
    )
    for A in (JORDAN[name], turned @ JORDAN[name] @ turned.conj().T):
        with pytest.raises(RuntimeError, match=r"eig: A is defective .* condition number"):
            jax.block_until_ready(decompose(A.astype(dtype)))


@pytest.mark.slow
def test_a_defective_matrix_of_a_batch_is_named():
    A = np.stack([np.eye(2), JORDAN["two"]])
    with pytest.raises(RuntimeError, match=r"matrix \[1\] of the batch: eig: A is defective"):
        eig(jnp.asarray(A))


def test_the_gradient_raises_too():
    loss = lambda A: jnp.sum(jnp.abs(eig(A).eigenvectors[0]))
    with pytest.raises(RuntimeError, match="defective"):
        jax.block_until_ready(jax.jit(jax.grad(loss))(JORDAN["two"]))


def test_what_is_not_normal_is_not_yet_defective():
    for dtype, slope in ((np.float64, 1e6), (np.float32, 50.0)):
        A = np.array([[1.0, slope], [0.0, 2.0]], dtype)
        np.testing.assert_allclose(decompose(A).eigenvalues, [1, 2], rtol=1e-5)


# What it costs, and what has no eigenvalues.


def test_a_derivative_takes_seven_products_and_no_second_decomposition():
    A = _random(4, 4)
    out = block_eig(A)
    programs = (
        lambda A: block_eig.tangent((A,), out, (A,)),
        lambda A: block_eig.adjoint((A,), out, out),
    )
    for program in programs:
        text = str(jax.make_jaxpr(program)(A))
        assert text.count("dot_general") == 7
        assert not any(name in text for name in ("= eig[", "= lu[", "= svd[", "triangular_solve"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.complex64])
def test_no_number_comes_of_nan_or_infinity(dtype: Any):
    A = _random(3, 3, 3, dtype=dtype)
    A[0, 1, 0], A[1, 2, 1] = np.nan, np.inf
    pull = lambda A: jax.grad(lambda A: jnp.sum(jnp.abs(eig(A).eigenvectors[:, 0])))(A)
    push = lambda A: jax.jvp(eig, (A,), (jnp.ones_like(A),))
    for result in (*jax.tree.leaves(jax.jit(push)(A)), jax.jit(pull)(A)):
        assert np.isnan(result[:2]).all()
        assert np.isfinite(result[2]).all()


@pytest.mark.parametrize(
    "A, error",
    [
        (jnp.ones((2, 3)), ValueError),
        (jnp.ones((0, 0)), ValueError),
        (jnp.eye(2, dtype=int), TypeError),
    ],
)
def test_what_has_no_eigenvalues(A: Any, error: type[Exception]):
    # Where annotations are checked, they may say it first: see the function behind them.
    with pytest.raises((error, TypeError)):
        eig(A)
    with pytest.raises(error, match="eig: A must"):
        eig.__wrapped__(A)
