"""The map with its own adjoint, against JAX's derivatives of the same map written plainly."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.wirtinger import linear_map

RNG = np.random.default_rng(0)


def _complex(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape) + 1j * RNG.normal(size=shape))


def _real(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape))


# u = A z + B conj(z) + C r and v = k Im(E z) + 2 r, with z complex, r and v real, k an integer.


def forward(residuals, x):
    A, B, C, E, k = (residuals[name] for name in "ABCEk")
    z, r = x["z"], x["r"]
    return {"u": A @ z + B @ jnp.conj(z) + C @ r, "v": k * jnp.imag(E @ z) + 2 * r}


def adjoint(residuals, y):
    A, B, C, E, k = (residuals[name] for name in "ABCEk")
    u, v = y["u"], y["v"]
    z = A.conj().T @ u + B.T @ jnp.conj(u) + 1j * E.conj().T @ (k * v)
    return {"z": z, "r": C.conj().T @ u + 2 * v}  # the second is complex: its real part counts


K = jnp.array([2, -1, 3])


def _point() -> dict:
    residuals = {"A": _complex(4, 2), "B": _complex(4, 2), "C": _complex(4, 3), "E": _complex(3, 2)}
    return {"residuals": residuals, "x": {"z": _complex(2), "r": _real(3)}}


P, D = _point(), _point()
W = _complex(4)


def _loss(apply: Callable) -> Callable:
    """A real function that isn't holomorphic in anything, of the residuals and of x."""

    def L(p):
        y = apply({**p["residuals"], "k": K}, p["x"])
        quartic = jnp.sum(jnp.abs(y["u"]) ** 4) / 50
        return quartic + jnp.real(jnp.sum(W * y["u"] ** 2 * y["v"][0])) + jnp.sum(y["v"] ** 3)

    return L


mapped = _loss(functools.partial(linear_map, forward, adjoint))
plain = _loss(forward)


def _close(got: Any, expected: Any, rtol: float = 1e-12) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (g.shape, g.dtype) == (e.shape, e.dtype)
        np.testing.assert_allclose(g, e, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(e))))


@pytest.mark.slow
def test_every_derivative(transform: Callable):
    _close(transform(mapped, P, D), transform(plain, P, D))


def test_eager():
    x, r = P["x"], {**P["residuals"], "k": K}
    _close(linear_map(forward, adjoint, r, x), forward(r, x))


def test_against_finite_differences():
    x = P["x"]
    f = lambda z, r: linear_map(forward, adjoint, {**P["residuals"], "k": K}, {"z": z, "r": r})
    cd.testing.check_rule(f, x["z"], x["r"])


# One mapped, the other single.


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("name", ["residuals", "x"])
def test_vmap_of_residuals_only_and_of_the_argument_only(name: str, axis: int):
    batch = jax.tree.map(lambda a, b: jnp.stack([a, b, a - b], axis), P[name], D[name])

    def run(L, batch):
        mapped = jax.vmap(lambda one: jax.grad(L)({**P, name: one})[name], axis)
        square = lambda batch: sum(jnp.sum(jnp.abs(g) ** 2) for g in jax.tree.leaves(mapped(batch)))
        return mapped(batch), jax.grad(square)(batch)

    run = jax.jit(run, static_argnums=0)
    _close(run(mapped, batch), run(plain, batch))


def test_a_single_residual_of_a_batch_gets_the_sum_of_gradients():
    X = jax.tree.map(lambda a, b: jnp.stack([a, b]), P["x"], D["x"])

    def run(L, residuals):
        total = lambda r: jnp.sum(jax.vmap(lambda x: L({"residuals": r, "x": x}))(X))
        return jax.grad(total)(residuals), _hvp(total, residuals, D["residuals"])

    run = jax.jit(run, static_argnums=0)
    _close(run(mapped, P["residuals"]), run(plain, P["residuals"]))


def _hvp(L: Callable, p: Any, d: Any) -> Any:
    return jax.jvp(jax.grad(L), (p,), (d,))[1]


# Dtypes.


