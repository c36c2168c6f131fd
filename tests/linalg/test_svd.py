"""Singular values and vectors, their derivatives, and equal or vanishing singular values."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.linalg._svd import block_svd, svd
from tests.linalg.common import DTYPES, random_array

RNG = np.random.default_rng(1)
SHAPES = [(4, 3), (3, 4), (3, 3)]


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test alone and among others."""
    global RNG
    RNG = np.random.default_rng(1)  # not 0, of which check_rule makes its directions


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _with_values(m: int, n: int, s: list[float], dtype: Any = np.complex128) -> np.ndarray:
    """A matrix with random singular vectors: its entries carry rounding errors."""
    Q = [np.linalg.qr(_random(rows, len(s), dtype=dtype))[0] for rows in (m, n)]
    return ((Q[0] * np.array(s)) @ Q[1].conj().T).astype(dtype)


def _adjoint(A: Any) -> Any:
    return A.conj().swapaxes(-1, -2)


# Values.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 2, 5, 2)])
def test_of_any_shape(shape: tuple[int, ...], dtype: Any):
    A = _random(*shape, dtype=dtype)
    *batch, m, n = shape
    k = min(m, n)
    U, S, Vh = jax.jit(svd)(A)
    assert U.shape == (*batch, m, k) and S.shape == (*batch, k) and Vh.shape == (*batch, k, n)
    assert U.dtype == Vh.dtype == dtype and S.dtype == np.finfo(dtype).dtype
    tol = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(S, np.linalg.svd(A, compute_uv=False), rtol=0, atol=tol)
    np.testing.assert_allclose((U * S[..., None, :]) @ Vh, A, rtol=0, atol=tol)
    for Q in (U, _adjoint(Vh)):
        np.testing.assert_allclose(
            _adjoint(Q) @ Q, np.broadcast_to(np.eye(k), (*batch, k, k)), rtol=0, atol=tol
        )


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_the_pivot_of_each_left_vector_is_real_and_positive(dtype: Any):
    U = np.asarray(jax.jit(svd)(_random(50, 4, 3, dtype=dtype)).U)
    size = np.abs(U)
    first = np.argmax(size > 0.55 * size.max(axis=1, keepdims=True), axis=1)[:, None]
    pivot = np.take_along_axis(U, first, axis=1)
    assert (pivot.real > 0).all() and (np.abs(pivot.imag) <= np.finfo(dtype).eps).all()


# Derivatives.


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, dtype", [*(((4, 3), d) for d in DTYPES), ((3, 4), np.complex128), ((3, 3), np.float64)]
)
def test_against_finite_differences(shape: tuple[int, ...], dtype: Any):
    def f(A: Any) -> Any:
        U, S, Vh = svd(A)
        # Steps in single precision are long, and a phase may jump on the way: see what doesn't know it.
        single = np.finfo(dtype).bits == 32
        return ([U[:, :1] * Vh[:1], U[:, 2:] * Vh[2:]] if single else [U, Vh]), S

    cd.testing.check_rule(f, _with_values(*shape, [3.0, 1.5, 0.5], dtype))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(4, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in SHAPES)]
)
def test_second_derivatives_against_finite_differences(shape: tuple[int, ...]):
    cd.testing.check_rule(svd, _random(*shape), modes=("hvp",))


@pytest.mark.slow
def test_batches_and_vmap():
    A, dA = _random(3, 4, 2), _random(3, 4, 2)
    push = lambda A, dA: jax.jvp(svd, (A,), (dA,))
    batched, mapped = jax.jit(push)(A, dA), jax.jit(jax.vmap(push))(A, dA)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12), batched, mapped
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_matrix_from_its_parts(shape: tuple[int, ...]):
    A, dA = _random(*shape), _random(*shape)
    product = lambda A: (lambda U, S, Vh: (U * S[None, :]) @ Vh)(*svd(A))
    np.testing.assert_allclose(
        jax.jit(lambda A, dA: jax.jvp(product, (A,), (dA,))[1])(A, dA), dA, rtol=0, atol=1e-12
    )


