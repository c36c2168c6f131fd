"""Layers of complex-valued models: what they compute, their derivatives, and their manners."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import cdiffeq as cd
from cdiffeq import nn
from cdiffeq.testing import check_rule

KEY = jax.random.key(3)


def _normal(seed: int, *shape: int, dtype=complex) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


class _Field(eqx.Module):
    """A vector field with weights, which isn't holomorphic."""

    linear: nn.Linear

    def __call__(self, t, y):
        return self.linear(nn.cardioid(y)) - y


def _layers(dtype=complex) -> dict[str, tuple]:
    """Each layer, and an input for it."""
    x = _normal(1, 3, dtype=dtype)
    return {
        "Linear": (nn.Linear(3, 2, KEY, init=nn.he, dtype=dtype), x),
        "UnitaryLayer": (nn.UnitaryLayer(3, KEY, dtype=jnp.finfo(dtype).dtype), x),
        "LinearSolveLayer": (nn.LinearSolveLayer(3, KEY, dtype=dtype), x),
        "DiagonalSSM": (
            nn.DiagonalSSM(1, 3, 2, KEY, steps=(0.05, 0.5), dtype=dtype),
            _normal(2, 6, 1, dtype=dtype),
        ),
        "NeuralODE": (nn.NeuralODE(_Field(nn.Linear(3, 3, KEY, dtype=dtype)), 0.3), x),
    }


NAMES = list(_layers())


# Activations


@pytest.mark.slow
def test_wirtinger_derivatives_of_the_activations():
    z = jnp.array([0.4 + 0.3j, -1.2 + 0.5j, 0.7 - 1.6j, -0.3 - 0.1j, 2.0, -0.7j])
    u, b = z / jnp.abs(z), -0.45
    off = (jnp.abs(z) + b > 0) * 1.0
    first = ((z.real > 0) & (z.imag > 0)) * 1.0
    expected = {
        "modrelu": (off * (1 + b / (2 * jnp.abs(z))), -off * b * u**2 / (2 * jnp.abs(z))),
        "cardioid": (1 / 2 + (3 * u + u.conj()) / 8, (u - u**3) / 8),
        "zrelu": (first, 0 * first),
    }
    functions = {"modrelu": lambda z: nn.modrelu(z, b), "cardioid": nn.cardioid, "zrelu": nn.zrelu}
    for name, f in functions.items():
        A, B = cd.wirtinger.derivatives(f)(z)
        np.testing.assert_allclose(A, jnp.diag(expected[name][0]), rtol=0, atol=1e-14, err_msg=name)
        np.testing.assert_allclose(B, jnp.diag(expected[name][1]), rtol=0, atol=1e-14, err_msg=name)


def test_values_of_the_activations():
    z = jnp.array([3 + 4j, -3 + 4j, 0.3 - 0.4j])
    np.testing.assert_allclose(nn.modrelu(z, -1.0), z * jnp.array([0.8, 0.8, 0]))
    np.testing.assert_allclose(nn.modrelu(z, 1.0), z * jnp.array([1.2, 1.2, 3]))
    np.testing.assert_allclose(nn.cardioid(z), z * jnp.array([0.8, 0.2, 0.8]))
    np.testing.assert_array_equal(nn.zrelu(z), z * jnp.array([1, 0, 0]))
    bias = lambda b: jnp.sum(jnp.abs(nn.modrelu(z, b)))
    np.testing.assert_allclose(jax.grad(bias)(jnp.full(3, -1.0)), [1, 1, 0])


@pytest.mark.parametrize("f", [lambda z: nn.modrelu(z, 0.5), nn.cardioid, nn.zrelu])
def test_activations_at_zero_and_in_single_precision(f):
    value, gradient = jax.value_and_grad(lambda z: f(z).real)(jnp.complex64(0))
    assert value == 0 and jnp.isfinite(gradient)
    assert f(jnp.ones(2, jnp.complex64)).dtype == jnp.complex64
    assert jnp.all(jnp.isnan(f(jnp.array([complex(np.nan, 1), complex(-1, np.nan)]))))
    with pytest.raises(TypeError, match="z must be complex, got float64"):
        f(jnp.ones(2))


# Initialisation


