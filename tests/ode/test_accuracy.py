"""Values and derivatives of all adjoint methods, against references that don't use this package.

Errors are relative, block by block: y0, each parameter, the times. A step errs by less than rtol |y|, and
the errors of all steps add up, those of the costate on top. The bounds below, in units of rtol, are this
sum; where a derivative is the small difference of large terms, its error is larger by their ratio.
"""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from tests.ode import reference as ref
from tests.ode.reference import KERR, LANDAU, LASER, LINEAR, TRIMER

ADJOINTS = {
    "Discrete": cd.ode.Discrete(),
    "Interpolated": cd.ode.Interpolated(),
    "Backsolve": cd.ode.Backsolve(),
    "Reversible": cd.ode.Reversible(l=0.9999),
    "ForwardSensitivity": cd.ode.ForwardSensitivity(),
}
# The trimer's loss hardly depends on the frequency: what is left of the two hundred turns' errors is large.
BOUND = {LINEAR: 30.0, LANDAU: 100.0, KERR: 200.0, LASER: 30.0, TRIMER: 1e5}
# Nearly all the time goes into compiling programs that run once: they needn't be fast ones.
QUICK = {"xla_backend_optimization_level": 0}
# What JAX makes of an exception in a callback.
WRAPPED = (RuntimeError, ValueError, jax.errors.JaxRuntimeError)


def once(f):
    return jax.jit(f, compiler_options=QUICK)


def joined(problem, y0):
    """The state as one complex array, from the pytree that is solved for."""
    return jnp.concatenate([y0["field"], y0["carriers"] + 0j], -1) if problem is LASER else y0


def split(problem, y):
    if problem is not LASER:
        return jnp.asarray(y)
    return {"field": jnp.asarray(y[..., :1]), "carriers": jnp.asarray(y[..., 1:]).real}


def solve(problem, p, rtol, **options):
    """The saved states, for p with "y0", "ts" and the parameters."""
    f = lambda t, y, p: split(problem, problem.field(jnp, t, joined(problem, y), p))
    y0, ts, params = p["y0"], p["ts"], {k: x for k, x in p.items() if k not in ("y0", "ts")}
    if problem is LASER:
        options = dict(stiff=True) | options
    elif rtol >= 1e-7:
        options = dict(solver=diffrax.Tsit5()) | options
    if problem is TRIMER:
        options = dict(max_steps=2**15) | options
    solution = cd.ode.solve(f, y0, ts, params, rtol=rtol, atol=rtol / 100, **options)
    return joined(problem, solution.ys), solution.stats


def point(problem):
    p = {k: jnp.asarray(x) for k, x in problem.params.items()}
    return p | {"y0": split(problem, problem.y0), "ts": jnp.asarray(problem.ts)}