def test_small_singular_values_beside_large_ones():
    # 1 / (s_j^2 - s_i^2), where both are 1e-9, would be 1e18 times the rounding of 1.
    A = _with_values(3, 3, [1.0, 2e-9, 1e-9])
    dA = 1e-9 * _random(3, 3)
    nearest = lambda A: (lambda U, S, Vh: U @ Vh)(*svd(A))
    tangent = jax.jit(lambda A, dA: jax.jvp(nearest, (A,), (dA,))[1])(A, dA)
    # X = U^H d(U V^H) V solves X S + S X = 2 skew(U^H dA V).
    U, s, Vh = np.linalg.svd(A)
    K = U.conj().T @ dA @ Vh.conj().T
    K = (K - K.conj().T) / (s[:, None] + s[None, :])
    np.testing.assert_allclose(tangent, U @ K @ Vh, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_raw_vectors_agree_with_finite_differences():
    """TRAPS: `svd` raw vectors: a gauge choice, not comparable with finite differences."""
    A = _random(4, 2)
    with pytest.raises(AssertionError, match="mistake"):
        cd.testing.check_rule(lambda A: jnp.linalg.svd(A, full_matrices=False), A)
    cd.testing.check_rule(svd, A)


@pytest.mark.slow
def test_a_real_gradient_of_the_dtype_of_the_matrix():
    for dtype in (np.float32, np.complex64):
        loss = lambda A: jnp.sum(jnp.abs(svd(A).U + 1j * svd(A).S[None, :]) ** 3)
        assert jax.jit(jax.grad(loss))(_random(3, 2, dtype=dtype)).dtype == dtype


# Equal and vanishing singular values.


def _of_block(lo: int, hi: int) -> Any:
    """What the block lo to hi determines."""

    def of(A: Any) -> list[jax.Array]:
        U, S, Vh = svd(A)
        U, S, Vh = U[:, lo:hi], S[lo:hi], Vh[lo:hi]
        return [U @ _adjoint(U), _adjoint(Vh) @ Vh, U @ Vh, jnp.sum(S)]

    return of


BLOCKS = {
    "tall, the last two": ((4, 3), [2.0, 1.0, 1.0], 1, 3),
    "wide, the first two": ((3, 4), [2.0, 2.0, 1.0], 0, 2),
    "square, all": ((3, 3), [1.0, 1.0, 1.0], 0, 3),
    "beside a zero": ((4, 3), [1.0, 1.0, 0.0], 0, 2),
    "beside two zeros": ((3, 4), [2.0, 0.0, 0.0], 0, 1),
}


SLOW_BLOCKS = ("wide, the first two", "square, all", "beside two zeros")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(b, marks=pytest.mark.slow if b in SLOW_BLOCKS else ()) for b in BLOCKS],
)
def test_what_a_block_determines(name: str):
    shape, s, lo, hi = BLOCKS[name]
    second = () if 0 in s and shape[0] != shape[1] else ("hvp",)
    cd.testing.check_rule(_of_block(lo, hi), _with_values(*shape, s), modes=("jvp", "vjp", *second))


@pytest.mark.slow
def test_no_second_derivative_beside_zeros_of_a_matrix_that_is_not_square():
    A = _with_values(4, 3, [2.0, 1.0, 0.0])
    first = lambda A: jnp.sum(jnp.abs(svd(A).U[0, 0]) ** 4)
    gradient, second = jax.jit(lambda A: jax.jvp(jax.grad(first), (A,), (_random(4, 3),)))(A)
    assert np.isfinite(gradient).all()
    assert not np.isfinite(second).any()


@pytest.mark.slow
def test_projectors_of_null_vectors():
    of = lambda A: _of_block(1, 3)(A)[:2]
    cd.testing.check_rule(of, _with_values(3, 3, [2.0, 0.0, 0.0]), modes=("jvp", "vjp", "hvp"))
    right = lambda A: _of_block(2, 3)(A)[1]
    cd.testing.check_rule(right, _with_values(4, 3, [2.0, 1.0, 0.0]))


def test_symmetric_functions_with_zeros():
    cd.testing.check_rule(lambda A: jnp.sum(svd(A).S ** 2), _with_values(4, 3, [1.0, 1.0, 0.0]))


@pytest.mark.slow
@pytest.mark.parametrize("A", [np.eye(3), np.zeros((3, 2))])
def test_no_nan_where_the_block_is_not_told_apart(A: np.ndarray):
    """TRAPS of `eigh` at degenerate eigenvalues: `svd` has them too."""
    loss = lambda svd: lambda A: (lambda U, S, Vh: jnp.sum(S**2) + (U @ Vh)[0, 0] ** 2)(*svd(A))
    theirs = jax.grad(loss(lambda A: jnp.linalg.svd(A, full_matrices=False)))(A)
    assert not np.isfinite(theirs).all()
    assert np.isfinite(jax.jit(jax.grad(loss(svd)))(A)).all()


@pytest.mark.slow
def test_no_gradient_where_the_values_of_a_block_are_told_apart():
    A = jnp.asarray(_with_values(4, 3, [2.0, 1.0, 1.0]))
    by_parts = lambda A: (lambda U, S, Vh: ((U * S[None, :]) @ Vh)[0, 1].real)(*svd(A))
    for f in (by_parts, lambda A: svd(A).S[2]):
        assert np.isnan(jax.jit(jax.grad(f))(A)).all()


# What it costs, and what has no singular values.


@pytest.mark.slow
def test_a_derivative_takes_no_second_decomposition():
    A = _random(4, 3)
    out = block_svd(A)
    programs = (
        lambda A: block_svd.tangent((A,), out, (A,)),
        lambda A: block_svd.adjoint((A,), out, out),
    )
    for program in programs:
        text = str(jax.make_jaxpr(program)(A))
        assert text.count("dot_general") <= 12
        assert "svd" not in text


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.complex64])
def test_no_number_comes_of_nan_or_infinity(dtype: Any):
    A = _random(3, 3, 2, dtype=dtype)
    A[0, 1, 0], A[1, 2, 1] = np.nan, np.inf
    pull = lambda A: jax.vjp(svd, A)[1](svd(jnp.ones_like(A)))[0]
    push = lambda A: jax.jvp(svd, (A,), (jnp.ones_like(A),))
    for result in (*jax.tree.leaves(jax.jit(push)(A)), jax.jit(pull)(A)):
        assert np.isnan(result[:2]).all()
        assert np.isfinite(result[2]).all()


@pytest.mark.parametrize(
    "A, error",
    [
        (jnp.ones(3), ValueError),
        (jnp.ones((0, 2)), ValueError),
        (jnp.eye(2, dtype=int), TypeError),
        (jnp.eye(2, dtype=jnp.bfloat16), TypeError),
    ],
)
def test_what_has_no_singular_values(A: Any, error: type[Exception]):
    # Where annotations are checked, they may say it first: see the function behind them.
    with pytest.raises((error, TypeError)):
        svd(A)
    with pytest.raises(error, match="svd: A must be"):
        svd.__wrapped__(A)
