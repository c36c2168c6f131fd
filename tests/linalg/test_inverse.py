"""Inverse and determinants against NumPy's, and against polynomials where a matrix is singular."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.linalg._inverse import _cofactors, _factorize, det, inv, slogdet
from tests.linalg.common import DTYPES, quick_jit, random_array

RNG = np.random.default_rng(3)


def _random(*shape: int, dtype: Any = np.complex128) -> np.ndarray:
    return random_array(RNG, *shape, dtype=dtype)


def _of_values(*values: float, dtype: Any = np.complex128) -> np.ndarray:
    """A matrix with these singular values."""
    n = len(values)
    U, V = (np.linalg.qr(_random(n, n, dtype=dtype))[0] for _ in range(2))
    return (U * values) @ V


def _minor(A: np.ndarray, i: int, j: int) -> np.ndarray:
    return np.delete(np.delete(A, i, axis=-2), j, axis=-1)


def _by_minors(A: np.ndarray) -> np.ndarray:
    """By the determinants of all minors."""
    C = np.zeros_like(A)
    for i, j in np.ndindex(A.shape[-2:]):
        C[..., i, j] = (-1) ** (i + j) * np.linalg.det(_minor(A, i, j))
    return C


def _second(A: np.ndarray, E: np.ndarray) -> np.ndarray:
    """The derivative of the cofactors along E, from those of all minors."""
    D = np.zeros_like(A)
    for i, j in np.ndindex(A.shape):
        D[i, j] = (-1) ** (i + j) * np.sum(_by_minors(_minor(A, i, j)) * _minor(E, i, j))
    return D


def _close(got: Any, expected: Any, atol: float = 1e-13) -> None:
    expected = np.asarray(expected)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


def _eps(A: Any) -> float:
    return float(np.finfo(A.dtype).eps)


# Values and first derivatives of regular matrices.


def _all(A: Any) -> Any:
    """Everything that moves: the sign of a real determinant doesn't."""
    sign, log = slogdet(A)
    return inv(A), det(A), log, *([sign] if jnp.iscomplexobj(A) else [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        np.complex64,
        pytest.param(np.float64, marks=pytest.mark.slow),
        pytest.param(np.complex128, marks=pytest.mark.slow),
    ],
)
def test_against_numpy_and_finite_differences(dtype: Any):
    A = _random(2, 3, 3, dtype=dtype)
    wide = A.astype(np.result_type(dtype, np.float64))
    tolerance = 100 * _eps(A) * np.linalg.cond(wide).max()
    Y, d, log, *sign = quick_jit(_all)(A)
    assert Y.dtype == d.dtype == dtype
    assert log.dtype == np.finfo(dtype).dtype
    _close(Y, np.linalg.inv(wide), tolerance)
    _close(d, np.linalg.det(wide), tolerance)
    expected = np.linalg.slogdet(wide)
    _close(log, expected.logabsdet, tolerance)
    if sign:
        assert sign[0].dtype == dtype
        _close(sign[0], expected.sign, tolerance)
    cd.testing.check_rule(_all, A)


@pytest.mark.slow
def test_second_derivatives_against_finite_differences():
    cd.testing.check_rule(_all, _random(3, 3), modes=("hvp",))


@pytest.mark.parametrize(
    "outer, inner", [(jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacfwd), (jax.jacrev, jax.jacrev)]
)
def test_every_second_derivative(outer: Any, inner: Any):
    A, B, C = _of_values(2.0, 1.0, 0.0), _random(3, 3), _random(3, 3)
    # Along a line in two directions: at the origin a singular matrix.
    loss = lambda x: jnp.real((2 - 1j) * det(A + x[0] * B + x[1] * C))
    hessian = quick_jit(outer(inner(loss)))(jnp.zeros(2))
    bilinear = lambda E, F: np.real((2 - 1j) * np.sum(_second(A, E) * F))
    _close(hessian, [[bilinear(E, F) for E in (B, C)] for F in (B, C)])


@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 3, 1, 1)])
def test_small_and_empty_shapes(shape: tuple[int, ...]):
    A = _random(*shape)
    loss = lambda A: jnp.sum(jnp.abs(det(A)) + slogdet(A).logabsdet) + jnp.sum(jnp.abs(inv(A)))
    both = lambda A: (_all(A), jax.jvp(jax.grad(loss), (A,), (A,)))
    (Y, d, log, sign), (gradient, tangent) = quick_jit(both)(A)
    _close(Y, np.linalg.inv(A), 1e-13)
    _close(d, np.linalg.det(A))
    _close(log, np.linalg.slogdet(A).logabsdet)
    _close(sign, np.linalg.slogdet(A).sign)
    assert gradient.shape == tangent.shape == shape
    if shape[-1] == 1:  # of |a| + log |a| + 1 / |a|
        r = np.abs(A)
        np.testing.assert_allclose(gradient, A.conj() / r * (1 + 1 / r - 1 / r**2), rtol=1e-12)


