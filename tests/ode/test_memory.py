"""Memory and work, from the structure of the compiled programs."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd

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
        assert temporary(max_steps, adjoint) < 1.2 * recursive_checkpoints(max_steps)
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
