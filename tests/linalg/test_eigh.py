"""Eigenvalues and eigenvectors of Hermitian matrices, their derivatives, and equal eigenvalues."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.linalg._eigh import block_eigh, eigh
from tests.linalg.common import DTYPES, random_array

RNG = np.random.default_rng(1)


# Most of the time goes into compiling programs that run once.
decompose = jax.jit(eigh)
push = jax.jit(lambda H, dH: jax.jvp(eigh, (H,), (dH,)))


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test alone and among others."""
    global RNG
    RNG = np.random.default_rng(1)  # not 0, of which check_rule makes its directions


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _with_spectrum(w: Any, dtype: Any = np.complex128) -> np.ndarray:
    """A Hermitian matrix with random eigenvectors: its entries carry rounding errors."""
    w = np.asarray(w)
    Q = np.linalg.qr(_random(len(w), len(w), dtype=np.result_type(dtype, np.float64)))[0]
    return ((Q * w) @ Q.conj().T).astype(dtype)


def _hermitian(A: np.ndarray) -> np.ndarray:
    return (A + A.conj().swapaxes(-1, -2)) / 2


DEGENERATE = {
    "a double level": np.diag([1.0, 1.0, 2.0]),
    "with rounding errors": _with_spectrum([-1.0, -1.0, 2.0, 3.0, 3.0]),
    "two double levels": np.diag([0.5, 2.0, 0.5, 2.0]).astype(complex),
    "of rank one": np.ones((3, 3)),
}


# Values.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [(), (2, 2)])
def test_of_the_hermitian_part(batch: tuple[int, ...], dtype: Any):
    A = _random(*batch, 4, 4, dtype=dtype)
    w, U = decompose(A)
    assert w.shape == (*batch, 4) and U.shape == (*batch, 4, 4)
    assert U.dtype == dtype and w.dtype == np.finfo(dtype).dtype
    tol = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(w, np.linalg.eigvalsh(_hermitian(A)), rtol=0, atol=tol * 4)
    np.testing.assert_allclose(_hermitian(A) @ U, U * w[..., None, :], rtol=0, atol=tol * 4)
    identity = np.broadcast_to(np.eye(4), U.shape)
    np.testing.assert_allclose(U.conj().swapaxes(-1, -2) @ U, identity, rtol=0, atol=tol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_pivot_of_each_vector_is_real_and_positive(dtype: Any):
    U = np.asarray(decompose(_random(50, 5, 5, dtype=dtype)).eigenvectors)
    size = np.abs(U)
    first = np.argmax(size > 0.55 * size.max(axis=1, keepdims=True), axis=1)[:, None]
    pivot = np.take_along_axis(U, first, axis=1)
    assert (pivot.real > 0).all()
    assert (np.abs(pivot.imag) <= np.finfo(dtype).eps).all()
    assert (np.abs(pivot) > 0.5 * size.max(axis=1, keepdims=True)).all()


def test_entries_alike_in_modulus_do_not_disturb_the_phase():
    # A ring: its vectors are plane waves. Every change keeps the first entry the pivot.
    n = 5
    ring = np.roll(np.eye(n), 1, axis=0) * np.exp(0.3j)
    H = ring + ring.conj().T
    waves = decompose(H).eigenvectors
    for _ in range(5):
        moved = decompose(H + 1e-10 * _random(n, n)).eigenvectors
        np.testing.assert_allclose(moved, waves, rtol=0, atol=1e-8)


# Derivatives.


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_finite_differences(dtype: Any):
    def f(H: Any) -> Any:
        w, U = eigh(H)
        # Steps in single precision are long, and a phase may jump on the way: see what doesn't know it.
        return w, (U[:, :, None] * U[:, None].conj() if np.finfo(dtype).bits == 32 else U)

    cd.testing.check_rule(f, _random(2, 3, 3, dtype=dtype))


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_second_derivatives_against_finite_differences(dtype: Any):
    cd.testing.check_rule(eigh, _random(3, 3, dtype=dtype), modes=("hvp",))


def test_the_textbook_formula():
    # dw = diag(U^H dH U); of the vectors what doesn't depend on phases: |<u_k| o |u_k>|.
    H, dH = _hermitian(_random(4, 4)), _hermitian(_random(4, 4))
    w, U = np.linalg.eigh(H)
    M = U.conj().T @ dH @ U
    F = 1 / (w[None, :] - w[:, None] + np.eye(4)) - np.eye(4)
    dU = U @ (F * M)
    o = _hermitian(_random(4, 4))
    expectation = lambda U: jnp.sum(U.conj() * (o @ U), axis=0).real
    observe = lambda H: (lambda w, U: (w, expectation(U)))(*eigh(H))
    dw, dexpectation = jax.jit(lambda H, dH: jax.jvp(observe, (H,), (dH,))[1])(H, dH)
    np.testing.assert_allclose(dw, np.diag(M).real, rtol=1e-12)
    np.testing.assert_allclose(
        dexpectation, 2 * np.sum(U.conj() * (o @ dU), axis=0).real, rtol=1e-11
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_hermitian_and_of_the_dtype_of_the_matrix(dtype: Any):
    H = _hermitian(_random(3, 3, dtype=dtype))
    loss = lambda H: jnp.sum(jnp.abs(eigh(H).eigenvectors[0] + eigh(H).eigenvalues) ** 2)
    g = jax.jit(jax.grad(loss))(H)
    assert g.dtype == dtype
    np.testing.assert_allclose(g, g.conj().T, rtol=0, atol=10 * np.finfo(dtype).eps)


def test_one_matrix_at_a_time_under_vmap_and_jit():
    H, dH = _random(3, 4, 4), _random(3, 4, 4)
    batched, mapped = push(H, dH), jax.jit(jax.vmap(push))(H, dH)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12), batched, mapped
    )