def test_mixed_precision():
    def forward(r, x):
        a, b = r
        return {
            "c64": a * jnp.conj(x["c64"]) + x["f32"],
            "f32": jnp.real(b * x["c128"][:2]).astype(jnp.float32),
            "f64": jnp.imag(x["c128"]) + jnp.sum(x["f32"]),
        }

    def adjoint(r, y):
        a, b = r
        return {
            "c64": a * jnp.conj(y["c64"]),
            "f32": jnp.real(y["c64"]) + jnp.sum(y["f64"]).astype(jnp.float32),
            "c128": 1j * y["f64"] + jnp.pad(b * y["f32"], (0, 1)),
        }

    r = jnp.array(1 + 2j, jnp.complex64), 0.5
    x = {
        "c64": jnp.array([1 - 1j, 2j], jnp.complex64),
        "f32": jnp.array([0.5, -2.0], jnp.float32),
        "c128": jnp.array([1 + 1j, -2.0, 3j]),
    }

    def L(apply):
        def loss(x):
            y = apply(r, x)
            return sum(jnp.sum(jnp.abs(leaf) ** 4) for leaf in jax.tree.leaves(y))

        return loss

    mapped, plain = L(functools.partial(linear_map, forward, adjoint)), L(forward)
    for run in (
        jax.grad,
        lambda L: lambda x: _hvp(L, x, x),
        lambda L: lambda x: jax.vmap(jax.grad(L))(jax.tree.map(lambda x: jnp.stack([x, x]), x)),
    ):
        _close(jax.jit(run(mapped))(x), jax.jit(run(plain))(x), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.complex64, jnp.complex128])
def test_an_answer_has_the_dtype_of_its_argument(dtype: Any):
    x = jnp.ones(3, dtype)
    f = lambda x: linear_map(lambda r, x: 2 * x, lambda r, y: 2 * y, (), x)
    out, tangent = jax.jvp(f, (x,), (x,))
    gradient = jax.vjp(f, x)[1](x)[0]
    assert {out.dtype, tangent.dtype, gradient.dtype} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(gradient, 2 * x)


def test_a_real_argument_gets_a_real_gradient():
    a = _complex(3)
    f = lambda x: linear_map(lambda a, x: a * x, lambda a, y: jnp.conj(a) * y, a, x)
    loss = lambda f: lambda x: jnp.sum(jnp.abs(f(x) - 1j) ** 2 * jnp.arange(3))
    x = _real(3)
    got = jax.grad(loss(f))(x)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, jax.grad(loss(lambda x: a * x))(x), rtol=1e-14)
    mapped = jax.vmap(jax.grad(loss(f)))(x[None])
    assert mapped.dtype == jnp.float64
    np.testing.assert_allclose(mapped[0], got, rtol=1e-14)


def test_integer_and_boolean_residuals_are_not_differentiated():
    def f(x, index, mask):
        forward = lambda r, x: jnp.where(r[1], x[r[0]], 0)
        back = lambda r, y: jnp.zeros(3, y.dtype).at[r[0]].add(jnp.where(r[1], y, 0))
        return jnp.sum(jnp.abs(linear_map(forward, back, (index, mask), x)) ** 2)

    x, index, mask = _complex(3), jnp.array([2, 0, 2]), jnp.array([True, True, False])
    expected = 2 * jnp.conj(x) * jnp.array([1, 0, 1])
    np.testing.assert_allclose(jax.grad(f)(x, index, mask), expected, rtol=1e-14)
    grads = jax.vmap(jax.grad(f), (None, 0, None))(x, jnp.stack([index, index]), mask)
    np.testing.assert_allclose(grads, [expected, expected], rtol=1e-14)
    with_integers = jax.grad(f, argnums=(0, 1), allow_int=True)(x, index, mask)
    assert with_integers[1].dtype == jax.dtypes.float0
    np.testing.assert_allclose(with_integers[0], expected, rtol=1e-14)


# Values that the two functions close over.


def _closing(p):
    """The map of `_loss`, with every residual but the integers closed over."""
    r = {**p["residuals"], "k": K}
    T = lambda k, x: forward({**r, "k": k}, x)
    T_adjoint = lambda k, y: adjoint({**r, "k": k}, y)
    return _loss(lambda _, x: linear_map(T, T_adjoint, K, x))(p)


CLOSURES = ["vjp", "jvp", "scan", "forward over reverse", "reverse over reverse"]
CLOSURES += [
    "reverse over forward",
    "vmap of points",
    "reverse over vmap over reverse",
    "checkpoint",
]


@pytest.mark.parametrize("transform", CLOSURES, indirect=True)
def test_derivatives_through_a_closure(transform: Callable):
    _close(transform(_closing, P, D), transform(plain, P, D))


def test_no_tracer_is_left_behind():
    def loss(a, x):
        T, T_adjoint = lambda r, x: r * a * x, lambda r, y: jnp.conj(r * a) * y
        return jnp.sum(jnp.abs(linear_map(T, T_adjoint, a, x)) ** 2)

    with jax.checking_leaks():
        jax.block_until_ready(jax.jit(jax.grad(loss))(W, W))


# Programs: what runs, what does not.