def relative(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@functools.cache
def gradient_error(problem, adjoint: str, rtol: float, **options) -> dict[str, float]:
    """Of the states and of the gradient in each block."""

    def loss(p):
        ys, stats = solve(problem, p, rtol, adjoint=ADJOINTS[adjoint], **options)
        return problem.loss(ys), (ys, stats)

    (_, (ys, _)), g = once(jax.value_and_grad(loss, has_aux=True))(point(problem))
    assert jax.tree.map(jnp.result_type, g) == jax.tree.map(jnp.result_type, point(problem))
    g = g | {"y0": joined(problem, g["y0"])}
    errors = {k: relative(g[k], x) for k, x in ref.gradient(problem).items()}
    return {"states": relative(ys, ref.reference(problem).ys)} | errors


CASES = {
    LINEAR: ADJOINTS,
    LANDAU: ADJOINTS,
    # What decays forward grows backward: not for Backsolve and Reversible.
    KERR: ("Discrete", "Interpolated", "ForwardSensitivity"),
    LASER: ("Discrete", "Interpolated", "ForwardSensitivity"),
    TRIMER: ADJOINTS,
}


def cases(chosen):
    return [
        pytest.param(problem, adjoint, id=f"{problem.name}-{adjoint}")
        for problem, adjoints in CASES.items()
        for adjoint in adjoints
        if chosen(problem, adjoint)
    ]


def check_convergence(problem, adjoint, rtols):
    """Every block below the bound, and each falls with the tolerance, but for a few."""
    found = [gradient_error(problem, adjoint, rtol) for rtol in rtols]
    for rtol, errors in zip(rtols, found, strict=True):
        worst = max(errors, key=errors.get)
        # The solver's interpolation of the state adds to the error of the costate: measured, up to
        # 66 rtol for the laser and 31 rtol for the linear problem, at 1e-10.
        bound = BOUND[problem] * (4 if adjoint == "Interpolated" else 1)
        assert errors[worst] < bound * rtol, (rtol, worst, errors)
    first, last = (max(errors.values()) for errors in (found[0], found[-1]))
    # At loose tolerances the laser is more accurate than asked for: its first steps are short.
    gained = (rtols[0] / rtols[-1]) ** (1 / 2 if problem is LASER else 2 / 3)
    assert last * gained < first, (rtols, first, last)


@pytest.mark.slow
def test_errors_follow_the_tolerance():
    check_convergence(LANDAU, "Discrete", (1e-4, 1e-7))


@pytest.mark.slow
@pytest.mark.parametrize("problem, adjoint", cases(lambda problem, _: problem is not TRIMER))
def test_errors_follow_a_small_tolerance(problem, adjoint: str):
    check_convergence(problem, adjoint, (1e-4, 1e-7, 1e-10))


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_two_hundred_periods(adjoint: str):
    # Not at 1e-4: of so many steps the errors add up to the solution itself.
    check_convergence(TRIMER, adjoint, (1e-7, 1e-10))


@pytest.mark.parametrize(
    "problem, adjoint",
    [
        pytest.param(LANDAU, "Discrete", id="landau"),
        pytest.param(LANDAU, "ForwardSensitivity", id="landau, tangents", marks=pytest.mark.slow),
        pytest.param(LINEAR, "Discrete", id="linear", marks=pytest.mark.slow),
        pytest.param(KERR, "Discrete", id="kerr", marks=pytest.mark.slow),
        pytest.param(LASER, "Discrete", id="laser", marks=pytest.mark.slow),
        pytest.param(LASER, "ForwardSensitivity", id="laser, tangents", marks=pytest.mark.slow),
        pytest.param(TRIMER, "Discrete", id="trimer", marks=pytest.mark.slow),
    ],
)
def test_tangents(problem, adjoint: str):
    rng = np.random.default_rng(7)
    rtol = 1e-7
    sizes = {"y0": problem.y0, "ts": problem.ts} | problem.params
    noise = lambda x: ref.random(rng, *np.shape(x))
    v = {k: noise(x) if np.iscomplexobj(x) else noise(x).real for k, x in sizes.items()}
    v["y0"][list(problem.real)] = v["y0"][list(problem.real)].real
    direction = {k: jnp.asarray(x) for k, x in v.items()} | {"y0": split(problem, v["y0"])}
    f = lambda p: solve(problem, p, rtol, adjoint=ADJOINTS[adjoint])[0]
    _, found = once(lambda p, v: jax.jvp(f, (p,), (v,)))(point(problem), direction)
    assert relative(found, ref.push_forward(problem, v)) < BOUND[problem] * rtol


@pytest.mark.parametrize("problem", [LANDAU, KERR, LASER, TRIMER], ids=lambda p: p.name)
def test_tangents_of_the_references(problem):
    """They are written by hand: differences of the field."""
    dy, dp, _ = problem.directions()
    t, h, y, p = 0.3, 1e-5, problem.y0, problem.params
    tangents = problem.tangent(t, y, p, dy, {k: x[:, None] for k, x in dp.items()})
    for d, tangent in enumerate(tangents):
        moved = lambda s, d=d: {k: np.asarray(x + s * dp[k][d]) for k, x in p.items()}
        at = lambda s, d=d, moved=moved: problem.field(np, t, y + s * dy[d], moved(s))
        np.testing.assert_allclose((at(h) - at(-h)) / (2 * h), tangent, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_stiff_reference():
    ys = ref.states(LASER, "Radau", 1e-8)
    assert relative(ys, ref.reference(LASER).ys) < 1e-6


# What fails, and says so.


def test_backsolve_refuses_a_decay():
    f = lambda t, z, k: -k * z
    loss = lambda k: jnp.abs(
        cd.ode.solve(f, 1 + 1j, [0.0, 2.0], k, adjoint=cd.ode.Backsolve()).ys[-1]
    )
    with pytest.raises(WRAPPED, match=r"Backsolve: .*\d"):
        jax.block_until_ready(once(jax.grad(loss))(20.0))


@pytest.mark.slow
def test_reversible_refuses_growth():
    f = lambda t, z, w: 1j * w * z
    adjoint = cd.ode.Reversible(l=0.9)
    options = dict(adjoint=adjoint, solver=diffrax.Tsit5(), stepsize=0.01)
    loss = lambda w: cd.ode.solve(f, 1 + 0j, [0.0, 2.0], w, **options).ys[-1].real
    # eps 0.9^-200
    with pytest.raises(WRAPPED, match=r"over 200 steps at l = 0\.9 rounding may grow to 3\.1e-07"):
        jax.block_until_ready(once(jax.grad(loss))(2.0))


def test_a_field_of_nan():
    f = lambda t, z, _: jnp.where(t > 0.5, jnp.nan, 1j) * z
    with pytest.raises(WRAPPED, match="not finite"):
        jax.block_until_ready(cd.ode.solve(f, 1 + 0j, [0.0, 1.0]).ys)


# Where diffrax itself goes wrong.


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver, most",
    [
        pytest.param(diffrax.Kvaerno5(), 150, id="Kvaerno5"),
        pytest.param(diffrax.Kvaerno3(), 200, id="Kvaerno3", marks=pytest.mark.slow),
        pytest.param(diffrax.Kvaerno4(), 250, id="Kvaerno4", marks=pytest.mark.slow),
    ],
)
def test_implicit_steps_of_a_field_that_is_not_holomorphic(solver, most: int):
    # A Newton iteration that takes the field for holomorphic converges slowly or not at all.
    rtol = 1e-5

    def loss(p):
        ys, stats = solve(LANDAU, p, rtol, solver=solver)
        return LANDAU.loss(ys), stats

    (_, stats), g = once(jax.value_and_grad(loss, has_aux=True))(point(LANDAU))
    assert stats.steps + stats.rejected_steps < most
    for k, x in ref.gradient(LANDAU).items():
        assert relative(g[k], x) < BOUND[LANDAU] * rtol, k


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["Discrete", "Backsolve"])
def test_complex_and_real_states_and_parameters(adjoint: str):
    # z' = i x z, x' = Re c + k, whose solution is known.
    f = lambda t, y, p: {"z": 1j * y["x"] * y["z"], "x": p["c"].real + p["k"]}
    measure = lambda y: y["z"].imag + jnp.abs(y["z"]) ** 2 * y["x"] ** 2

    def solved(y0, p):
        options = dict(solver=diffrax.Tsit5(), rtol=1e-8, atol=1e-10)
        ys = cd.ode.solve(f, y0, [0.0, 1.5], p, adjoint=ADJOINTS[adjoint], **options).ys
        return measure(jax.tree.map(lambda y: y[-1], ys))

    def known(y0, p):
        slope = p["c"].real + p["k"]
        turn = jnp.exp(1j * (1.5 * y0["x"] + 1.5**2 / 2 * slope))
        return measure({"z": y0["z"] * turn, "x": y0["x"] + 1.5 * slope})

    y0 = {"z": jnp.asarray(0.6 - 0.8j), "x": jnp.asarray(0.7)}
    p = {"c": jnp.asarray(0.4 + 0.9j), "k": jnp.asarray(-0.1)}
    got = once(jax.grad(solved, (0, 1)))(y0, p)
    expected = jax.grad(known, (0, 1))(y0, p)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9, strict=True)
    jax.tree.map(same, got, expected)


