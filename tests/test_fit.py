"""Fits against closed forms and SciPy's, error bars against the spread of many fits, optimizers downhill."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.stats

import cdiffeq as cd
from cdiffeq.fit import least_squares, minimise, to_real
from tests.linalg.common import quick_jit, random_array

RNG = np.random.default_rng(3)


# Real vectors.


@pytest.mark.parametrize("single", [False, True])
def test_there_and_back(single: bool):
    cast = lambda x: x.astype({"c": np.complex64, "f": np.float32}[x.dtype.kind]) if single else x
    tree = {"a": cast(random_array(RNG, 2, 3)), "b": (cast(RNG.normal(size=2)), cast(np.array(1j)))}
    vector, from_real = to_real(tree)
    assert vector.dtype == (np.float32 if single else np.float64) and vector.shape == (16,)
    a = np.ravel(tree["a"])
    np.testing.assert_array_equal(vector[:7], [*a.real, 0])
    np.testing.assert_array_equal(vector[7:], [*a.imag, 1, *tree["b"][0]])
    for got, given in zip(jax.tree.leaves(from_real(vector)), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(got, given)
        assert got.dtype == given.dtype
    assert from_real(jnp.stack([vector] * 4))["a"].shape == (4, 2, 3)


def test_the_gradient_of_a_real_vector_goes_uphill():
    loss = lambda z: jnp.abs(z - (1 + 2j)) ** 2
    vector, from_real = to_real(0j)
    np.testing.assert_allclose(jax.grad(lambda v: loss(from_real(v)))(vector), [-2, -4])
    with pytest.raises(ValueError, match=r"from_real: the vector must be of shape \(..., 2\)"):
        from_real(jnp.ones(3))


# Least squares.


def decay(p: Any, t: Any) -> Any:
    return p["a"] * jnp.exp((1j * p["w"] - p["k"]) * t) + p["offset"][0]


def left(p: Any, data: Any) -> Any:
    return decay(p, data["t"]) - data["y"]


TRUTH = {
    "a": np.array(1 + 0.5j),
    "w": np.array(4.0),
    "k": np.array(0.3),
    "offset": [np.array(0.1j)],
}
START = {"a": 0.8 + 0j, "w": 3.7, "k": 0.1, "offset": [0j]}
TIMES = np.linspace(0, 3, 50)
NOISE = 0.02


def record(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"t": TIMES, "y": np.asarray(decay(TRUTH, TIMES)) + NOISE * random_array(rng, 50)}


def reference(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same in six real numbers, by MINPACK without any derivative of ours."""

    def model(t, ar, br, ai, bi, k, w):
        y = (ar + 1j * ai) * np.exp((1j * w - k) * TIMES) + br + 1j * bi
        return np.concatenate([y.real, y.imag])

    y = np.concatenate([data["y"].real, data["y"].imag])
    start = [0.8, 0, 0, 0, 0.1, 3.7]
    return scipy.optimize.curve_fit(model, np.tile(TIMES, 2), y, start, xtol=1e-12, ftol=1e-12)


def test_estimate_and_covariance_are_those_of_scipy():
    data = record(np.random.default_rng(0))
    fit = least_squares(left, START, data)
    x, covariance = reference(data)
    assert fit.labels == ("Re a", "Re offset.0", "Im a", "Im offset.0", "k", "w")
    np.testing.assert_allclose(to_real(fit.params)[0], x, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(to_real(fit.stderr)[0], np.sqrt(np.diag(covariance)), rtol=1e-4)
    np.testing.assert_allclose(fit.residuals, left(fit.params, data), rtol=0, atol=1e-14)
    assert fit.dof == 100 - 6 and fit.scaled and fit.at_bound == ()
    np.testing.assert_allclose(fit.chi2, np.sum(np.abs(fit.residuals) ** 2), rtol=1e-12)
    for level in (0.5, 0.95):
        low, high = fit.confidence_intervals(level)
        half = scipy.stats.t.ppf((1 + level) / 2, fit.dof) * fit.stderr["a"]
        np.testing.assert_allclose(high["a"] - fit.params["a"], half)
        np.testing.assert_allclose(fit.params["a"] - low["a"], half)
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        fit.confidence_intervals(95.0)


def test_the_summary_reads():
    text = str(least_squares(left, START, record(np.random.default_rng(0)), sigma=NOISE))
    head, *rows = text.splitlines()
    assert "for 94 degrees of freedom" in head
    assert [row.split("  ")[1] for row in rows[:-1]] == [
        "Re a", "Im a", "k", "Re offset.0", "Im offset.0", "w",
    ]  # fmt: skip
    assert all("+-" in row for row in rows[:-1]) and "strongest correlation" in rows[-1]


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [None, NOISE])
def test_error_bars_cover_the_truth(sigma: Any):
    inside, count, pulls = 0, 60, []
    truth = np.asarray(to_real(TRUTH)[0])
    for seed in range(count):
        fit = least_squares(left, START, record(np.random.default_rng(seed)), sigma=sigma)
        low, high = (np.asarray(to_real(end)[0]) for end in fit.confidence_intervals(0.9))
        inside += np.sum((low < truth) & (truth < high))
        pulls.append(
            (np.asarray(to_real(fit.params)[0]) - truth) / np.sqrt(np.diag(fit.covariance))
        )
    # 360 intervals, of which pairs are correlated: +- 3 deviations.
    assert 0.84 < inside / (6 * count) < 0.96
    assert 0.85 < np.std(pulls) < 1.15


