"""Gradients in the conventions of JAX, PyTorch and TensorFlow, against what the three returned."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdiffeq.wirtinger import convert_gradient, derivatives, grad

RECORD = json.loads((Path(__file__).parents[1] / "fixtures" / "conventions.json").read_text())
CASES = RECORD["cases"]

# The functions of the record, by the names they have there.
FUNCTIONS: dict[str, Callable] = {
    "conj": jnp.conj,
    "identity": lambda z: z,
    "z^2": lambda z: z**2,
    "exp": jnp.exp,
    "log": jnp.log,
    "sqrt": jnp.sqrt,
    "tanh": jnp.tanh,
    "1/z": lambda z: 1 / z,
    "z*conj(z) (complex dtype)": lambda z: z * z.conj(),
    "z*conj(w)": lambda z, w: z * w.conj(),
    "z/w": lambda z, w: z / w,
    "z**w": lambda z, w: z**w,
    "z^2*conj(w)^3": lambda z, w: z**2 * w.conj() ** 3,
    "abs": jnp.abs,
    "abs2 (re^2+im^2)": lambda z: z.real**2 + z.imag**2,
    "abs^2": lambda z: jnp.abs(z) ** 2,
    "Re": jnp.real,
    "Im": jnp.imag,
    "angle": jnp.angle,
    "Re(z^3)": lambda z: (z**3).real,
    "Re(z*conj(w))": lambda z, w: (z * w.conj()).real,
    "abs at 0": jnp.abs,
    "abs^2 at 0": lambda z: jnp.abs(z) ** 2,
    "sum(conj(x)) [seed 0]": lambda x: x.conj().sum(),
    "sum(x)": jnp.sum,
    "norm2": jnp.linalg.norm,
    "vdot(x,y)": jnp.vdot,
    "||solve(A,b)||^2": lambda A, b: jnp.sum(jnp.abs(jnp.linalg.solve(A, b)) ** 2),
    "log|det|": lambda A: jnp.linalg.slogdet(A)[1],
    "det": jnp.linalg.det,
    "slogdet sign": lambda A: jnp.linalg.slogdet(A)[0],
}

# Faults of TensorFlow 2.21 itself, not conventions: its det lacks a conjugate, and it
# differentiates the phase of a determinant to zero.
TENSORFLOW_FAULTS = {"det", "slogdet sign"}

FIELDS = {"jax": "jax_grad", "torch": "torch_grad", "tensorflow": "tf_grad"}


def _decoded(numbers):
    if numbers is None:
        return None
    if isinstance(numbers, list):
        return [_decoded(number) for number in numbers]
    return np.asarray(numbers["re"]) + 1j * np.asarray(numbers["im"])


def _case(name: str) -> tuple[Callable, list, dict]:
    case = {field: _decoded(numbers) for field, numbers in CASES[name].items()}
    return FUNCTIONS[name], [jnp.asarray(x) for x in case["inputs"]], case


def _agree(got, expected, rtol: float = 1e-13):
    # Well-conditioned functions of a few numbers: two codes differ by rounding, some 100 eps.
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=rtol * max(1, np.abs(e).max()))


def test_every_recorded_case_has_its_function():
    assert CASES.keys() == FUNCTIONS.keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_grad_returns_what_each_framework_returned(name: str):
    f, inputs, recorded = _case(name)
    argnums = tuple(range(len(inputs)))
    complex_valued = jnp.iscomplexobj(f(*inputs))
    for convention, field in FIELDS.items():
        gradient = grad(f, argnums, convention=convention)
        if complex_valued and convention != "tensorflow":
            assert recorded[field] is None  # the framework itself refused
            with pytest.raises(TypeError, match="complex128: a complex-valued function has no"):
                gradient(*inputs)
        elif not (convention == "tensorflow" and name in TENSORFLOW_FAULTS):
            _agree(gradient(*inputs), recorded[field])
    if not complex_valued:
        _agree(grad(f, argnums, convention="steepest")(*inputs), recorded["torch_grad"])


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if CASES[n]["jax_grad"]])
@pytest.mark.parametrize("source", ["jax", "torch", "tensorflow"])
@pytest.mark.parametrize("target", ["jax", "torch", "tensorflow"])
def test_recorded_gradients_convert_into_each_other(name: str, source: str, target: str):
    _, _, recorded = _case(name)
    converted = convert_gradient(recorded[FIELDS[source]], source=source, target=target)
    _agree(converted, recorded[FIELDS[target]])


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if CASES[n]["d_dz"]])
def test_derivatives_are_those_of_the_record(name: str):
    f, inputs, recorded = _case(name)
    df_dz, df_dzbar = derivatives(f, tuple(range(len(inputs))))(*inputs)
    # Finite differences of functions written with NumPy and SciPy, good to about 1e-11.
    _agree(df_dz, recorded["d_dz"], rtol=1e-10)
    _agree(df_dzbar, recorded["d_dzbar"], rtol=1e-10)
    # What JAX and PyTorch map the cotangents 1 and i to holds (A, B) to full precision:
    # JAX A + conj(B) and i (A - conj(B)), PyTorch conj(A) + B and i (conj(A) - B).
    if CASES[name]["jax_vjp_cti"]:
        columns = (
            recorded[f"{field}_vjp_{ct}"] for field in ("jax", "torch") for ct in ("ct1", "cti")
        )
        for A, B, jax_1, jax_i, torch_1, torch_i in zip(df_dz, df_dzbar, *columns, strict=True):
            _agree([A, B.conj()], [(jax_1 - 1j * jax_i) / 2, (jax_1 + 1j * jax_i) / 2])
            _agree([A.conj(), B], [(torch_1 - 1j * torch_i) / 2, (torch_1 + 1j * torch_i) / 2])


def test_tensorflow_puzzle():
    # TensorFlow's gradient of sum(conj(x)) is 1, though conj has no complex derivative.
    X = jnp.asarray(_decoded(RECORD["seed0"]["X"]), jnp.complex64)
    recorded = _decoded(RECORD["seed0"]["tape_grad"])

    def f(x):
        return jnp.sum(jnp.conj(x))

    gradient = grad(f, convention="tensorflow")(X)
    assert gradient.dtype == jnp.complex64
    np.testing.assert_array_equal(gradient, recorded)

    # It is the gradient of the real part, conj(A) + B with A = 0 and B = 1.
    df_dz, df_dzbar = derivatives(f)(X)
    np.testing.assert_array_equal(df_dz, np.zeros((2, 2)))
    np.testing.assert_array_equal(df_dzbar, np.ones((2, 2)))
    np.testing.assert_array_equal(gradient, grad(lambda x: f(x).real, convention="steepest")(X))


def _mixed_loss(params: dict, scale: jax.Array) -> jax.Array:
    z, x = params["z"], params["x"]
    return jnp.sum(jnp.abs(z**2 * x + z.conj() * scale) ** 2)


def _mixed() -> tuple[dict, jax.Array]:
    params = {"z": jnp.array([0.3 + 0.5j, -1.1 + 0.2j]), "x": jnp.array([0.7, -0.4])}
    return params, jnp.array([1.3, 0.2])


def test_mixed_trees_keep_real_leaves_real():
    params, scale = _mixed()
    reference = jax.grad(_mixed_loss, argnums=(0, 1))(params, scale)
    for convention in ("jax", "torch", "tensorflow", "steepest"):
        g = grad(_mixed_loss, argnums=(0, 1), convention=convention)(params, scale)
        back = convert_gradient(g, source=convention, target="jax")
        jax.tree.map(np.testing.assert_array_equal, back, reference)
        assert jax.tree.map(lambda a: a.dtype, g) == jax.tree.map(
            lambda a: a.dtype, (params, scale)
        )
        if convention != "jax":
            np.testing.assert_array_equal(g[0]["z"], reference[0]["z"].conj())


def test_a_step_along_steepest_goes_up_fastest():
    params, scale = _mixed()
    g = grad(_mixed_loss, convention="steepest")(params, scale)
    rng = np.random.default_rng(0)
    length = np.sqrt(sum(np.sum(np.abs(leaf) ** 2) for leaf in jax.tree.leaves(g)))

    def rise(direction) -> float:
        size = np.sqrt(sum(np.sum(np.abs(leaf) ** 2) for leaf in jax.tree.leaves(direction)))
        step = 1e-6 / size
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        return float(_mixed_loss(moved, scale) - _mixed_loss(params, scale)) / 1e-6

    best = rise(g)
    # First order in a step of 1e-6: the rest is 1e-6 times the curvature, about 1e2 here.
    assert best == pytest.approx(length, rel=1e-4)
    for _ in range(20):
        other = {
            "z": jnp.asarray(rng.normal(size=2) + 1j * rng.normal(size=2)),
            "x": jnp.asarray(rng.normal(size=2)),
        }
        assert rise(other) < best


def test_aux_keywords_jit_and_vmap():
    def f(z, *, power):
        return jnp.abs(z) ** power, {"z": z}

    g, aux = grad(f, has_aux=True, convention="torch")(3 + 4j, power=2)
    assert (g, aux["z"]) == (6 + 8j, 3 + 4j)
    batch = jnp.array([3 + 4j, 1 - 2j])
    g, aux = jax.jit(jax.vmap(grad(lambda z: f(z, power=2), has_aux=True)))(batch)
    np.testing.assert_allclose(g, 2 * batch.conj(), rtol=1e-15)
    np.testing.assert_array_equal(aux["z"], batch)


def test_single_precision_stays_single():
    g = grad(lambda z, x: jnp.abs(z * x) ** 2, argnums=(0, 1), convention="torch")(
        jnp.complex64(1 + 2j), jnp.float32(3)
    )
    assert [leaf.dtype for leaf in g] == [jnp.complex64, jnp.float32]


def test_convert_gradient_leaves_numpy_and_numbers_alone():
    g = [np.array([1 + 2j], np.complex128), 1 - 1j, 2.0, np.array([3]), None]
    converted = convert_gradient(g, source="steepest", target="jax")
    assert isinstance(converted[0], np.ndarray)
    assert converted[0].dtype == np.complex128
    assert converted == [np.array([1 - 2j]), 1 + 1j, 2.0, np.array([3]), None]
    assert convert_gradient(g, source="torch", target="tensorflow") is g


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: grad(jnp.abs, convention="numpy"), ValueError, "convention='numpy' is unknown"),
        (
            lambda: convert_gradient(1j, source="jax", target="up"),
            ValueError,
            "target='up' is unknown: use one of 'jax', 'torch'",
        ),
        (lambda: grad(jnp.abs)(3), TypeError, "argument 0 is int64"),
        (
            lambda: grad(lambda t: abs(t["a"][0]))({"a": [jnp.arange(2)]}),
            TypeError,
            r"argument 0\['a'\]\[0\] is int64",
        ),
        (lambda: grad(jnp.abs, argnums=1)(1j), ValueError, "argnums has 1, but there are 1"),
        (lambda: grad(jnp.add, argnums=(0, -2))(1.0, 1.0), ValueError, "names an argument twice"),
        (lambda: grad(jnp.abs)(jnp.ones(2)), TypeError, r"one number; got the shape \(2,\)"),
        (lambda: grad(lambda z: (z, z))(1.0), TypeError, "one number; got the shape"),
        (lambda: grad(lambda z: jnp.int32(1))(1.0), TypeError, "f returned int32"),
    ],
)
def test_errors(call: Callable, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call()