def test_a_batch_of_none():
    assert eigh(jnp.zeros((0, 2, 2))).eigenvectors.shape == (0, 2, 2)


@pytest.mark.slow
def test_at_a_switch_of_the_pivot_only_the_phase_jumps():
    # Along t the first entry of the lower vector falls below 0.55 of the second, which is real from then
    # on. Both sides agree in all that phases leave alone, and each has its own derivative.
    H = lambda t: jnp.array([[-t, -0.5j], [0.5j, t]])
    switch = (0.55**2 - 1) / (2 * 0.55) / 2  # where the ratio of the two entries is 0.55
    lower = jax.jit(lambda t: eigh(H(t)).eigenvectors[:, 0])
    before, after = lower(switch + 1e-9), lower(switch - 1e-9)
    assert before[0].imag == 0 and after[1].imag == 0
    assert np.linalg.norm(before - after) > 0.5
    np.testing.assert_allclose(
        np.outer(before, before.conj()), np.outer(after, after.conj()), rtol=0, atol=1e-8
    )
    for t in (switch + 1e-3, switch - 1e-3):
        cd.testing.check_rule(lambda s, t=t: lower(t + 1e-5 * s), 0.1)


# Equal eigenvalues.


def _of_blocks(H: Any) -> tuple[jax.Array, ...]:
    """What the lowest block determines: its projector and the sum of its eigenvalues."""
    w, U = eigh(H)
    inside = w < 1.25 * jnp.mean(w) - 0.25 * jnp.max(w)
    return (U * inside[None, :]) @ U.conj().T, jnp.sum(jnp.where(inside, w, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", DEGENERATE)
def test_projectors_and_sums_of_blocks(name: str):
    cd.testing.check_rule(_of_blocks, DEGENERATE[name], modes=("jvp", "vjp", "hvp"))


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_projectors_and_sums_of_blocks_in_single_precision(dtype: Any):
    cd.testing.check_rule(_of_blocks, _with_spectrum([-1, -1, 2, 2], dtype))


def test_symmetric_functions_of_a_block():
    cd.testing.check_rule(lambda H: jnp.sum(eigh(H).eigenvalues ** 3), DEGENERATE["a double level"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a double level", "of rank one"])
def test_no_gradient_where_the_eigenvalues_of_a_block_are_told_apart(name: str):
    H = jnp.asarray(DEGENERATE[name]) + 0j
    o = jnp.asarray(_random(3, 3))

    def by_parts(H: Any) -> jax.Array:
        w, U = eigh(H)
        return jnp.sum(o * ((U * jnp.exp(w)[None, :]) @ U.conj().T)).real

    for f in (by_parts, lambda H: eigh(H).eigenvalues[1]):
        assert np.isnan(jax.jit(jax.grad(f))(H)).all()
    # Nor a second derivative, of what has one but not through the eigenvalues.
    squares = lambda H: jnp.sum(eigh(H).eigenvalues ** 2)
    hvp = jax.jit(lambda H, E: jax.jvp(jax.grad(squares), (H,), (E,)))
    gradient, second = hvp(H, o)
    np.testing.assert_allclose(gradient, 2 * H.conj(), rtol=0, atol=1e-13)
    assert np.isnan(second).all()


def test_a_projector_that_knows_its_derivative():
    # P = U_b U_b^H moves by sum over b and not b of (P dH Q_c + h.c.) / (w_b - w_c).
    H = np.diag([1.0, 1.0, 2.0, 4.0]).astype(complex)
    dH = _hermitian(_random(4, 4))
    expected = np.zeros((4, 4), complex)
    expected[:2, 2:] = dH[:2, 2:] / (1 - np.array([2, 4]))
    expected = expected + expected.conj().T
    U, dU = (x.eigenvectors[:, :2] for x in push(H, dH))
    dP = dU @ U.conj().T
    np.testing.assert_allclose(dP + dP.conj().T, expected, rtol=0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(
    "outer, inner",
    [
        (jax.jacrev, jax.jacrev),
        pytest.param(jax.jacfwd, jax.jacrev, marks=pytest.mark.slow),
        pytest.param(jax.jacrev, jax.jacfwd, marks=pytest.mark.slow),
    ],
)
def test_every_second_derivative_of_a_projector_at_a_double_level(outer: Any, inner: Any):
    H, A, B, G = DEGENERATE["with rounding errors"], *(_random(5, 5) for _ in range(3))

    def loss(x: Any) -> jax.Array:
        return jnp.sum(jnp.abs(_of_blocks(H + x[0] * A + x[1] * B)[0] - G) ** 2)

    h = 1e-3
    gradient = jax.jit(jax.grad(loss))
    difference = lambda e: (
        (8 * (gradient(h * e) - gradient(-h * e)) - gradient(2 * h * e) + gradient(-2 * h * e))
        / (12 * h)
    )
    expected = np.stack([difference(e) for e in jnp.eye(2)])
    np.testing.assert_allclose(jax.jit(outer(inner(loss)))(jnp.zeros(2)), expected, rtol=1e-7)


def test_where_jax_gives_nan():
    """TRAPS: `eigh` at degenerate eigenvalues, even inside a smooth function: NaN gradient."""
    H, o = jnp.diag(jnp.array([1.0, 1.0, 2.0]) + 0j), _hermitian(_random(3, 3))

    def occupied(eigh: Any) -> Any:
        def energy(H: Any) -> jax.Array:
            U = eigh(H)[1][:, :2]
            return jnp.sum(o * (U @ U.conj().T).T).real

        return energy

    theirs, ours = (jax.jit(jax.grad(occupied(f)))(H) for f in (jnp.linalg.eigh, eigh))
    assert np.isnan(theirs).any()
    expected = np.zeros((3, 3), complex)  # d tr(o P) = 2 Re sum (o P dH Q) / (w_b - w_c)
    expected[:2, 2] = 2 * o[:2, 2] / (1 - 2)
    np.testing.assert_allclose(ours, _hermitian(expected).conj(), rtol=0, atol=1e-14)


@pytest.mark.slow
def test_raw_vectors_agree_with_finite_differences():
    """TRAPS: `eigh` raw vectors: a gauge choice, not comparable with finite differences."""
    H = _random(3, 3)
    cd.testing.check_rule(lambda H: eigh(H).eigenvectors, H)
    with pytest.raises(AssertionError, match="mistake"):
        cd.testing.check_rule(lambda H: jnp.linalg.eigh(H)[1], H)


# What it costs, and what has no eigenvalues.


def test_a_derivative_takes_five_products_and_no_second_decomposition():
    H = _random(4, 4)
    out = block_eigh(H)
    programs = (
        lambda H: block_eigh.tangent((H,), out, (H,)),
        lambda H: block_eigh.adjoint((H,), out, out),
    )
    for program in programs:
        text = str(jax.make_jaxpr(program)(H))
        assert text.count("dot_general") == 5
        assert "eigh" not in text


@pytest.mark.parametrize("dtype", [np.float64, np.complex64])
def test_no_number_comes_of_nan_or_infinity(dtype: Any):
    H = np.stack([np.eye(3), np.eye(3), np.diag([1.0, 2.0, 3.0])]).astype(dtype)
    H[0, 1, 0], H[1, 2, 2] = np.nan, np.inf
    pull = lambda H: jax.vjp(eigh, H)[1](eigh(jnp.ones_like(H)))[0]
    for result in (*jax.tree.leaves(push(H, np.ones_like(H))), jax.jit(pull)(H)):
        assert np.isnan(result[:2]).all()
        assert np.isfinite(result[2]).all()


@pytest.mark.parametrize(
    "H, error",
    [
        (np.ones((2, 3)), ValueError),
        (np.ones((0, 0)), ValueError),
        (np.eye(2, dtype=int), TypeError),
    ],
)
def test_what_has_no_eigenvalues(H: np.ndarray, error: type[Exception]):
    # Where annotations are checked, they may say it first: see the function behind them.
    with pytest.raises((error, TypeError)):
        eigh(jnp.asarray(H))
    with pytest.raises(error, match="eigh: H must"):
        eigh.__wrapped__(jnp.asarray(H))