def test_weights():
    # The mean of what is weighed, and its error bar; NaN and all where the weight is zero.
    y, sigma = random_array(RNG, 6), np.array([0.1, 0.2, 0.1, 0.4, 0.2, np.inf])
    y[-1] = np.nan
    fit = least_squares(lambda z, y: {"r": z - y}, 0j, y, sigma={"r": sigma})
    w = 1 / sigma[:-1] ** 2
    np.testing.assert_allclose(fit.params, np.sum(w * y[:-1]) / np.sum(w), rtol=1e-8)
    np.testing.assert_allclose(fit.stderr, (1 + 1j) / np.sqrt(np.sum(w)), rtol=1e-12)
    assert fit.dof == 10 - 2 and not fit.scaled
    low, high = fit.confidence_intervals(0.6827)
    np.testing.assert_allclose(high - low, 2 * fit.stderr, rtol=1e-4)


def test_bounds():
    residuals = lambda p, _: jnp.stack([p["z"] - (3 + 4j), p["x"] - 2 + 0j])
    bounds = ({"z": None, "x": None}, {"z": complex(1, np.inf), "x": 5.0})
    fit = least_squares(residuals, {"z": 0j, "x": 0.0}, bounds=bounds, sigma=1.0)
    np.testing.assert_allclose(fit.params["z"], 1 + 4j, rtol=1e-8)
    np.testing.assert_allclose(fit.params["x"], 2, rtol=1e-8)
    assert fit.at_bound == ("Re z",) and "at its bound" in str(fit)
    assert np.isnan(fit.stderr["z"].real) and np.isclose(fit.stderr["z"].imag, 1)
    with pytest.raises(
        ValueError, match="Re z starts at 2, which must lie within its bounds -inf and 1"
    ):
        least_squares(residuals, {"z": 2 + 0j, "x": 0.0}, bounds=bounds)


def test_what_the_data_leave_open():
    fit = least_squares(lambda p, _: jnp.stack([p[0] + p[1], p[2]]) - 1, [0.3, 0.2, 0j], sigma=0.1)
    bars = np.sqrt(np.diag(fit.covariance))
    np.testing.assert_allclose(bars, [0.1, 0.1, np.inf, np.inf])  # Re, Im of the third, and the two
    assert str(fit).count("not determined by the data") == 2
    assert np.isnan(fit.covariance[2, 3]) and fit.covariance[0, 1] == 0


def test_units_do_not_matter():
    # A resonance in Hz, its width, and an amplitude in volts.
    f = 5e9 + np.linspace(-1e6, 1e6, 41)
    model = lambda p, f: p["volts"] / (1 + 2j * (f - p["f0"]) / p["width"])
    truth = {"volts": np.array(3e-9 - 1e-9j), "f0": np.array(5e9 + 1.2e5), "width": np.array(3e5)}
    start = {"volts": np.array(2e-9 + 0j), "f0": np.array(5e9), "width": np.array(5e5)}
    fit = least_squares(lambda p, y: model(p, f) - y, start, model(truth, f))
    for name, value in truth.items():
        np.testing.assert_allclose(fit.params[name], value, rtol=1e-9)


def test_single_precision_stays():
    cast = lambda x: np.asarray(x, np.complex64 if np.iscomplexobj(x) else np.float32)
    data, start = (jax.tree.map(cast, tree) for tree in (record(np.random.default_rng(1)), START))
    fit = least_squares(left, start, data)
    assert fit.params["a"].dtype == np.complex64 and fit.params["w"].dtype == np.float32
    x, covariance = reference(record(np.random.default_rng(1)))
    off = np.asarray(to_real(fit.params)[0]) - x
    assert np.all(np.abs(off) < 0.02 * np.sqrt(np.diag(covariance)))