@pytest.mark.slow
def test_implicit_euler():
    # Its gradient is of first order: the error halves with the step.
    def loss(p, h):
        ys, _ = solve(LANDAU, p, 1e-8, solver=diffrax.ImplicitEuler(), stepsize=h)
        return LANDAU.loss(ys)

    errors = []
    for h in (0.01, 0.005):
        g = once(jax.grad(lambda p, h=h: loss(p, h)))(point(LANDAU))
        errors.append(np.array([relative(g[k], x) for k, x in ref.gradient(LANDAU).items()]))
    assert np.all(errors[0] < 0.1)
    np.testing.assert_allclose(errors[1] / errors[0], 0.5, rtol=0, atol=0.1)


@pytest.mark.slow
def test_single_precision_stays():
    f = lambda t, z, w: 1j * w * z * jnp.abs(z) - t * z.conj()

    def loss(z, w):
        solution = cd.ode.solve(f, z, [0.0, 1.0], w, rtol=1e-4, atol=1e-5)
        return jnp.abs(solution.ys[-1]) ** 2, solution

    args = jnp.asarray(1 + 1j, jnp.complex64), jnp.asarray(0.5, jnp.float32)
    (value, solution), g = once(jax.value_and_grad(loss, (0, 1), has_aux=True))(*args)
    dtypes = [x.dtype for x in (value, solution.ts, solution.ys, *g)]
    assert dtypes == [jnp.float32, jnp.float32, jnp.complex64, jnp.complex64, jnp.float32]