def test_reverse_mode_runs_the_adjoint_and_never_transposes_the_forward_program():
    # JAX can reverse neither of these loops: their number of turns depends on the data.
    def double(x):  # 2^3 x, by a loop that ends when a counter says so
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, 2 * s[1]), (0, x))[1]

    f = lambda x: linear_map(lambda r, x: double(1j * x), lambda r, y: -1j * double(y), (), x)
    x = _complex(2)
    loss = lambda x: jnp.sum(jnp.abs(f(x)) ** 4)
    by_hand = lambda x: 4 * 8**4 * jnp.abs(x) ** 2 * jnp.conj(x)
    np.testing.assert_allclose(jax.grad(loss)(x), by_hand(x), rtol=1e-13)
    twice = jax.grad(lambda x: jnp.sum(jnp.real(jax.grad(loss)(x))))(x)
    expected = jax.grad(lambda x: jnp.sum(jnp.real(by_hand(x))))(x)
    np.testing.assert_allclose(twice, expected, rtol=1e-13)
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(lambda x: jnp.sum(jnp.abs(double(x))))(x)


def test_a_callback_to_the_host_is_a_map_like_any_other():
    def host(matrix, x):
        call = lambda x: np.asarray(matrix) @ x
        return jax.pure_callback(call, x, x, vmap_method="sequential")

    A = np.array([[1.0, 2j], [0.5, 1 - 1j]])
    f = lambda x: linear_map(lambda r, x: host(A, x), lambda r, y: host(A.conj().T, y), (), x)
    loss = lambda f: lambda x: jnp.sum(jnp.abs(f(x)) ** 4)
    x, dx = _complex(2), _complex(2)
    for run in (
        lambda L: jax.grad(L)(x),
        lambda L: _hvp(L, x, dx),
        lambda L: jax.vmap(jax.grad(L))(jnp.stack([x, dx])),
    ):
        _close(run(loss(f)), run(loss(lambda x: A @ x)))


def _vjp(f: Callable) -> Callable:
    return lambda A, x, ct: jax.vjp(lambda x: f(A, x), x)[1](ct)[0]


def _jvp(f: Callable) -> Callable:
    return lambda A, x, dx: jax.jvp(lambda x: f(A, x), (x,), (dx,))


@pytest.mark.parametrize("derivative", [_vjp, _jvp])
def test_holomorphic_maps_cost_nothing_extra(derivative: Callable):
    A, x = _complex(8, 8), _complex(8)
    compiled: Callable[..., Any] = lambda f: jax.jit(derivative(f)).lower(A, x, x).compile()
    plain = compiled(lambda A, x: A @ x)

    # Where T* is written as it is run, conj A^T conj, the conjugates of JAX's pairing cancel.
    as_run = lambda A, y: jnp.conj(A.T @ jnp.conj(y))
    mapped = compiled(lambda A, x: linear_map(lambda A, x: A @ x, as_run, A, x))
    assert mapped.cost_analysis()["flops"] == plain.cost_analysis()["flops"]

    # Written as A^H y it conjugates A: signs, but no product more.
    as_read = lambda A, y: A.conj().T @ y
    mapped = compiled(lambda A, x: linear_map(lambda A, x: A @ x, as_read, A, x))
    for product in (" dot(", " multiply("):
        assert mapped.as_text().count(product) == plain.as_text().count(product)


# What isn't a linear map is refused.


def _map(**changes: Any) -> Any:
    given: dict[str, Any] = dict(
        forward=lambda r, x: x, adjoint=lambda r, y: y, residuals=(), x={"a": jnp.ones(3)}
    )
    return linear_map(**{**given, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(x={"a": jnp.arange(3)}), r"x\['a'\] has dtype int64.* among the residuals"),
        (dict(x={"a": jnp.ones(3, bool)}), r"x\['a'\] has dtype bool"),
        (dict(forward=lambda r, x: x["a"] > 0), "the result of `forward` has dtype bool"),
        (dict(adjoint=lambda r, y: y["a"]), "the result of `adjoint` has structure .* but x has"),
        (
            dict(adjoint=lambda r, y: {"a": y["a"][:2]}),
            r"the result of `adjoint`\['a'\] is float64\[2\], but x\['a'\] is float64\[3\]",
        ),
        (
            dict(adjoint=lambda r, y: {"a": y["a"].astype(jnp.float32)}),
            r"is float32\[3\], but x\['a'\] is float64\[3\]",
        ),
        (
            dict(adjoint=lambda r, y: {"a": jnp.arange(3)}),
            r"is int64\[3\], but x\['a'\] is float64\[3\]",
        ),
    ],
)
def test_what_is_refused(changes: dict, message: str):
    with pytest.raises(TypeError, match="linear_map: .*" + message):
        _map(**changes)