@pytest.mark.slow
def test_through_a_solver():
    # The Jacobian is the solver's tangent equations, and |z|^2 makes the field one that isn't holomorphic.
    field = lambda t, z, p: (p["gain"] - (1 + 2j) * jnp.abs(z) ** 2) * z
    times = np.linspace(0, 4, 9)
    orbit = lambda p: cd.ode.solve(field, p["z0"], times, p, rtol=1e-7, throw=False).ys
    truth = {"gain": np.array(0.8 + 1j), "z0": np.array(0.2 + 0.1j)}
    y = np.asarray(orbit(truth)) + 1e-3 * random_array(RNG, 9)
    start = {"gain": np.array(0.6 + 0.8j), "z0": np.array(0.3 + 0j)}
    fit = least_squares(lambda p, y: orbit(p) - y, start, y, sigma=1e-3)
    off = np.asarray(to_real(fit.params)[0]) - np.asarray(to_real(truth)[0])
    assert np.all(np.abs(off) < 4 * np.sqrt(np.diag(fit.covariance)))
    assert 0.2 < fit.chi2 / fit.dof < 2.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: least_squares(lambda p, _: p[:1], jnp.ones(2) + 0j), "can't determine"),
        (lambda: least_squares(lambda p, _: p, 1), "params must be a floating or complex array"),
        (lambda: least_squares(lambda p, _: 1, 1.0), "residuals must be floating or complex"),
        (lambda: least_squares(lambda p, _: p / 0, 1.0), "are not finite at params"),
        (lambda: least_squares(lambda p, _: p, 1.0, sigma=-1.0), "sigma must be positive"),
        (lambda: least_squares(lambda p, _: p, 1.0, sigma=1j), "sigma must be real"),
        (lambda: least_squares(lambda p, _: p, 1.0, sigma=np.ones(2)), "doesn't broadcast"),
        (lambda: least_squares(lambda p, _: p, 1.0, sigma=[1.0]), "sigma must be one array or"),
        (lambda: least_squares(lambda p, _: p, 1j, bounds=(0.0, None)), "must be complex, such as"),
        (lambda: least_squares(lambda p, _: p, 1.0, bounds=(1j, None)), "its parameter is real"),
        (lambda: least_squares(lambda p, _: p, 1.0, bounds=([0.0], None)), "structure of params"),
        (lambda: least_squares(lambda p, _: p, 1.0, rtol=0.0), "rtol must be between"),
        (lambda: least_squares(lambda p, _: p, 1.0, max_steps=0), "max_steps must be a positive"),
        (
            lambda: jax.jit(lambda p: least_squares(lambda p, _: p, p))(1.0),
            "can't be called inside",
        ),
        (lambda: minimise(lambda p, _: p, 1j), "loss must return a real number"),
        (lambda: minimise(lambda p, _: jnp.sqrt(p), -1.0), "not finite at params"),
        (lambda: jax.jit(lambda p: minimise(lambda p, _: p, p))(1.0), "can't be called inside"),
    ],
)
def test_bad_arguments(call: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_too_few_steps():
    with pytest.raises(
        RuntimeError, match=r"fit.least_squares: 3 evaluations were made before rtol"
    ):
        least_squares(left, START, record(np.random.default_rng(0)), max_steps=3)
    with pytest.raises(RuntimeError, match=r"fit.minimise: 3 steps were made; the loss is"):
        minimise(valley, jnp.full(4, -0.5 + 0.5j), max_steps=3)


# Minima.


def valley(z: Any, _: Any) -> Any:
    """Rosenbrock's, turned in the complex plane; zero at 1, e^0.3i, e^0.9i, ..."""
    turned = jnp.exp(0.3j) * z[:-1] ** 2
    return jnp.sum(100 * jnp.abs(z[1:] - turned) ** 2) + jnp.abs(1 - z[0]) ** 2


LOWEST = np.exp(1j * np.array([0.0, 0.3, 0.9, 2.1]))


@pytest.mark.parametrize("unit", [1.0, pytest.param(1e-12, marks=pytest.mark.slow)])
def test_minimise_goes_down_a_valley(unit: float):
    found = minimise(lambda z, _: unit * valley(z, _), jnp.full(4, 0.5 + 0.5j))
    np.testing.assert_allclose(found.params, LOWEST, rtol=2e-5)
    assert found.value < 1e-11 * unit and found.evaluations < 400


def test_minimise_within_bounds_and_from_its_own_end():
    loss = lambda p, d: jnp.abs(p["z"] - d) ** 2 + (p["x"] - 1) ** 2 + 5
    bounds = (None, {"z": complex(np.inf, 1), "x": None})
    found = minimise(loss, {"z": 0j, "x": 0.0}, 2 + 3j, bounds=bounds)
    np.testing.assert_allclose(found.params["z"], 2 + 1j, rtol=1e-7)
    np.testing.assert_allclose(found.value, 4 + 5)
    again = minimise(loss, found.params, 2 + 3j, bounds=bounds)
    assert again.value <= found.value


def test_a_kink_is_no_minimum_to_rest_in():
    with pytest.raises(RuntimeError, match="the line search failed; the loss is"):
        minimise(lambda z, _: jnp.abs(z.real) + jnp.abs(z.imag - 1), 0.3 + 0.2j)


# optax, which docs/fits.md has a table of. Its moments are sums of |g|^2 where it knows complex numbers.

OPTIMIZERS = {
    "sgd": optax.sgd(0.05),
    "momentum": optax.sgd(0.02, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05, weight_decay=1e-6),
    "adafactor": optax.adafactor(0.05),
    "adan": optax.adan(0.05),
    "amsgrad": optax.amsgrad(0.05),
    "clip_by_global_norm": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.05)),
    "adabelief": optax.adabelief(0.05),
    "adagrad": optax.adagrad(0.5),
    "adamax": optax.adamax(0.05),
    "nadam": optax.nadam(0.05),
    "radam": optax.radam(0.05),
    "rmsprop": optax.rmsprop(0.02),
    "yogi": optax.yogi(0.1),
    "lion": optax.lion(0.01),
    "lbfgs": optax.lbfgs(),
}


