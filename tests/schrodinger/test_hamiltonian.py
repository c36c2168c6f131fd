"""Hamiltonians: their matrices at a time, their arithmetic, what they accept and what they refuse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qutip
import scipy.sparse

import cdiffeq as cd
from tests.schrodinger.reference import X, Y, Z, hermitian, random

RNG = np.random.default_rng(1)
A, B = hermitian(RNG, 3), hermitian(RNG, 3)
T = jnp.asarray(0.3)


class ArrayLike:
    def __array__(self, dtype=None, copy=None):
        return B


@pytest.mark.parametrize(
    "given",
    [
        B,
        B.tolist(),
        jnp.asarray(B),
        ArrayLike(),
        scipy.sparse.csr_matrix(B),
        scipy.sparse.coo_array(B),
        scipy.sparse.dia_matrix(B),
        qutip.Qobj(B),
        qutip.Qobj(B).to("CSR"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_dense_inputs(given):
    for H in (
        cd.constant(given),
        cd.pwc([0.0, 1.0], [1.0], given),
        cd.modulated(lambda t, p: 1.0, given),
        cd.constant(np.zeros((3, 3))) + given,
    ):
        assert H.n == 3
        np.testing.assert_array_equal(H(T), B)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_dtypes_stay(dtype):
    assert cd.constant(X.astype(dtype))(np.float32(0)).dtype == dtype
    assert cd.constant([[1, 0], [0, 2]])(0.0).dtype == jnp.float64


def test_each_kind_is_its_definition():
    p = {"w": 1.7}
    assert jnp.array_equal(cd.constant(A)(T), A)
    H = cd.modulated(lambda t, p: jnp.exp(1j * p["w"] * t), A, p)
    np.testing.assert_allclose(H(T), np.exp(1.7j * 0.3) * A, rtol=1e-15)
    H = cd.timecallable(lambda t, p: jnp.cos(p["w"] * t) * A, p)
    np.testing.assert_allclose(H(T), np.cos(1.7 * 0.3) * A, rtol=1e-15)


def test_pwc_is_the_slice_to_the_right_and_zero_outside():
    H = cd.pwc([0.0, 1.0, 3.0], [2.0, -1j], A)
    times = [-1e-9, 0.0, 0.999, 1.0, 2.9, 3.0, 4.0]
    for t, u in zip(times, [0, 2, 2, -1j, -1j, 0, 0], strict=True):
        np.testing.assert_array_equal(H(t), u * A)


def test_arithmetic():
    a, b = cd.modulated(lambda t, p: jnp.cos(t), A), cd.pwc([0.0, 1.0], [0.7], B)
    ca, cb = np.cos(0.3) * A, 0.7 * B
    for H, expected in [
        (a + b, ca + cb),
        (a - b, ca - cb),
        (-a, -ca),
        (2 * a, 2 * ca),
        (a * 2j, 2j * ca),
        (np.float64(3) * a, 3 * ca),
        (np.array(3.0) * a, 3 * ca),
        (jnp.asarray(3 + 1j) * a, (3 + 1j) * ca),
        (a / 4, ca / 4),
        (sum([a, b, a]), 2 * ca + cb),
        (a + B, ca + B),
        (B + a, ca + B),
        (B - a, B - ca),
        (a - B, ca - B),
        (2 * (a + 3 * b) - 0.5 * B, 2 * ca + 6 * cb - 0.5 * B),
        (2 * cd.timecallable(lambda t, p: t * jnp.asarray(A)) * 1j, 2j * 0.3 * A),
    ]:
        assert isinstance(H, cd.Hamiltonian)
        np.testing.assert_allclose(H(T), expected, rtol=1e-15, atol=1e-15)


def test_prints_what_it_is():
    def sweep(t, p):
        return t

    H = cd.constant(X) + cd.pwc([0.0, 1.0], [1j], Y) + cd.modulated(sweep, Z)
    text = repr(H)
    for part in ("n=2", "constant", "float64[2, 2]", "pwc", "complex128", "modulated", "sweep"):
        assert part in text
    # Printing must not fail where there are no numbers, or a function that does not work.
    assert "pwc" in repr(eqx.filter(H, lambda leaf: False))
    assert "timecallable" in repr(cd.timecallable(lambda t, p: 1 / 0))


def test_every_number_is_a_leaf():
    H = 2.0 * cd.constant(A) + cd.pwc([0.0, 1.0], [0.5], B)
    H = H + cd.modulated(lambda t, p: p["w"] * t ** p["k"], A, {"w": 1.0, "k": 2})
    H = H + cd.timecallable(lambda t, p: p * jnp.eye(3), 1.0)
    assert len(jax.tree.leaves(eqx.filter(H, eqx.is_inexact_array))) == 8
    # An integer stays an integer, for functions that count with it.
    assert H.terms[2].params["k"] == 2 and isinstance(H.terms[2].params["k"], int)


def test_jit_grad_and_vmap_go_through():
    def H(u):
        return cd.constant(A) + cd.pwc([0.0, 1.0], u, B) + cd.modulated(lambda t, p: p * t, B, u[0])

    u = jnp.array([0.5])
    expected = A + (0.5 + 0.15) * B
    np.testing.assert_allclose(jax.jit(lambda u: H(u)(T))(u), expected, rtol=1e-15)
    np.testing.assert_allclose(jax.jit(lambda H: H(T))(cd.constant(A)), A)
    weights = random(RNG, 3, 3)
    grad = jax.grad(lambda u: jnp.sum(weights * H(u)(T)).real)(u)
    np.testing.assert_allclose(grad, [1.3 * np.sum(weights * B).real], rtol=1e-14)
    many = jax.vmap(lambda u: H(u)(T))(jnp.array([[0.5], [1.0]]))
    np.testing.assert_allclose(many[1], A + 1.3 * B, rtol=1e-14)


def test_functions_with_closures_are_differentiated():
    def H(w):
        return cd.modulated(lambda t, p: jnp.cos(w * t), A)

    grad = jax.grad(lambda w: H(w)(T)[0, 0].real)(2.0)
    np.testing.assert_allclose(grad, -0.3 * np.sin(0.6) * A[0, 0].real, rtol=1e-14)


NAN = np.array([[0.0, np.nan], [np.nan, 0.0]])
# The type checker that tests run under may be first to say it.
CALLABLE = "fn must be a function|parameter 'fn'"


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: cd.constant(np.ones((2, 3))), ValueError, r"square.*\(2, 3\)"),
        (lambda: cd.constant(np.ones(3)), ValueError, r"square.*\(3,\)"),
        (lambda: cd.constant(np.ones((0, 0))), ValueError, "square"),
        (lambda: cd.constant(1.0), ValueError, "square"),
        (lambda: cd.constant(scipy.sparse.csr_matrix((2, 3))), ValueError, "square"),
        (lambda: cd.constant(NAN), ValueError, r"H0.*finite.*\[0, 1\]"),
        (lambda: cd.constant([[np.inf, 0], [0, 0]]), ValueError, "H0.*finite"),
        (lambda: cd.constant("X"), TypeError, "H0 must be an array"),
        (lambda: cd.pwc([0, 1], [1.0], NAN), ValueError, "H1.*finite"),
        (lambda: cd.pwc([0, 1], [1.0], np.ones((2, 3))), ValueError, "H1.*square"),
        (lambda: cd.pwc([0, 1], [np.nan], X), ValueError, r"values.*finite.*\[0\]"),
        (lambda: cd.pwc([0, np.inf], [1.0], X), ValueError, r"edges.*finite.*\[1\]"),
        (lambda: cd.pwc([0, 2, 1], [1.0, 1.0], X), ValueError, r"increase.*edges\[1\] = 2"),
        (lambda: cd.pwc([0, 1, 1], [1.0, 1.0], X), ValueError, r"increase.*edges\[1\] = 1"),
        (lambda: cd.pwc([0, 1, 2], [1.0], X), ValueError, r"3 edges bound 2 slices.*\(1,\)"),
        (lambda: cd.pwc([0, 1], [1.0, 2.0], X), ValueError, r"2 edges bound 1 slices.*\(2,\)"),
        (lambda: cd.pwc([0, 1], 1.0, X), ValueError, "values must have shape"),
        (lambda: cd.pwc([0.0], [], X), ValueError, "at least 2"),
        (lambda: cd.pwc([[0.0, 1.0]], [1.0], X), ValueError, "vector"),
        (lambda: cd.pwc([0j, 1j], [1.0], X), TypeError, "edges must be real"),
        (lambda: cd.modulated(1.0, X), TypeError, CALLABLE),
        (lambda: cd.modulated(lambda t, p: jnp.ones(2), X), TypeError, "must return a number"),
        (lambda: cd.timecallable(X), TypeError, CALLABLE),
        (lambda: cd.timecallable(lambda t, p: jnp.ones((2, 3))).n, ValueError, "square"),
        (lambda: (cd.constant(X) + cd.constant(A)).n, ValueError, "differ in dimension"),
        (lambda: cd.constant(X) * np.ones(2), TypeError, r"multiplied by numbers.*\(2,\)"),
        (lambda: np.ones((2, 2)) * cd.constant(X), TypeError, "multiplied by numbers"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()
