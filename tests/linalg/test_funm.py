"""Functions of Hermitian matrices against SciPy, and their derivatives at any spectrum."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import cdiffeq as cd
from cdiffeq.linalg._divided_differences import divided_difference
from cdiffeq.linalg._funm import derivative_of, funm, parameter_gradient
from tests.linalg.common import DTYPES, random_array

RNG = np.random.default_rng(1)
WAVE = lambda x: jnp.exp(-1j * x)


@pytest.fixture(autouse=True)
def _seed():
    """The same numbers for a test alone and among others."""
    global RNG
    RNG = np.random.default_rng(1)  # not 0, of which check_rule makes its directions


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _hermitian(A: np.ndarray) -> np.ndarray:
    return (A + A.conj().swapaxes(-1, -2)) / 2


def _with_spectrum(w: Any) -> np.ndarray:
    """A Hermitian matrix with random eigenvectors: its entries carry rounding errors."""
    Q = np.linalg.qr(_random(len(w), len(w)))[0]
    return (Q * np.asarray(w)) @ Q.conj().T


SPECTRA = {
    "far": [-1.0, 0.3, 1.4],
    "equal": [0.7, 0.7, 0.7],
    "equal and far": [-1.0, 0.5, 0.5],
    "close": [0.5, 0.5 + 1e-4, 0.5 + 1e-3],
    "closer than its rounding": [0.5, 0.5 + 1e-16, 0.5 + 3e-9],
    "zero": [0.0, 0.0, 0.0],
}
CLOSE = [pytest.param(name, marks=() if "equal" in name else pytest.mark.slow) for name in SPECTRA]


# Divided differences.


def _taylor(g: Callable[[int, float], complex], points: np.ndarray) -> complex:
    """f[points] of close points: sum over m of f^(k+m)(c) / (k+m)! h_m(points - c).

    h_m is the sum of all products of degree m; g(m, c) is f^(m)(c) / m!.
    """
    c, k = points.mean(), len(points) - 1
    h = np.zeros(25)
    h[0] = 1
    for d in points - c:
        for m in range(1, 25):
            h[m] += d * h[m - 1]
    return sum(g(k + m, c) * h[m] for m in range(25))


def _exponential(a: complex) -> tuple[Callable, Callable]:
    coefficient = lambda m, c: a**m * np.exp(a * c) / scipy.special.factorial(m)
    return lambda x: jnp.exp(a * x), coefficient


SMOOTH = {
    "exp(-ix)": _exponential(-1j),
    "exp(x)": _exponential(1.0),
    "exp(-30ix)": _exponential(-30j),
    "1/x": (lambda x: 1 / x, lambda m, c: (-1.0) ** m / c ** (m + 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("k", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_divided_differences_at_all_distances(name: str, k: int):
    # Against the Taylor series, which converges fast up to the distances here. The usual switch from the
    # quotient to f' would leave eps^(2/3) = 4e-11. Here quotients begin at about a third of the scale on
    # which f changes, and each order divides twice their rounding by that distance.
    f, coefficient = SMOOTH[name]
    scale = 30 if "30" in name else 1
    points = []
    for distance in [0.0, *10 ** np.arange(-15, -0.4, 0.25)]:
        for inside in ([0, 1, 0.5, 0.2], [0, 1, 1, 0], [0, 1, 1 - 1e-8, 1e-8]):
            points.append(0.9 + distance / scale * np.sort(inside[: k + 1]))
    points = np.array(points).T
    got = np.asarray(divided_difference(f, jnp.asarray(points)))
    expected = np.array([_taylor(coefficient, p) for p in points.T])
    error = np.abs(got - expected) / np.abs(expected)
    assert error.max() < 10**k * scale * np.finfo(float).eps


@pytest.mark.slow
def test_divided_differences_of_far_points_and_kinks():
    # What the integral's points miss, the quotient sees: a step, a kink, a pole between the points.
    x = jnp.array([[-1.0, -0.3], [1.0, 0.7]])
    for f in (jnp.sign, jnp.abs, lambda x: 1 / x, lambda x: jnp.tanh(1e4 * x)):
        quotient = (f(x[1]) - f(x[0])) / (x[1] - x[0])
        np.testing.assert_allclose(divided_difference(f, x), quotient, rtol=1e-14, atol=1e-15)


# Values.


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_scipy(dtype: Any):
    H = _random(3, 4, 4, dtype=dtype)
    got = jax.jit(lambda H: (funm(WAVE, H), funm(jnp.exp, H), funm(lambda x: 1.0, H)))(H)
    of = lambda f: np.stack([f(_hermitian(h.astype(np.complex128))) for h in H])
    one = np.broadcast_to(np.eye(4), H.shape)
    expected = of(lambda h: scipy.linalg.expm(-1j * h)), of(scipy.linalg.expm), one
    dtypes = np.result_type(dtype, np.complex64), dtype, dtype
    for x, y, d in zip(got, expected, dtypes, strict=True):
        assert x.dtype == d
        np.testing.assert_allclose(x, y, rtol=0, atol=100 * np.finfo(dtype).eps * np.max(np.abs(y)))


@pytest.mark.slow
def test_batches_and_vmap():
    H = _random(2, 3, 2, 2)
    got = funm(WAVE, jnp.asarray(H))
    mapped = jax.vmap(lambda H, t: funm(lambda x: jnp.exp(-1j * t * x), H), (1, 0), 1)
    np.testing.assert_allclose(mapped(H, jnp.ones(3)), got, rtol=1e-13)
    assert funm(WAVE, jnp.zeros((0, 2, 2))).shape == (0, 2, 2)


# First derivatives.


def _by_blocks(f: Callable, H: np.ndarray, E: np.ndarray) -> np.ndarray:
    """The derivative of f(H) along E, in a corner of f([[H, E], [0, H]])."""
    n = len(H)
    return f(np.block([[H, E], [np.zeros_like(H), H]]))[:n, n:]


@pytest.mark.parametrize("name", SPECTRA)
def test_first_derivatives_at_any_spectrum(name: str):
    H, E, g = _with_spectrum(SPECTRA[name]), _random(3, 3), _random(3, 3)
    f = lambda A: scipy.linalg.expm(-1j * A)
    value, tangent = jax.jit(lambda H, E: jax.jvp(lambda H: funm(WAVE, H), (H,), (E,)))(H, E)
    np.testing.assert_allclose(value, f(H), rtol=0, atol=1e-14)
    np.testing.assert_allclose(tangent, _by_blocks(f, H, _hermitian(E)), rtol=0, atol=1e-13)
    # <g, L(H, E)> = <herm(L(H, g^H)^H), E>; JAX conjugates on both sides.
    gradient = jax.jit(lambda H, g: jax.vjp(lambda H: funm(WAVE, H), H)[1](g)[0])(H, g.conj())
    expected = _hermitian(_by_blocks(f, H, g.conj().T)).conj()
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_finite_differences(dtype: Any):
    # Equal eigenvalues and far ones, a result that is complex for a real matrix, parameters of both kinds.
    H = np.stack([np.eye(3), _random(3, 3, dtype=dtype)]).astype(dtype)
    t = np.asarray(0.7, np.finfo(dtype).dtype)
    z = np.asarray([0.4 - 0.3j, 1.1], np.result_type(dtype, np.complex64))

    def f(H: Any, t: Any, z: Any) -> jax.Array:
        return funm(lambda x: jnp.exp(-1j * t * x) * z[0] + jnp.abs(z[1]) * x**2 * t, H)

    cd.testing.check_rule(f, H, t, z)


def test_a_real_gradient_of_the_dtype_of_the_matrix():
    for dtype in (np.float32, np.complex64):
        loss = lambda H: jnp.sum(jnp.abs(funm(WAVE, H) - 0.3j) ** 2)
        H = np.diag([1, 1, 2]).astype(dtype)
        g = jax.jit(jax.grad(loss))(H)
        assert g.dtype == dtype
        np.testing.assert_allclose(g, g.conj().T, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_where_jax_gives_nan():
    """TRAPS: `eigh` at degenerate eigenvalues, even inside a smooth function: NaN gradient."""

    def by_jax(H: Any) -> jax.Array:
        w, U = jnp.linalg.eigh(H)
        return (U * jnp.exp(-1j * w)[None, :]) @ U.conj().T

    H, target = jnp.diag(jnp.array([1.0, 1.0, 2.0]) + 0j), _random(3, 3)
    loss = lambda of: lambda H: jnp.sum(jnp.abs(of(H) - target) ** 2)
    theirs = jax.grad(loss(by_jax))(H)
    assert np.isnan(theirs).any()
    ours = jax.jit(jax.grad(loss(lambda H: funm(WAVE, H))))(H)
    through_expm = jax.jit(jax.grad(loss(lambda H: cd.linalg.expm(-1j * H))))(H)
    np.testing.assert_allclose(ours, _hermitian(np.asarray(through_expm)), rtol=0, atol=1e-13)


# Second derivatives.


@pytest.mark.slow
@pytest.mark.parametrize("name", CLOSE)
def test_second_derivatives_against_finite_differences(name: str):
    def f(H: Any, t: Any) -> jax.Array:
        return funm(lambda x: jnp.exp(-1j * t * x) + t**2 * x**2, H)

    cd.testing.check_rule(f, _with_spectrum(SPECTRA[name]), 0.7, modes=("hvp",))


def _second(f: Callable, H: np.ndarray, E: np.ndarray, F: np.ndarray) -> np.ndarray:
    """The second derivative of f along E and F, in a corner of one large function."""
    o = np.zeros_like(H)
    return f(np.block([[H, E, F, o], [o, H, o, F], [o, o, H, E], [o, o, o, H]]))[:3, -3:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "outer, inner",
    [
        (jax.jacrev, jax.jacrev),
        pytest.param(jax.jacfwd, jax.jacrev, marks=pytest.mark.slow),
        pytest.param(jax.jacrev, jax.jacfwd, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", CLOSE)
def test_every_second_derivative_at_any_spectrum(name: str, outer: Any, inner: Any):
    H, A, B, G = _with_spectrum(SPECTRA[name]), *(_hermitian(_random(3, 3)) for _ in range(3))
    loss = lambda x: jnp.sum(jnp.abs(funm(WAVE, H + x[0] * A + x[1] * B) - G) ** 2)
    f = lambda A: scipy.linalg.expm(-1j * A)
    re = lambda x, y: 2 * np.sum(x.conj() * y).real
    first = [_by_blocks(f, H, E) for E in (A, B)]
    expected = [
        [re(first[i], first[j]) + re(f(H) - G, _second(f, H, E, F)) for j, F in enumerate((A, B))]
        for i, E in enumerate((A, B))
    ]
    hessian = jax.jit(outer(inner(loss)))(jnp.zeros(2))
    np.testing.assert_allclose(hessian, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [derivative_of, parameter_gradient])
def test_the_family_of_rules_itself(rule: Any):
    # Adjoints of the higher orders: third derivatives in reverse mode run them, nothing else.
    def f(H: Any, E: Any, p: Any, *g: Any) -> Any:
        fixed = (*jnp.linalg.eigh((H + H.conj().T) / 2), [])
        of = lambda x, p, others: jnp.exp(-1j * p[0] * x) * p[1]
        return rule(of, jax.lax.stop_gradient(fixed), H, (E,), p, *g)

    H, E, g = _with_spectrum(SPECTRA["equal and far"]), _random(3, 3), _random(3, 3)
    p = (np.asarray(0.7), np.asarray(1.0 + 0.5j))
    cd.testing.check_rule(f, H, E, p, *([g] if rule is parameter_gradient else []))


@pytest.mark.slow
def test_a_third_derivative():
    E = _random(2, 2, dtype=np.float64)
    f = lambda s: funm(lambda x: jnp.exp(s * x), jnp.eye(2) + s * E)[0, 1]
    second = jax.jit(jax.grad(jax.grad(f)))
    h = 1e-3
    expected = (second(0.3 + h) - second(0.3 - h)) / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(jax.grad(f))))(0.3), expected, rtol=1e-5)


# What it costs.


def test_one_decomposition_for_value_and_gradient():
    loss = lambda H, t: jnp.sum(jnp.abs(funm(lambda x: jnp.exp(-1j * t * x), H) + 1) ** 2)
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(_random(3, 3), 0.5)
    assert program.as_text().count("@lapack_zheevd") == 1


@pytest.mark.slow
def test_the_memory_of_derivatives():
    n = 24
    H = _random(n, n)
    loss = lambda H: jnp.sum(jnp.abs(funm(WAVE, H)) ** 2)
    hvp = lambda H: jax.jvp(jax.grad(loss), (H,), (H,))[1]
    for derivative, matrices in ((jax.grad(loss), 40), (hvp, 400)):  # n = 24: n^3 is 24 of them
        memory = jax.jit(derivative).lower(H).compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes <= matrices * H.nbytes


# What is refused.


@pytest.mark.parametrize("dtype", [np.float64, np.complex64])
def test_no_number_comes_of_nan_or_infinity(dtype: Any):
    H = np.stack([np.eye(2), np.eye(2), np.diag([1.0, 2.0])]).astype(dtype)
    H[0, 1, 0], H[1, 1, 1] = np.nan, np.inf
    loss = lambda H: jnp.sum(jnp.abs(funm(jnp.exp, H)) ** 2)
    for result in (funm(jnp.exp, jnp.asarray(H)), jax.jit(jax.grad(loss))(H)):
        assert np.isnan(result[:2]).all()
        assert np.isfinite(result[2]).all()


@pytest.mark.parametrize(
    "f, H, error, message",
    [
        (jnp.exp, jnp.ones((2, 3)), ValueError, "funm: H must be square"),
        (jnp.exp, jnp.ones((0, 0)), ValueError, "funm: H must have at least one row"),
        (jnp.exp, jnp.eye(2, dtype=int), TypeError, "funm: H must be floating or complex"),
        (lambda x: jnp.ones(3) * x, jnp.eye(2), ValueError, "funm: f must return a scalar"),
        (lambda x: x > 0, jnp.eye(2), TypeError, "funm: f must return float64 or complex128"),
        (
            lambda x: x * jnp.array(1.0, jnp.float64),
            jnp.eye(2, dtype=jnp.float32),
            TypeError,
            "funm: f must return float32 or complex64",
        ),
    ],
)
def test_what_has_no_function(f: Any, H: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        funm.__wrapped__(f, H)