def bowl(z: Any) -> Any:
    """Not round: the axes of its ellipses are turned against those of the plane."""
    z = z - jnp.array([1 + 2j, -1.5 + 0.5j])
    return jnp.sum(jnp.abs(z) ** 2 + 0.6 * (jnp.exp(0.5j) * z**2).real)


def descend(optimizer: Any, conjugate: bool, steps: int = 1000) -> float:
    """The loss after so many steps from the origin, where it is about 7."""
    start = jnp.zeros(2, complex)

    def step(state, _):
        z, memory = state
        value, gradient = jax.value_and_grad(bowl)(z)
        gradient = gradient.conj() if conjugate else gradient
        updates, memory = optimizer.update(
            gradient, memory, z, value=value, grad=gradient, value_fn=bowl
        )
        return (optax.apply_updates(z, updates), memory), None

    optimizer = optax.with_extra_args_support(optimizer)
    run = quick_jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[0])
    return float(bowl(run()[0]))


SLOW = [name for name in OPTIMIZERS if name not in ("sgd", "adam")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in OPTIMIZERS]
)
def test_optax_goes_down_along_the_conjugate(name: str):
    assert bowl(jnp.zeros(2, complex)) > 5
    assert descend(OPTIMIZERS[name], conjugate=True) < 1e-3
    if name != "lbfgs":  # which finds out by its line search: see below
        assert descend(OPTIMIZERS[name], conjugate=False) > 50


# Those that know no complex numbers, and those that mix up their parts and hardly move.
SPLIT = {
    "clip": (optax.chain(optax.clip(1.0), optax.sgd(0.05)), "complex"),
    "rprop": (optax.rprop(0.01), "complex"),
    "sm3": (optax.sm3(0.05), "complex"),
    "adadelta": (optax.adadelta(1.0), None),
    "prodigy": (optax.contrib.prodigy(1.0), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLIT)
def test_optax_with_real_and_imaginary_parts_apart(name: str):
    optimizer, message = SPLIT[name]
    if message:
        with pytest.raises(ValueError, match=message):
            descend(optimizer, conjugate=True)
    else:
        assert descend(optimizer, conjugate=True) > 1
    apart = optax.contrib.split_real_and_imaginary(optimizer)
    assert descend(apart, conjugate=True) < 1e-2
    assert not descend(apart, conjugate=False) < 1  # or NaN


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.lbfgs(), optax.polyak_sgd()])
def test_what_wants_the_loss_cannot_be_split(optimizer: Any):
    with pytest.raises(TypeError, match="missing"):
        descend(optax.contrib.split_real_and_imaginary(optimizer), conjugate=True)


@pytest.mark.slow
def test_lbfgs_of_optax_needs_the_conjugate_too():
    loss = lambda z: valley(z, None)
    optimizer = optax.lbfgs()

    def end(conjugate):
        def step(state, _):
            z, memory = state
            value, gradient = jax.value_and_grad(loss)(z)
            gradient = gradient.conj() if conjugate else gradient
            updates, memory = optimizer.update(
                gradient, memory, z, value=value, grad=gradient, value_fn=loss
            )
            return (optax.apply_updates(z, updates), memory), None

        start = jnp.full(4, 0.5 + 0.5j)
        state = (start, optimizer.init(start))
        return float(loss(quick_jit(lambda: jax.lax.scan(step, state, length=200)[0])()[0]))

    assert end(conjugate=True) < 1e-12
    assert end(conjugate=False) > 1