@pytest.mark.slow
def test_vmap_along_any_axis():
    A = jnp.asarray(_random(3, 2, 3))
    loss = lambda A: sum(jnp.sum(jnp.abs(y)) for y in _all(A))
    both = jax.value_and_grad(loss)
    value, gradient = quick_jit(jax.vmap(both, in_axes=1, out_axes=(0, 1)))(A)
    alone = quick_jit(both)
    for k in range(2):
        expected = alone(A[:, k])
        _close(value[k], expected[0], 1e-12)
        _close(gradient[:, k], expected[1], 1e-10)


@pytest.mark.slow
def test_the_phase_of_a_real_determinant_stays():
    A = _random(3, 3, dtype=np.float64)
    assert slogdet(A).sign in (-1, 1)
    _close(jax.grad(lambda A: slogdet(A).sign)(A), np.zeros((3, 3)))


@pytest.mark.slow
def test_determinants_at_the_edge_of_the_numbers():
    orders = list(itertools.permutations([1e-200, 1e-200, 1e300, 3j]))
    A = np.stack([np.diag(order) for order in orders])
    np.testing.assert_allclose(quick_jit(det)(A), np.full(len(orders), 3e-100j), rtol=1e-15)
    np.testing.assert_allclose(det(0.8 * jnp.eye(300, dtype=jnp.float32)), 0.8**300, rtol=1e-4)


# Singular matrices.

SINGULAR = {
    "rank n - 1": _of_values(3.0, 2.0, 1.0, 0.0),
    "rank n - 2": _of_values(3.0, 2.0, 0.0, 0.0),
    "rank n - 3": _of_values(3.0, 0.0, 0.0, 0.0),
    "zero": np.zeros((4, 4), complex),
    "a zero row": np.vstack([_random(3, 4), np.zeros((1, 4))]),
    "equal singular values": _of_values(1.0, 1.0, 1.0, 0.0),
    "integers": np.arange(16.0).reshape(4, 4),
    "real, a zero column": np.hstack([np.zeros((4, 1)), _random(4, 3, dtype=np.float64)]),
    "nearly rank n - 1": _of_values(3.0, 2.0, 1.0, 1e-11),
    "nearly rank n - 2": _of_values(3.0, 2.0, 1e-9, 1e-10),
    "regular": _random(4, 4),
    "unitary": _of_values(1.0, 1.0, 1.0, 1.0),
}


@quick_jit
def _derivatives(A: Any, E: Any, g: Any) -> Any:
    """C along E, conj of the gradient, and the derivative along E of both."""
    along = lambda A: jax.jvp(det, (A,), (E,))[1]
    gradient = lambda A: jax.vjp(det, A)[1](g)[0]
    return *jax.jvp(along, (A,), (E,)), *jax.jvp(gradient, (A,), (E,))


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGULAR)
def test_derivatives_of_det_at_singular_matrices(name: str):
    A = SINGULAR[name]
    E, g = _random(4, 4, dtype=A.dtype), _random(dtype=A.dtype)
    C, D = _by_minors(A), _second(A, E)
    first, second, gradient, of_gradient = _derivatives(A, E, g)
    size = 1e-14 * (1 + np.linalg.norm(A, 2)) ** 3 * 10
    _close(first, np.sum(C * E), size)
    _close(second, np.sum(D * E), size)
    _close(gradient, g * C, size)
    _close(of_gradient, g * D, size)


@pytest.mark.slow
def test_singular_beside_regular():
    # A matrix has the same gradient beside any other, and under vmap.
    A = jnp.stack([jnp.asarray(A, complex) for A in SINGULAR.values()])
    gradient = quick_jit(jax.grad(lambda A: jnp.sum(det(A)), holomorphic=True))
    alone = jnp.stack([gradient(a) for a in A])
    _close(gradient(A), alone, 1e-12)
    _close(jax.vmap(gradient)(A), alone, 1e-12)
    _close(alone, _by_minors(np.asarray(A)), 1e-11)


@pytest.mark.slow
def test_singular_matrices_against_finite_differences():
    A = np.stack([SINGULAR["rank n - 1"], SINGULAR["rank n - 2"]])
    cd.testing.check_rule(det, A, modes=("jvp", "vjp", "hvp"))