@pytest.mark.slow
def test_initialisation_keeps_norms():
    x = _normal(0, 400)
    square = lambda y: float(jnp.mean(jnp.abs(y) ** 2))
    W = nn.glorot(KEY, (600, 400))
    assert square(W @ x) / square(x) == pytest.approx(0.8, rel=0.1)
    assert square(nn.he(KEY, (600, 400)) @ x) / square(x) == pytest.approx(2, rel=0.15)
    # Rayleigh moduli: <|W|>^2 / <|W|^2> = pi/4; even phases.
    size = jnp.abs(W)
    assert float(jnp.mean(size) ** 2 / jnp.mean(size**2)) == pytest.approx(np.pi / 4, rel=0.01)
    assert abs(jnp.mean(W / size)) < 0.01 and abs(jnp.mean((W / size) ** 2)) < 0.01
    window = nn.glorot(KEY, (8, 4, 5, 5))
    assert square(window) == pytest.approx(2 / (12 * 25), rel=0.15)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.glorot(KEY, (3,)), ValueError, r"shape must be \(out, in, ...\), got \(3,\)"),
        (lambda: nn.he(KEY, (3, 2), float), TypeError, "dtype must be complex, got float64"),
        (lambda: nn.UnitaryLayer(2, KEY, dtype=complex), TypeError, "real parameters"),
        (lambda: nn.DiagonalSSM(1, 2, 1, KEY, steps=(1, 0.1)), ValueError, "in order"),
        (lambda: nn.NeuralODE(3), TypeError, "field must be a function"),
        (lambda: nn.linear_recurrence(jnp.ones(2), jnp.ones((4, 3))), ValueError, r"\(2,\) and"),
        (lambda: nn.modrelu(jnp.ones(2) + 0j, 1j), TypeError, "b must be real"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_batch_is_refused_without_vmap(name):
    layer, x = _layers()[name]
    with pytest.raises(ValueError, match=f"{name}: .* must have shape"):
        layer(x[None])


# Layers


@pytest.mark.slow
def test_unitary_layer_is_a_unitary_of_its_hamiltonian():
    layer, x = _layers()["UnitaryLayer"]
    H = np.asarray(layer.hamiltonian)
    np.testing.assert_array_equal(H, H.conj().T)
    np.testing.assert_allclose(layer(x), scipy.linalg.expm(-1j * H) @ x, rtol=1e-13)
    # n^2 real numbers reach all n^2 directions of Hermitian matrices.
    images = jax.jacfwd(lambda R: eqx.tree_at(lambda l: l.parameters, layer, R).hamiltonian)(
        layer.parameters
    ).reshape(9, 9)
    assert np.linalg.matrix_rank(np.concatenate([images.real, images.imag])) == 9


@pytest.mark.slow
def test_linear_solve_layer_solves():
    layer, x = _layers()["LinearSolveLayer"]
    y = np.linalg.solve(np.eye(3) - layer.weight, x)
    np.testing.assert_allclose(layer(x), y, rtol=1e-12)
    resonant = eqx.tree_at(lambda l: l.weight, layer, jnp.eye(3) + 0j)
    with pytest.raises(RuntimeError, match="singular"):
        resonant(x)


def test_ssm_is_exact():
    model, u = _layers()["DiagonalSSM"]
    # Each mode by the exponential of [[lambda, 1], [0, 0]], which holds the input.
    rates = -np.exp(model.log_decay) + 1j * np.asarray(model.frequency)
    assert np.all(rates.real < 0) and rates.imag.min() < 0 < rates.imag.max()
    steps = [
        scipy.linalg.expm(d * np.array([[r, 1], [0, 0]]))
        for r, d in zip(rates, np.exp(model.log_step), strict=True)
    ]
    x, B, ys = np.zeros(3, complex), np.asarray(model.B), []
    for u_k in np.asarray(u):
        x = np.array([s[0, 0] * x_i + s[0, 1] * b for s, x_i, b in zip(steps, x, B @ u_k)])  # noqa: B905
        ys.append(model.C @ x + model.D @ u_k)
    np.testing.assert_allclose(model(u), ys, rtol=1e-12)


@pytest.mark.slow
def test_neural_ode_solves():
    layer = nn.NeuralODE(lambda t, y: -1j * y * t, 2.0, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(layer(jnp.array([1.0 + 0j])), np.exp(-2j), rtol=1e-6)


@pytest.mark.slow
def test_neural_ode_at_times_and_with_options():
    layer = nn.NeuralODE(lambda t, y: {"a": -1j * y["a"]}, adjoint=cd.ode.Backsolve())
    path = layer({"a": jnp.ones(2) + 0j}, jnp.array([0.0, 0.5, 1.0]))["a"]
    np.testing.assert_allclose(path[:, 1], np.exp(-1j * np.array([0, 0.5, 1])), rtol=0, atol=1e-3)
    short = nn.NeuralODE(lambda t, y: -y, max_steps=1, stepsize=0.01)
    with pytest.raises(RuntimeError, match="max_steps = 1"):
        short(jnp.array(1.0))


@pytest.mark.slow
def test_linear_recurrence():
    a, v = 0.9 * _normal(4, 2), _normal(5, 7, 2)
    x, expected = np.zeros(2), []
    for v_k in np.asarray(v):
        x = np.asarray(a) * x + v_k
        expected.append(x)
    np.testing.assert_allclose(nn.linear_recurrence(a, v), expected, rtol=1e-13)
    real = nn.linear_recurrence(jnp.ones(2, jnp.float32), jnp.ones((3, 2), jnp.float32))
    np.testing.assert_array_equal(real, np.arange(1, 4, dtype=np.float32)[:, None] * np.ones(2))
    assert real.dtype == jnp.float32


@pytest.mark.slow
def test_rule_of_the_linear_recurrence():
    key = jax.random.key(11)
    check_rule(
        nn.linear_recurrence, _normal(4, 2), _normal(5, 5, 2), modes=("jvp", "vjp", "hvp"), key=key
    )
    # A real coefficient has a real gradient.
    check_rule(nn.linear_recurrence, jnp.array([0.5, -0.8]), _normal(5, 5, 2), key=key)


@pytest.mark.slow
def test_memory_of_the_linear_recurrence():
    """A gradient keeps no step of the prefix sum, of which there are log2(length)."""
    length, n = 4096, 8
    loss = lambda a, v: jnp.sum(jnp.abs(nn.linear_recurrence(a, v)) ** 2)
    args = jax.ShapeDtypeStruct((n,), complex), jax.ShapeDtypeStruct((length, n), complex)
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * length * n * 16


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_in_every_weight_and_the_input(name):
    layer, x = _layers()[name]
    if name == "NeuralODE":
        layer = nn.NeuralODE(layer.field, 0.3, stepsize=0.05, rtol=1e-9, atol=1e-12)
    weights, rest = eqx.partition(layer, eqx.is_inexact_array)
    apply = lambda weights, x: eqx.combine(weights, rest)(x)
    check_rule(apply, weights, x, key=jax.random.key(12))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_layers_jit_vmap_and_serialise(name, tmp_path):
    layer, x = _layers()[name]
    y = layer(x)
    mapped = eqx.filter_jit(lambda layer, x: jax.vmap(layer)(x))(layer, jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(mapped[0], y, rtol=1e-6, atol=1e-8)
    # Layers of other weights mapped over, as an ensemble.
    double = lambda w: jnp.stack([w, w])
    ensemble = jax.tree.map(lambda w: double(w) if eqx.is_array(w) else w, layer)
    each = eqx.filter_vmap(lambda layer, x: layer(x), in_axes=(eqx.if_array(0), None))(ensemble, x)
    np.testing.assert_allclose(each[1], y, rtol=1e-6, atol=1e-8)

    eqx.tree_serialise_leaves(tmp_path / "layer.eqx", layer)
    empty = jax.tree.map(lambda w: jnp.zeros_like(w) if eqx.is_array(w) else w, layer)
    again = eqx.tree_deserialise_leaves(tmp_path / "layer.eqx", empty)
    assert eqx.tree_equal(again, layer)
    # In a Sequential, which passes keys.
    np.testing.assert_array_equal(eqx.nn.Sequential([layer])(x, key=KEY), y)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_single_precision_stays_single(name):
    layer, x = _layers(jnp.complex64)[name]
    assert layer(x).dtype == jnp.complex64
    loss = lambda layer, x: jnp.sum(jnp.abs(layer(x)) ** 2)
    gradients = eqx.filter_grad(loss)(layer, x)
    for g, w in zip(*map(jax.tree.leaves, (gradients, eqx.filter(layer, eqx.is_inexact_array)))):  # noqa: B905
        assert g.dtype == w.dtype and jnp.finfo(w.dtype).bits == 32


@pytest.mark.slow
def test_the_steepest_direction_trains():
    """A unitary layer between linear ones learns a map, with optax on the conjugated gradient."""
    optax = pytest.importorskip("optax")
    target = _normal(8, 2, 2)
    xs = _normal(9, 16, 2)
    keys = jax.random.split(KEY, 3)
    model = eqx.nn.Sequential(
        [nn.Linear(2, 4, keys[0]), nn.UnitaryLayer(4, keys[1]), nn.Linear(4, 2, keys[2])]
    )
    optimizer = optax.adam(2e-2)

    @eqx.filter_jit
    def step(model, state):
        loss = lambda model: jnp.mean(jnp.abs(jax.vmap(model)(xs) - xs @ target.T) ** 2)
        value, g = eqx.filter_value_and_grad(loss)(model)
        g = cd.wirtinger.convert_gradient(g, source="jax", target="steepest")
        updates, state = optimizer.update(g, state, model)
        return eqx.apply_updates(model, updates), state, value

    state, losses = optimizer.init(eqx.filter(model, eqx.is_inexact_array)), []
    for _ in range(300):
        model, state, value = step(model, state)
        losses.append(float(value))
    assert losses[-1] < 1e-3 * losses[0]
