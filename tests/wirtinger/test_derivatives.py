"""The pair (df/dz, df/dzbar) against closed forms and finite differences."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdiffeq.wirtinger import derivatives

Z = 0.7 - 0.4j
X = -1.3


@pytest.mark.parametrize(
    "f, A, B",
    [
        (jnp.conj, 0, 1),
        (lambda z: z**3, 3 * Z**2, 0),
        (lambda z: z**2 * z.conj(), 2 * Z * Z.conjugate(), Z**2),
        (jnp.real, 0.5, 0.5),
        (jnp.imag, -0.5j, 0.5j),
        (jnp.abs, Z.conjugate() / (2 * abs(Z)), Z / (2 * abs(Z))),
        (jnp.angle, -0.5j / Z, 0.5j / Z.conjugate()),
    ],
)
def test_closed_forms(f: Callable, A: complex, B: complex):
    got = derivatives(f)(Z)
    np.testing.assert_allclose(got, (A, B), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    "f, df_dx",
    [
        (lambda x: x**3, 3 * X**2),
        (lambda x: x * jnp.exp(1j * x), (1 + 1j * X) * np.exp(1j * X)),
        (lambda x: jnp.conj(jnp.exp(1j * x)), -1j * np.exp(-1j * X)),
    ],
)
def test_a_real_argument_has_df_dx_and_zero(f: Callable, df_dx: complex):
    A, B = derivatives(f)(X)
    np.testing.assert_allclose(A, df_dx, rtol=1e-14)
    assert A.dtype == B.dtype == f(jnp.asarray(X)).dtype
    assert B == 0


def _mixed(params: dict, x: jax.Array) -> dict:
    z, scale = params["z"], params["scale"]
    flipped = z[::-1].conj()
    return {"y": jnp.outer(x, z * flipped * scale), "n": jnp.sum(jnp.abs(z)) * x}


def _mixed_arguments(dtype=jnp.complex128) -> tuple[dict, jax.Array]:
    real = jnp.finfo(dtype).dtype
    params = {"z": jnp.array([0.3 + 0.5j, -1.1 + 0.2j], dtype), "scale": jnp.asarray(0.6, real)}
    return params, jnp.array([0.7, -0.4, 2.0], real)


def _apply(pair: tuple, tangents, out):
    """dy = A dz + B conj(dz) from nested Jacobians."""
    A, B = pair
    flat = jax.tree.leaves(tangents)
    dy = []
    for shape, a_tree, b_tree in zip(
        [y.shape for y in jax.tree.leaves(out)],
        _rows(A, out),
        _rows(B, out),
        strict=True,
    ):
        total = np.zeros(shape, complex)
        for a, b, dz in zip(a_tree, b_tree, flat, strict=True):
            assert a.shape == b.shape == shape + dz.shape
            total += np.tensordot(a, dz, dz.ndim) + np.tensordot(b, np.conj(dz), dz.ndim)
        dy.append(total)
    return dy


def _rows(nested, out) -> list[list]:
    return [jax.tree.leaves(row) for row in jax.tree.structure(out).flatten_up_to(nested)]


def test_mixed_trees_against_finite_differences():
    args = _mixed_arguments()
    out = _mixed(*args)
    pair = derivatives(_mixed, argnums=(0, 1))(*args)
    rng = np.random.default_rng(1)
    tangents = jax.tree.map(
        lambda a: np.asarray(
            rng.normal(size=a.shape) + (1j * rng.normal(size=a.shape) if a.dtype == complex else 0)
        ),
        args,
    )

    def moved(h: float):
        return jax.tree.leaves(_mixed(*jax.tree.map(lambda a, d: a + h * d, args, tangents)))

    h = 1e-3  # fourth order: h^4 = 1e-12 times fifth derivatives, eps/h = 2e-13
    for got, *at in zip(
        _apply(pair, tangents, out), moved(h), moved(-h), moved(2 * h), moved(-2 * h), strict=True
    ):
        expected = (8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * h)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_trees_nest_as_those_of_jacobian():
    params, x = _mixed_arguments()
    real_params = {"z": params["z"].real, "scale": params["scale"]}
    for argnums in (0, -1, (1, 0)):
        reference = jax.jacobian(_mixed, argnums)(real_params, x)
        A, B = derivatives(_mixed, argnums)(real_params, x)
        assert jax.tree.structure(A) == jax.tree.structure(B) == jax.tree.structure(reference)
        jax.tree.map(
            lambda a, r: np.testing.assert_allclose(a, r, rtol=0, atol=1e-15), A, reference
        )
        assert not any(np.any(b) for b in jax.tree.leaves(B))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.complex128])
def test_dtypes_follow_the_inputs(dtype):
    params, x = _mixed_arguments(dtype)
    real = x.dtype
    A, B = derivatives(_mixed, (0, 1))(params, x)
    for pair in (A, B):
        assert jax.tree.map(lambda a: a.dtype, pair) == {
            "y": ({"z": dtype, "scale": dtype}, dtype),
            "n": ({"z": dtype, "scale": real}, real),
        }


def _compose(outer: tuple, inner: tuple) -> tuple:
    (A2, B2), (A1, B1) = outer, inner
    return A2 @ A1 + B2 @ B1.conj(), A2 @ B1 + B2 @ A1.conj()


def test_chain_rule():
    z = jnp.array([0.3 + 0.5j, -1.1 + 0.2j, 0.4 - 0.9j])
    M = jnp.array([[1.0 + 2j, 0.5, -1j], [0.3j, 1.0, 2.0 - 1j], [0.1, -0.7j, 0.4]])

    def mixing(z):
        return M @ (z * jnp.abs(z)) + (M @ z).conj() ** 2

    def squares(z):
        return jnp.abs(z) ** 2 * jnp.arange(1.0, z.size + 1)

    def back(x):
        return x[::-1] * jnp.exp(1j * x)

    # Complex, real-valued and real-argument links: the rule holds with the choice (df/dx, 0).
    for outer, inner in ((mixing, mixing), (squares, mixing), (back, squares)):
        composed = _compose(derivatives(outer)(inner(z)), derivatives(inner)(z))
        direct = derivatives(lambda z, o=outer, i=inner: o(i(z)))(z)
        np.testing.assert_allclose(direct, composed, rtol=1e-13, atol=1e-13)

    # From a real argument through a step that isn't holomorphic only A + B is settled.
    x = jnp.array([0.2, -0.6, 1.4])
    A, B = _compose(derivatives(mixing)(back(x)), derivatives(back)(x))
    direct, zero = derivatives(lambda x: mixing(back(x)))(x)
    np.testing.assert_allclose(A + B, direct, rtol=1e-13)
    assert np.abs(B).max() > 0.1 and not zero.any()


def test_jit_vmap_and_nesting():
    batch = jnp.array([0.7 - 0.4j, -0.2 + 1j])

    def f(z):
        return z**2 * z.conj()

    A, B = jax.jit(jax.vmap(derivatives(f)))(batch)
    np.testing.assert_allclose(A, 2 * abs(batch) ** 2, rtol=1e-14)
    np.testing.assert_allclose(B, batch**2, rtol=1e-14)
    # d/dzbar of d/dz: the Laplacian's quarter, of |z|^4 it is 4 |z|^2.
    fourth = derivatives(lambda z: jnp.abs(z) ** 4)
    mixed = derivatives(lambda z: fourth(z)[0])(Z)[1]
    np.testing.assert_allclose(mixed, 4 * abs(Z) ** 2, rtol=1e-14)


def test_one_linearisation():
    calls = []

    def f(z, w):
        calls.append(1)
        return z * w.conj()

    derivatives(f, (0, 1))(jnp.ones(3) * 1j, jnp.ones(3) * 2.0)
    assert len(calls) == 1


def test_empty_leaves():
    A, B = derivatives(lambda z: jnp.sum(z[0]) * z[1])((jnp.zeros((0, 2)), 1j))
    assert A[0].shape == B[0].shape == (0, 2)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: derivatives(jnp.abs)(3), TypeError, "argument 0 is int64"),
        (lambda: derivatives(jnp.abs)(jnp.array(True)), TypeError, "argument 0 is bool"),
        (
            lambda: derivatives(lambda t, n: t["a"] * n, (0, 1))({"a": 1.0}, 2),
            TypeError,
            "argument 1 is int64",
        ),
        (lambda: derivatives(lambda z: z > 0)(1.0), TypeError, "the output of f is bool"),
        (lambda: derivatives(jnp.abs, argnums=2)(1.0), ValueError, "argnums has 2"),
    ],
)
def test_errors(call: Callable, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
