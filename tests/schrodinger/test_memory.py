"""The memory of a gradient: no trajectory, whatever the number of steps."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.schrodinger import _sesolve

N, BATCH = 6, 8
STATE = 16 * N * BATCH  # bytes of all states at one time: 768


def compiled(steps: int, method, hermitian: bool = True):
    """The program of a gradient with respect to amplitudes, matrices and states."""

    def loss(u, H0, H1, psi0):
        H = cd.constant(H0 + H0.conj().T)
        if method == "exact":
            H, options = H + cd.pwc(np.linspace(0, 1, steps + 1), u, H1 + H1.conj().T), {}
        else:
            H = H + cd.modulated(lambda t, p: p[0] * jnp.cos(p[1] * t), H1 + H1.conj().T, u)
            fixed = method == "magnus"
            options = dict(method=cd.Magnus(4, steps=steps)) if fixed else dict(max_steps=steps)
        result = cd.sesolve(H, psi0, [0.0, 1.0], hermitian=hermitian, throw=False, **options)
        return jnp.sum(jnp.abs(result.final_state[:, 0]) ** 2)

    matrix = jax.ShapeDtypeStruct((N, N), complex)
    psi0 = jax.ShapeDtypeStruct((BATCH, N), complex)
    u = jax.ShapeDtypeStruct((steps,), float)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    return gradient.lower(u, matrix, matrix, psi0).compile()


def temporary(program) -> int:
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, hermitian",
    [
        ("exact", True),
        pytest.param("exact", False, marks=pytest.mark.slow),
        ("magnus", True),
        pytest.param("magnus", False, marks=pytest.mark.slow),
        pytest.param("adaptive", True, marks=pytest.mark.slow),
    ],
)
def test_no_trajectory_is_stored(method: str, hermitian: bool):
    few, many = 500, 8000
    program = compiled(many, method, hermitian)
    growth = temporary(program) - temporary(compiled(few, method, hermitian))
    # A step has a time, a size, an amplitude, a slot and their gradients: no more is kept of it.
    # With checkpoints there are two times the square root of the number of blocks.
    blocks = many / (500 // N**2)
    checkpoints = 0 if hermitian else 2 * np.sqrt(blocks) * STATE
    assert growth < 100 * (many - few) + checkpoints < STATE * (many - few) / 5
    # No array in the whole program holds something of the size of a state for each step.
    shapes = re.findall(r"\b(?:f64|c128|f32|c64)\[([0-9,]+)\]", program.as_text())
    assert max(np.prod([int(s) for s in shape.split(",")]) for shape in shapes) < many * N


@pytest.mark.slow
def test_checkpoints_grow_as_the_square_root(monkeypatch):
    # One step in a block, so that what is kept for each block shows.
    monkeypatch.setattr(_sesolve, "block_size", lambda rows, per_step, n: 1)
    few, many = 400, 6400
    growth = temporary(compiled(many, "exact", False)) - temporary(compiled(few, "exact", False))
    kept = 2 * (np.sqrt(many) - np.sqrt(few)) * STATE
    assert 0.9 * kept < growth < 1.5 * kept + 100 * (many - few)
