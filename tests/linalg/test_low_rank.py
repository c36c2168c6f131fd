"""The Fréchet derivative in directions of low rank, and the polynomials behind it, against SciPy."""

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.special

from cdiffeq.linalg._expm import _CHEBYSHEV, _TAYLOR, _hankel, exponential

N = 16
RNG = np.random.default_rng(5)


def skew(*shape, norm, dtype=complex):
    A = RNG.normal(size=(*shape, N, N)) + 1j * RNG.normal(size=(*shape, N, N))
    A = A - np.swapaxes(A.conj(), -1, -2)
    return (norm * A / np.linalg.norm(A, 2, axis=(-2, -1), keepdims=True)).astype(dtype)


def vectors(*shape, rank, dtype=complex):
    return (RNG.normal(size=(*shape, N, rank)) + 1j * RNG.normal(size=(*shape, N, rank))).astype(
        dtype
    )


def expected(A, y, x):
    A, y, x = (np.asarray(a, complex) for a in (A, y, x))
    return scipy.linalg.expm_frechet(A.conj().T, y @ x.conj().T, compute_expm=False)


@jax.jit
def adjoint_outer(A, y, x):
    return exponential(A, skew=True).adjoint_outer(y, x)


@pytest.mark.parametrize("rank", [1, 2, 3])  # 3 is too many for vectors to pay
@pytest.mark.parametrize("norm", [0.0, 0.3, 1.5, 6.0])  # the last needs squarings
def test_outer_products(norm, rank):
    A, y, x = skew(norm=norm), vectors(rank=rank), vectors(rank=rank)
    want = expected(A, y, x)
    error = np.max(np.abs(adjoint_outer(A, y, x) - want)) / np.max(np.abs(want))
    assert error < 1e-14 * max(norm, 1)


@pytest.mark.slow
def test_a_batch_of_different_norms():
    norms = [0.1, 1.0, 20.0]
    A = np.stack([skew(norm=norm) for norm in norms])
    y, x = vectors(3, rank=1), vectors(3, rank=1)
    want = np.stack([expected(*each) for each in zip(A, y, x, strict=True)])
    for got in (adjoint_outer(A, y, x), jax.vmap(adjoint_outer)(A, y, x)):
        assert np.max(np.abs(got - want)) < 2e-13 * np.max(np.abs(want))


def test_single_precision():
    A, y, x = skew(norm=2.0, dtype="c8"), vectors(rank=1, dtype="c8"), vectors(rank=1, dtype="c8")
    got, want = adjoint_outer(A, y, x), expected(A, y, x)
    assert got.dtype == np.complex64
    assert np.max(np.abs(got - want)) < 1e-5 * np.max(np.abs(want))


def test_the_taylor_polynomial():
    # (-1)^a c_(a + b + 1) in row a: the first row holds c_1 ... c_18.
    c = _hankel(_TAYLOR)[0]
    np.testing.assert_allclose(
        c, [1 / scipy.special.factorial(k) for k in range(1, 19)], rtol=2e-13
    )


def test_the_chebyshev_polynomial():
    # exp(i theta s) = J_0(theta) + 2 sum_k i^k J_k(theta) T_k(s), cut after k = 18.
    theta = 1.9
    c = np.concatenate([[1.0], _hankel(_CHEBYSHEV)[0]])
    s = np.cos(np.pi * (np.arange(40) + 0.5) / 40)
    weights = 2 * 1j ** np.arange(19) * scipy.special.jv(np.arange(19), theta)
    weights[0] /= 2
    want = np.polynomial.chebyshev.chebval(s, weights)
    got = np.polynomial.polynomial.polyval(1j * theta * s, c)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-15)
    # The cut is at 6e-18 where the Taylor polynomial of this degree is at 2e-12.
    exact, taylor = np.exp(1j * theta * s), np.concatenate([[1.0], _hankel(_TAYLOR)[0]])
    assert np.max(np.abs(got - exact)) < 3e-15
    assert theta**19 / scipy.special.factorial(19) > 1e-12
    assert np.max(np.abs(np.polynomial.polynomial.polyval(1j * theta * s, taylor) - exact)) > 5e-13
