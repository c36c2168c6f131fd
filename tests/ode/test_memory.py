"""Memory and work, from the structure of the compiled programs."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.ode._march import slot_of, spacing, widest_spacing

N = 64
STATE = 16 * N  # bytes


def field(t, z, c):
    return 1j * (c * jnp.roll(z, -1) + jnp.abs(z) ** 2 * z)


def temporary(max_steps: int, adjoint, **options) -> int:
    def loss(z, c):
        solution = cd.ode.solve(
            field, z, [0.0, 1.0], c, adjoint=adjoint, max_steps=max_steps, solver=diffrax.Bosh3(),
            throw=False, **options,
        )  # fmt: skip
        return jnp.sum(jnp.abs(solution.ys[-1]) ** 4)

    z = jax.ShapeDtypeStruct((N,), complex)
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(z, z).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def recursive_checkpoints(max_steps: int) -> int:
    """The same of diffrax's default, in real and imaginary parts."""

    def split(t, y, c):
        dz = field(t, jax.lax.complex(y[:N], y[N:]), jax.lax.complex(c[:N], c[N:]))
        return jnp.concatenate([dz.real, dz.imag])

    def loss(y, c):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(split), diffrax.Bosh3(), 0.0, 1.0, None, y, args=c, max_steps=max_steps,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
        )  # fmt: skip
        return jnp.sum(solution.ys[-1] ** 4)

    shape = jax.ShapeDtypeStruct((2 * N,), float)
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint, options",
    [
        (cd.ode.Backsolve(), {}),
        (cd.ode.Reversible(), dict(stepsize=1e-3)),
        (cd.ode.ForwardSensitivity(), {}),
    ],
)
def test_flat(adjoint, options):
    if isinstance(adjoint, cd.ode.ForwardSensitivity):
        options = dict(stepsize=1e-3)
    few, many = (temporary(steps, adjoint, **options) for steps in (1000, 16000))
    assert abs(many - few) < STATE


@pytest.mark.slow
def test_reversible_remembers_a_number_for_each_adaptive_step():
    few, many = (temporary(steps, cd.ode.Reversible()) for steps in (1000, 16000))
    assert 8 * 15000 <= many - few < 48 * 15000 < STATE * 15000 / 20


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [cd.ode.Discrete(), cd.ode.Interpolated()])
def test_no_more_than_recursive_checkpoints(adjoint):
    for max_steps in (1000, 16000):
        assert temporary(max_steps, adjoint) < recursive_checkpoints(max_steps)
    growth = temporary(16000, adjoint) - temporary(1000, adjoint)
    assert growth < 2 * (np.sqrt(16000) - np.sqrt(1000) + 2) * STATE + 48 * 15000


@pytest.mark.slow
def test_checkpoints_can_be_chosen():
    few, default = (
        temporary(16000, cd.ode.Interpolated(checkpoints=k)) for k in (1000, None)
    )  # fmt: skip
    assert few - default > 700 * STATE


def test_work_of_a_solve_is_counted():
    counts = {"f": 0}

    def f(t, z, w):
        jax.debug.callback(lambda: counts.update(f=counts["f"] + 1))
        return 1j * w * z

    solution = cd.ode.solve(f, 1 + 0j, [0.0, 5.0], 1.0, solver=diffrax.Bosh3())
    jax.effects_barrier()
    # The choice of the first step takes two evaluations that aren't counted.
    assert abs(counts["f"] - int(solution.stats.evaluations)) <= 2


@pytest.mark.parametrize(
    "max_steps, slots", [(5, 2), (17, 4), (100, 10), (1000, 32), (64, 64), (300, 1)]
)
def test_the_states_that_are_kept_are_those_that_are_looked_for(max_steps, slots):
    kept = {}
    numbers = jnp.arange(max_steps, dtype=jnp.int32)
    spacings = np.asarray(spacing(numbers, slots))
    places = np.asarray(slot_of(numbers, slots, max_steps))
    for n in range(max_steps):
        if n % spacings[n] == 0:
            assert 0 <= places[n] < slots
            kept[places[n]] = n
        wanted = range(0, n + 1, spacings[n])
        assert [kept[places[m]] for m in wanted] == list(wanted)
        # As close together as the slots allow.
        assert spacings[n] == 1 or slots == 1 or (n + 1) > slots * (spacings[n] // 2)
    assert max(spacings) == widest_spacing(max_steps, slots)


def test_few_steps_are_not_made_again():
    """Where all states were kept the gradient evaluates f for the stages, and for the vjps, alone."""
    steps, counts = 30, {"f": 0}

    def f(t, z, w):
        jax.debug.callback(lambda: counts.update(f=counts["f"] + 1))
        return 1j * w * z

    def evaluations(max_steps):
        options = dict(solver=diffrax.Bosh3(), stepsize=1 / steps, max_steps=max_steps)
        counts["f"] = 0
        jax.grad(lambda w: cd.ode.solve(f, 1 + 0j, [0.0, 1.0], w, **options).ys[-1].real)(1.0)
        jax.effects_barrier()
        return counts["f"]

    enough = evaluations(4096)  # 64 slots
    # 26 slots, every second state kept: 15 steps of 3 evaluations, one more where each of them starts.
    assert evaluations(400) - enough == 15 * 3 + 15
    # 6 slots, every eighth: between these 7, 7, 7 and 5 steps.
    assert evaluations(40) - enough == 26 * 3 + 4
