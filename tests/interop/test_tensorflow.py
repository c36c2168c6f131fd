"""JAX functions inside TensorFlow, beside the same in TensorFlow's own operations."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd

tf = pytest.importorskip("tensorflow")
wrap = cd.interop.tensorflow.wrap


@pytest.fixture
def inputs() -> tuple:
    rng = np.random.default_rng(3)
    a = rng.normal(size=3) + 1j * rng.normal(size=3)
    return tf.Variable(a), tf.constant(rng.normal(size=3))


ours = wrap(lambda a, x: jnp.conj(a) * jnp.sin(x) + a**2)


def native(a, x):
    return tf.math.conj(a) * tf.cast(tf.sin(x), a.dtype) + a**2


def first_and_second(fn, a, x):
    """The gradient of a loss, and that of a function of it."""
    with tf.GradientTape() as outer:
        outer.watch([a, x])
        with tf.GradientTape() as inner:
            inner.watch([a, x])
            loss = tf.reduce_sum(tf.abs(fn(a, x)) ** 2)
        first = inner.gradient(loss, [a, x])
        again = tf.reduce_sum(tf.math.imag(first[0]) * first[1])
    return [*first, *outer.gradient(again, [a, x])]


def test_gradients_are_tensorflows(inputs):
    found, expected = first_and_second(ours, *inputs), first_and_second(native, *inputs)
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == e.dtype
        np.testing.assert_allclose(f, e, rtol=1e-12)


def test_inside_of_tf_function(inputs):
    a, x = inputs[0].read_value(), inputs[1]
    graph = tf.function(lambda a, x: first_and_second(ours, a, x), autograph=False)
    for f, e in zip(graph(a, x), first_and_second(native, a, x), strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12)


def test_gradient_of_a_complex_result_is_that_of_its_real_part(inputs):
    # The table of tests/fixtures: conj has the gradient 1 in TensorFlow.
    with tf.GradientTape() as tape:
        y = wrap(lambda a: jnp.sum(jnp.conj(a)))(inputs[0])
    np.testing.assert_array_equal(tape.gradient(y, inputs[0]), np.ones(3))


def test_pytrees_integers_and_dtypes():
    a = tf.constant(np.array([1, 3 + 1j, 2]), tf.complex64)
    fn = wrap(lambda p, i: {"double": 2 * p["a"][i], "where": jnp.argmax(jnp.abs(p["a"]))})
    with tf.GradientTape() as tape:
        tape.watch(a)
        out = fn({"a": a}, tf.constant([0, 2]))
        loss = tf.reduce_sum(tf.math.real(out["double"]))
    assert int(out["where"]) == 1 and out["double"].dtype == tf.complex64
    np.testing.assert_array_equal(tape.gradient(loss, a), [2, 0, 2])


def test_writing_into_a_result_changes_nothing_else(inputs):
    constant = jnp.ones(3)
    variable = tf.Variable(wrap(lambda a: constant)(inputs[0]))
    variable.assign_add(constant)
    assert jnp.all(constant == 1)


@pytest.mark.slow
def test_failure_is_passed_on():
    blow_up = wrap(lambda y: cd.ode.solve(lambda t, y, _: y**2, y, [0.0, 3.0]).ys[-1])
    with pytest.raises(jax.errors.JaxRuntimeError, match="step size vanished"):
        blow_up(tf.constant(1.0, tf.float64))


def test_refusals():
    with pytest.raises(TypeError, match="abs: argument 0 is float, expected a tf"):
        wrap(abs)(1.0)
    unknown = tf.function(wrap(abs), [tf.TensorSpec([None], tf.float32)], autograph=False)
    with pytest.raises(ValueError, match="JAX needs all of it known"):
        unknown(tf.ones(2))
    with jax.enable_x64(False), pytest.raises(TypeError, match="float64, which JAX would cut"):
        wrap(abs)(tf.ones(2, tf.float64))


@pytest.mark.slow
def test_training_a_model():
    """A linear layer before a solve: TensorFlow's variables, cdiffeq's matrix exponential."""
    weights = tf.Variable(np.array([0.3, 0.8]))
    x, y = np.linspace(0, 1, 5), np.sin(np.linspace(0.5, 1.2, 5)) ** 2
    turn = lambda angle: cd.linalg.expm(-1j * angle * jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    excited = wrap(jax.vmap(lambda angle: jnp.abs(turn(angle)[1, 0]) ** 2))
    losses = []
    for _ in range(50):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((excited(weights[0] + weights[1] * x) - y) ** 2)
        weights.assign_sub(tape.gradient(loss, weights))
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]


def test_absent_tensorflow_is_named():
    code = (
        "import sys, cdiffeq as cd; sys.modules['tensorflow'] = None\n"
        "try: cd.interop.tensorflow.wrap(abs)\n"
        "except ImportError as error: assert 'pip install tensorflow' in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