@pytest.mark.slow
def test_the_rule_of_the_cofactors():
    # Second derivatives of det need no more than its tangent; it has both.
    cofactors = lambda A: _cofactors(A, _factorize(A))
    cd.testing.check_rule(cofactors, SINGULAR["rank n - 1"][:3, :3])


def test_a_third_derivative_raises():
    second = jax.grad(jax.grad(lambda t: det(t * jnp.eye(3))))
    jax.eval_shape(second, 2.0)
    with pytest.raises(TypeError, match="derivative in the non-differentiable argument"):
        jax.eval_shape(jax.grad(second), 2.0)


def _raises(f: Any, A: Any, message: str) -> None:
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(f(A))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_inverse_of_a_singular_matrix(dtype: Any):
    compiled = quick_jit(inv)
    singular = [np.zeros((4, 4)), SINGULAR["integers"]]
    for A in (_random(4, 4, dtype=dtype), _random(4, 4, dtype=dtype)):
        A[:, 0] = A[:, 1] - A[:, 2]  # to rounding
        singular.append(A)
    for A in singular:
        _raises(compiled, A.astype(dtype), "inv: A is singular to working precision")


@pytest.mark.slow
def test_which_inverse_there_is_not():
    A = jnp.stack([jnp.eye(4), SINGULAR["integers"]])
    message = r"inv: A is singular to working precision: changes .* by [0-9.]+e[+-][0-9]+ of"
    with pytest.raises(RuntimeError, match=rf"^matrix \[1\] of the batch: {message}"):
        inv(A)
    with pytest.raises(RuntimeError, match=f"^{message}"):
        inv(A[1])
    _raises(jax.vmap(inv), A, message)
    _raises(jax.grad(lambda A: jnp.sum(inv(A))), A, message)
    gradient = quick_jit(jax.grad(lambda A: jnp.sum(slogdet(A).logabsdet)))(A)
    _close(gradient[0], np.eye(4))
    assert np.isnan(gradient[1]).all()


@pytest.mark.slow
def test_bad_scaling_is_no_singularity():
    A = _random(4, 4)
    rows, columns = 10.0 ** np.array([-30, 0, 20, 3]), 10.0 ** np.array([50, -40, 0, 1])
    scaled = np.asarray(inv(rows[:, None] * A * columns))
    _close(columns[:, None] * scaled * rows, np.linalg.inv(A), 1e-12)


def test_exactly_singular_as_in_numpy():
    sign, log = slogdet(jnp.zeros((2, 3, 3), complex))
    assert (sign == 0).all()
    assert (log == -np.inf).all()


@pytest.mark.parametrize("n", [1, 2])
def test_no_number_comes_of_nan_or_infinity(n: int):
    @quick_jit
    def results(A):
        loss = lambda f: jax.grad(lambda A: jnp.sum(f(A)))(A)
        functions = (inv, det, lambda A: slogdet(A).logabsdet)
        return _all(A), [loss(f) for f in functions], slogdet(A).sign

    for bad in (np.nan, np.inf, -np.inf):
        A = np.stack([np.eye(n), np.eye(n)])
        A[0, -1, 0] = bad
        for result in jax.tree.leaves(results(A)):
            assert np.isnan(result[0]).all()
            assert np.isfinite(result[1]).all()


# What it costs.


@pytest.mark.parametrize("f", [inv, det, slogdet])
def test_one_factorization_for_value_and_gradient(f: Any):
    loss = lambda A: sum(jnp.sum(jnp.abs(y)) for y in jax.tree.leaves(f(A)))
    text = jax.jit(jax.vmap(jax.value_and_grad(loss))).lower(_random(5, 3, 3)).as_text()
    # Of det there is more in a branch, for singular matrices, which is one under vmap as well.
    always = text.partition("stablehlo.case")[0]
    assert always.count("getrf") == 1
    assert "gesdd" not in always
    assert text.count("getrf") == (3 if f is det else 1)


# What has no inverse.


@pytest.mark.parametrize("f", [inv, det, slogdet])
def test_bad_arguments(f: Any):
    name = f.__name__
    with pytest.raises(ValueError, match=rf"{name}: A must be square, .* got shape \(2, 3\)"):
        f.__wrapped__(jnp.ones((2, 3)))
    for dtype in (jnp.int32, bool, jnp.bfloat16):
        with pytest.raises(TypeError):
            f(jnp.ones((2, 2), dtype))
