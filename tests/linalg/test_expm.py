"""exp and its Fréchet derivative against SciPy's, which knows no JAX."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import cdiffeq as cd
from cdiffeq.linalg import expm
from cdiffeq.linalg._expm import expm_of, exponential
from tests.linalg.common import DTYPES, quick_jit, random_array

RNG = np.random.default_rng(0)


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _skew(n: int, norm: float, dtype: Any = np.complex128) -> np.ndarray:
    """An anti-Hermitian matrix."""
    A = _random(n, n, dtype=dtype)
    A = A - A.conj().T
    return (A * (norm / np.linalg.norm(A, 2))).astype(dtype)


def _double(A: np.ndarray) -> np.ndarray:
    return np.asarray(A, np.result_type(A, np.float64))


def _expm(A: np.ndarray) -> np.ndarray:
    return scipy.linalg.expm(_double(A))


def _frechet(A: np.ndarray, E: np.ndarray) -> np.ndarray:
    return scipy.linalg.expm_frechet(_double(A), _double(E), compute_expm=False)


push = quick_jit(lambda A, E: jax.jvp(expm, (A,), (E,)))
pull = quick_jit(lambda A, g: jax.vjp(expm, A)[1](g)[0])


def _by_eigenvectors(A: np.ndarray, E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """exp(A) and L(A, E) for an anti-Hermitian A: (e^a - e^b) / (a - b) = e^((a + b) / 2) sinc."""
    w, V = np.linalg.eigh(-1j * _double(A))
    half = (w[:, None] - w[None, :]) / 2
    kernel = np.exp(0.5j * (w[:, None] + w[None, :])) * np.sinc(half / np.pi)
    value = (V * np.exp(1j * w)) @ V.conj().T
    return value, V @ (kernel * (V.conj().T @ _double(E) @ V)) @ V.conj().T


def _close(got: Any, expected: Any, condition: Any) -> None:
    """To rounding, times the condition number of exp, which is at least the norm of A.

    Each of s squarings doubles the error that was there, 2^s is up to 4 norm(A) here, and a few
    roundings went into the polynomial.
    """
    assert got.shape == np.shape(expected)
    scale = np.max(np.abs(expected), initial=0)
    atol = 32 * np.finfo(got.dtype).eps * condition * scale
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


# Values and derivatives.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [0.0, 1e-8, 1e-2, 1.0, 2.0, 30.0, 1e3])
def test_of_any_norm(norm: float, dtype: Any):
    A, E = _skew(5, norm, dtype), _random(5, 5, dtype=dtype)
    value, tangent = push(A, E)
    assert value.dtype == tangent.dtype == dtype
    for got, expected in zip((value, tangent), _by_eigenvectors(A, E), strict=True):
        _close(got, expected, 1 + norm)
    # <g, L(A, E)> = <L(A^H, g), E>; here A^H = -A, and JAX conjugates on both sides.
    g = _random(5, 5, dtype=dtype)
    _close(pull(A, g), _by_eigenvectors(-A, g.conj())[1].conj(), 1 + norm)


@pytest.mark.parametrize("norm", [0.5, 5.0, 20.0])
def test_of_matrices_that_are_not_normal(norm: float):
    A, E = _random(5, 5), _random(5, 5)
    A = A * norm / np.linalg.norm(A, 2)
    condition = np.linalg.norm(A, 2) * np.exp(norm) / np.linalg.norm(_expm(A), 2)
    value, tangent = push(A, E)
    _close(value, _expm(A), 1 + condition)
    _close(tangent, _frechet(A, E), 1 + condition)


SPECIAL = {
    "zero": np.zeros((3, 3)),
    "identity": np.eye(3),
    "nilpotent": np.diag([5.0, 70.0], 1),
    "defective": np.diag([-2.0, -2.0, -2.0]) + np.diag([1.0, 1.0], -1),
    "degenerate": np.diag([1j, 1j, -2j]),
    "a projector": 1j * np.ones((3, 3)),
    "far from the origin": 1e4j * np.eye(3) + np.diag([1.0, 1.0], 1),
    "a decay": np.diag([-1e3, -1.0, 0.0]) + np.diag([0.5, 0.5], 1),
    "a growth": np.diag([300.0, 0.0, 1.0]),
    "one by one": np.array([[0.3 - 2j]]),
    "real, one by one": np.array([[-40.0]]),
    "large and small": np.array([[0, 1e4], [0, 0]]),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_matrices(name: str):
    A = SPECIAL[name]
    E = _random(*A.shape, dtype=A.dtype)
    condition = 1 + np.linalg.norm(A, 2)
    value, tangent = push(A, E)
    _close(value, _expm(A), condition)
    _close(tangent, _frechet(A, E), condition)
    _close(pull(A, E), _frechet(A.conj().T, E.conj()).conj(), condition)


def test_what_vanishes_beside_what_does_not():
    # exp of the mean underflows here, exp of the matrix doesn't.
    for A in (jnp.diag(jnp.array([-3e3, 0.0])), jnp.diag(jnp.array([-300.0, 0.0], jnp.float32))):
        np.testing.assert_allclose(
            push(A, A)[0], np.diag([0.0, 1.0]), rtol=1e3 * float(jnp.finfo(A.dtype).eps)
        )


def test_scalars_to_the_last_digits():
    x = jnp.linspace(-1.0, 1.0, 201)[:, None, None] * jnp.array([[[1.0]]])
    np.testing.assert_allclose(expm(x), np.exp(x), rtol=1e-15)
    np.testing.assert_allclose(expm(1j * x), np.exp(1j * x), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_with_a_promise_that_all_are_anti_hermitian(dtype: Any):
    norms = [0.0, 0.7, 1.3, 1.85, 2.6, 3.0, 3.7, 5.2, 40.0]
    A = np.stack([_skew(5, norm, dtype) for norm in norms])
    # Of rank 1: no norm of these is far above the largest eigenvalue, which is what counts.
    v = _random(len(norms), 5, 1, dtype=dtype)
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    rank_1 = 1j * np.array(norms)[:, None, None] * v @ v.conj().swapaxes(1, 2)
    A = np.concatenate([A, rank_1]).astype(dtype)
    E = _random(*A.shape, dtype=dtype)

    of = lambda A: expm_of(A, True)
    value, tangent = quick_jit(lambda A, E: jax.jvp(of, (A,), (E,)))(A, E)
    for i, norm in enumerate([*norms, *norms]):
        expected = _by_eigenvectors(A[i], E[i])
        _close(value[i], expected[0], 1 + norm)
        _close(tangent[i], expected[1], 1 + norm)
        _close(value[i] @ value[i].conj().T, np.eye(5), 1 + norm)


# Batches.


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [np.float64, np.complex64])
def test_batches(batch: tuple[int, ...], dtype: Any):
    A, E = _random(*batch, 2, 2, dtype=dtype), _random(*batch, 2, 2, dtype=dtype)
    value, tangent = push(A, E)
    assert value.shape == tangent.shape == (*batch, 2, 2)
    assert value.dtype == tangent.dtype == dtype
    for i in np.ndindex(batch):
        condition = (1 + np.linalg.norm(A[i], 2)) * np.exp(2 * np.linalg.norm(A[i], 2))
        _close(value[i], _expm(A[i]), condition)
        _close(tangent[i], _frechet(A[i], E[i]), condition)


def test_no_rows_at_all():
    assert expm(jnp.zeros((2, 0, 0))).shape == (2, 0, 0)


def test_norms_far_apart_in_one_batch():
    # Each is squared as often as it needs itself: beside a large one a small one keeps its digits.
    norms = [0.0, 1e-9, 1.0, 1e3, 1e6]
    A = np.stack([_skew(3, norm) for norm in norms])
    E = _random(len(norms), 3, 3)
    batched = quick_jit(jax.vmap(lambda A, E: jax.jvp(expm, (A,), (E,))))
    for value, tangent in (push(A, E), batched(A, E)):
        for i, norm in enumerate(norms):
            alone = push(A[i], E[i])
            np.testing.assert_allclose(value[i], alone[0], rtol=1e-14, atol=1e-16 * (1 + norm))
            np.testing.assert_allclose(tangent[i], alone[1], rtol=1e-14, atol=1e-15 * (1 + norm))
            _close(value[i], _by_eigenvectors(A[i], E[i])[0], 1 + norm)


@pytest.mark.slow
def test_vmap_along_any_axis():
    A = jnp.asarray(_random(2, 4, 2))
    got = jax.vmap(expm, in_axes=1, out_axes=2)(A)
    np.testing.assert_allclose(got[:, :, 3], expm(A[:, 3]), rtol=1e-14)


# Rules.


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_finite_differences(dtype: Any):
    A = _random(3, 3, dtype=dtype)
    A = np.stack([0 * A, 7 * A / np.linalg.norm(A, 2)]).astype(dtype)
    cd.testing.check_rule(expm, A)


@pytest.mark.slow
def test_second_derivatives_against_finite_differences():
    A = np.stack([SPECIAL[name] for name in ("zero", "defective", "degenerate", "a projector")])
    cd.testing.check_rule(expm, A, modes=("hvp",))


def _second(A: np.ndarray, E: np.ndarray, F: np.ndarray) -> np.ndarray:
    """The second derivative of exp at A along E and F, in a corner of one large exponential."""
    o = np.zeros_like(A)
    return _expm(np.block([[A, E, F, o], [o, A, o, F], [o, o, A, E], [o, o, o, A]]))[:3, -3:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "outer, inner", [(jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacfwd), (jax.jacrev, jax.jacrev)]
)
def test_every_second_derivative(outer: Any, inner: Any):
    A, B, g = _random(3, 3), _random(3, 3), _random(3, 3)
    s, t = 0.4, 0.3
    loss = lambda x: jnp.sum(jnp.abs(g * expm(x[0] * A + x[1] * B)) ** 2)
    hessian = quick_jit(outer(inner(loss)))(jnp.array([s, t]))

    X = s * A + t * B
    U, first = g * _expm(X), [g * _frechet(X, E) for E in (A, B)]
    re = lambda x, y: 2 * np.sum(x.conj() * y).real
    expected = [
        [re(first[i], first[j]) + re(U, g * _second(X, E, F)) for j, F in enumerate((A, B))]
        for i, E in enumerate((A, B))
    ]
    np.testing.assert_allclose(hessian, expected, rtol=1e-12)


# What it costs.


def _products(jaxpr: Any) -> list[str]:
    """Where products of matrices stand: "" outside of any loop, "while" in one."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            found.append("")
        inner = [p for p in eqn.params.values() if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
        for p in inner:
            mark = "while" if eqn.primitive.name == "while" else ""
            found += [mark or where for where in _products(getattr(p, "jaxpr", p))]
    return found


def test_five_products_and_the_squarings():
    for dtype in DTYPES:
        A = _random(4, 4, dtype=dtype)
        value = jax.make_jaxpr(lambda A: exponential(A, False)[0])(A).jaxpr
        assert sorted(_products(value)) == [""] * 5 + ["while"]

        def both(A, E):
            value, frechet, _ = exponential(A, False)
            return value, frechet(E)

        products = sorted(_products(jax.make_jaxpr(both)(A, A).jaxpr))
        assert products == [""] * 15 + ["while"] * (1 + 3)


def test_the_memory_of_a_gradient():
    # Counted in matrices, and the same for any number of squarings: that is known at run time only.
    count, n = 50, 16
    A = jnp.asarray(_random(count, n, n))
    loss = lambda A: jnp.sum(jnp.abs(expm(A)) ** 2)
    memory = jax.jit(jax.grad(loss)).lower(A).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 20 * A.nbytes


# What has no exponential.


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(0, 0), (1, 0), (2, 2)])
def test_no_number_comes_of_nan_or_infinity(bad: float, where: tuple[int, int], dtype: Any):
    A = np.zeros((2, 3, 3), dtype)
    A[(0, *where)] = bad
    for result in (*push(A, np.ones_like(A)), pull(A, np.ones_like(A))):
        assert np.isnan(result[0]).all()
        assert np.isfinite(result[1]).all()  # its neighbour is none the worse


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_number_comes_where_no_digit_would_be_right(dtype: Any):
    A = np.array([[0, 1], [-1, 0]], dtype)
    eps = np.finfo(dtype).eps
    # The error is the rounding of the phase alone.
    phase = _double(0.01 / eps * A).astype(dtype)
    np.testing.assert_allclose(push(phase, A)[0], _expm(phase), rtol=0, atol=1.0)
    for norm in (10 / eps, 1e10 / eps, np.finfo(dtype).max):
        assert np.isnan(push((norm * A).astype(dtype), A)[0]).all()


@pytest.mark.parametrize("shape", [(2, 3), (4, 3, 2)])
def test_not_square(shape: tuple[int, ...]):
    # The annotation says it first, where annotations are checked: see the function behind it.
    message = rf"expm: A must be square, \(..., n, n\); got shape \({', '.join(map(str, shape))}\)"
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(exponential)(jnp.ones(shape), False)
    with pytest.raises((ValueError, TypeError)):
        expm(jnp.ones(shape))


@pytest.mark.parametrize("dtype", [jnp.int32, bool, jnp.bfloat16, jnp.float16])
def test_not_in_single_or_double_precision(dtype: Any):
    with pytest.raises(TypeError):
        expm(jnp.ones((2, 2), dtype))
