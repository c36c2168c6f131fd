"""From a Hamiltonian and a grid to the exponents of every step, at given or at adaptive step sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Inexact, Int, PyTree, Real

from cdiffeq._errors import is_traced
from cdiffeq.linalg._expm import exponential
from cdiffeq.schrodinger._grid import Grid
from cdiffeq.schrodinger._hamiltonian import Constant, Hamiltonian, Pwc
from cdiffeq.schrodinger._magnus import Scheme
from cdiffeq.wirtinger._linear_map import hoist


class Steps(NamedTuple):
    """Steps in their order: each covers the part [begin, end] of an interval, as fractions of it.

    Fractions stay put while saved times and edges move, so that the derivative with respect to a time
    is exact, too. The first `used` rows are steps.
    """

    interval: Int[Array, " m"]
    begin: Float[Array, " m"]
    end: Float[Array, " m"]
    used: int | Int[Array, ""]

    def pad(self, rows: int, beyond: int) -> Steps:
        """With more rows, of an interval that doesn't exist."""
        pad = lambda a, value: jnp.pad(a, (0, rows), constant_values=value)
        return Steps(pad(self.interval, beyond), pad(self.begin, 0), pad(self.end, 0), self.used)


def make_generator(
    H: Hamiltonian, scheme: Scheme, dtype: jnp.dtype, grid: Grid
) -> tuple[PyTree[Array], PyTree[Array], Callable[..., Complex[Array, "s n n"]]]:
    """The generator (params, fixed, x) -> exponents of one step, with its params and fixed arrays.

    The data of a step is x = (time, size, amplitudes of the controls). `params` are the matrices, the
    parameters of the terms' functions, and whatever real or complex arrays these close over.
    """
    # The amplitudes of controls are data of the steps; of their terms only the matrix is left.
    controlled = [isinstance(term, Pwc) for term in H.terms]
    bare = [Constant(term.matrix) if isinstance(term, Pwc) else term for term in H.terms]
    arrays, static = eqx.partition(bare, eqx.is_inexact_array)

    def matrix(arrays, t, amplitudes):
        values = iter(amplitudes)
        matrices = [
            next(values) * term.matrix_at(t) if control else term.matrix_at(t)
            for term, control in zip(eqx.combine(arrays, static), controlled, strict=True)
        ]
        return sum(matrices[1:], matrices[0])

    def exponents(arrays, x):
        t, h, amplitudes = x
        nodes = jnp.asarray(scheme.nodes, h.dtype)
        weights = jnp.asarray(scheme.weights, h.dtype)
        if len(nodes) == 1:
            at_nodes = matrix(arrays, t + nodes[0] * h, amplitudes)[None]
        else:
            at_nodes = jax.vmap(lambda c: matrix(arrays, t + c * h, amplitudes))(nodes)
        return (-1j * h * jnp.tensordot(weights, at_nodes, axes=1)).astype(dtype)

    moving, fixed, pure = hoist_step(exponents, arrays, grid)

    def generator(params, fixed, x):
        arrays, moving = params
        return pure(moving, fixed, arrays, x)

    return (arrays, moving), fixed, generator


def hoist_step(
    fn: Callable[..., Any], arrays: PyTree[Any], grid: Grid
) -> tuple[PyTree[Array], PyTree[Array], Callable[..., Any]]:
    """``fn(arrays, x)`` of the data x of a step as a function of (moving, fixed, arrays, x), and these two.

    They are what it closes over: traced numbers, which have derivatives, and the rest.
    """
    number = grid.starts[0]
    example = (number, number, [a[0] for a in grid.amplitudes])
    pure, _, consts = hoist(fn, arrays, example)
    # Nodes, weights and numbers written in the functions are NumPy's, and have no derivative.
    moving, fixed = eqx.partition(consts, lambda c: is_traced(c) and eqx.is_inexact_array(c))

    def explicit(moving, fixed, arrays, x):
        return pure(eqx.combine(moving, fixed), arrays, x)

    return moving, jax.tree.map(jnp.asarray, fixed), explicit


def step_data(grid: Grid, steps: Steps, saves: int) -> tuple[PyTree[Array], Int[Array, " m"]]:
    """The data x of every step, and the slot in which the state after it is saved.

    A step of an interval beyond the last has no length.
    """
    take = lambda a, beyond: a.at[steps.interval].get(mode="fill", fill_value=beyond)
    length = take(grid.lengths, 0)
    x = (
        take(grid.starts, 0) + steps.begin * length,
        (steps.end - steps.begin) * length,
        [a[take(s, 0)] for a, s in zip(grid.amplitudes, grid.slices, strict=True)],
    )
    return x, jnp.where(steps.end == 1, take(grid.slots, saves), saves)


def equal_steps(grid: Grid, per_interval: int) -> Steps:
    """The same number of equal steps in each interval, but one in the first, which has no length."""
    n = len(grid.starts) - 1
    corners = jnp.arange(per_interval + 1, dtype=grid.starts.dtype) / per_interval
    whole = lambda a, value: jnp.concatenate([jnp.full_like(a, value, shape=1), a])
    return Steps(
        whole(jnp.repeat(jnp.arange(1, n + 1, dtype=jnp.int32), per_interval), 0),
        whole(jnp.tile(corners[:-1], n), 0),
        whole(jnp.tile(corners[1:], n), 1),
        1 + n * per_interval,
    )


# (psi, x) -> the state after a step, and after its two halves, from the data x of the three
Attempt: TypeAlias = Callable[[Any, PyTree[Any]], tuple[Any, Any]]


class Plan(NamedTuple):
    """How a method takes its steps.

    - `order`: of the steps' error; `steps`: in each interval, None for adaptive ones.
    - `exponentials`: how many a step has.
    - `stepper`: (saves, block, meter) -> the `Stepper`.
    - `attempt`: (params, fixed) -> what `search_steps` tries.
    """

    order: int
    steps: int | None
    exponentials: int
    stepper: Callable[..., Any]
    attempt: Callable[..., Attempt]


class Chosen(NamedTuple):
    """Adaptive steps, and how their choice went."""

    steps: Steps
    attempts: Int[Array, ""]
    finished: Bool[Array, ""]
    time: Real[Array, ""]


def choose_steps(
    exponents: Callable[[PyTree[Any]], Inexact[Array, "s n n"]],
    grid: Grid,
    psi: Inexact[Array, "n batch"],
    order: int,
    tolerances: Real[Array, "2"],
    max_steps: int,
    meter: diffrax.AbstractProgressMeter,
    meter_state: PyTree[Array],
) -> tuple[Chosen, PyTree[Array]]:
    """`search_steps` for steps that are products of exponentials of dense matrices."""

    attempt = dense_attempt(exponents)
    return search_steps(attempt, grid, psi, order, tolerances, max_steps, meter, meter_state)


def dense_attempt(exponents: Callable[[PyTree[Any]], Inexact[Array, "s n n"]]) -> Attempt:
    """What `search_steps` tries, for products of exponentials of dense matrices."""

    def attempt(psi, x):
        X = jax.vmap(exponents)(x)
        U = exponential(X, skew=False).value
        apply = lambda psi, U: (U @ psi, None)
        coarse = jax.lax.scan(apply, psi, U[0])[0]
        fine = jax.lax.scan(apply, psi, U[1:].reshape(-1, *U.shape[2:]))[0]
        return coarse, fine

    return attempt


def search_steps(
    attempt_steps: Attempt,
    grid: Grid,
    psi: Inexact[Array, "n batch"],
    order: int,
    tolerances: Real[Array, "2"],
    max_steps: int,
    meter: diffrax.AbstractProgressMeter,
    meter_state: PyTree[Array],
) -> tuple[Chosen, PyTree[Array]]:
    """Steps that keep the error of a solve within ``atol + rtol |psi|``, by step doubling.

    A step is tried as one and as two halves; the difference estimates the error of the halves, which
    become two steps of the solve. The estimate is kept below the tolerance times the step's share of
    the whole time, for every state of the batch. A step takes at most a fiftieth of it. Stops at
    `max_steps` attempts, or where the step size falls to the rounding of the time.
    """
    rtol, atol = tolerances
    real = psi.real.dtype
    eps = jnp.finfo(real).eps
    total = jnp.sum(jnp.abs(grid.lengths))
    longest = jnp.where(total > 0, total / 50, 1)
    last = len(grid.starts) - 1

    def attempt(state):
        psi, p, u, h, steps, attempts, meter_state = state
        length = jnp.abs(grid.lengths[p])
        # What is left of the interval is cut into equal parts, so that no crumb remains at its end.
        parts = jnp.maximum(jnp.ceil((1 - u) * length / h), 1)
        size = (1 - u) / parts * length
        end = jnp.where(parts == 1, 1.0, u + (1 - u) / parts)
        middle = (u + end) / 2
        corners = jnp.stack([u, u, middle]), jnp.stack([end, middle, end])
        trial = Steps(jnp.full(3, p), *corners, 3)
        coarse, fine = attempt_steps(psi, step_data(grid, trial, 0)[0])

        norm = lambda psi: jnp.linalg.norm(psi, axis=0)
        error = norm(fine - coarse) / (2**order - 1)
        # Rounding in a step can't be made smaller by making the step so.
        allowed = jnp.maximum((atol + rtol * norm(psi)) * size / total, 8 * eps * norm(psi))
        ratio = jnp.max(jnp.where(size > 0, error / allowed, 0))
        accept = ratio <= 1
        factor = jnp.clip(0.9 * ratio ** (-1 / order), 0.2, 5)
        factor = jnp.where(jnp.isfinite(factor), factor, jnp.where(ratio == 0, 5, 0.2))
        # A step cut short by the end of its interval says nothing against the size before it.
        cut = accept & (2 * size < h)
        h = jnp.where(cut, jnp.maximum(h, factor * size), factor * size)
        # However little happens: a step that is too long is blind to what happens within it.
        h = jnp.minimum(h, longest)

        rows = jnp.where(accept, steps.used + jnp.arange(2), 2 * max_steps)
        put = lambda a, v: a.at[rows].set(v, mode="drop")
        steps = Steps(
            put(steps.interval, trial.interval[1:]),
            put(steps.begin, trial.begin[1:]),
            put(steps.end, trial.end[1:]),
            steps.used + 2 * accept,
        )
        done = accept & (end == 1)
        psi = jnp.where(accept, fine, psi)
        p, u = jnp.where(done, p + 1, p), jnp.where(done, 0.0, jnp.where(accept, end, u))
        meter_state = meter.step(meter_state, (p + u) / (last + 1))
        return psi, p, u, h, steps, attempts + 1, meter_state

    def unfinished(state):
        _, p, _, h, _, attempts, _ = state
        return (p <= last) & (attempts < max_steps) & (h > 8 * eps * total)

    zero, none = jnp.zeros((), real), jnp.zeros((), jnp.int32)
    rows = jnp.zeros(2 * max_steps, real)
    steps = Steps(rows.astype(jnp.int32), rows, rows, none)
    state = (psi, none, zero, longest / 2, steps, none, meter_state)
    _, p, u, _, steps, attempts, meter_state = jax.lax.while_loop(unfinished, attempt, state)
    here = jnp.minimum(p, last)
    time = grid.starts[here] + u * grid.lengths[here]
    return Chosen(steps, attempts, p > last, time), meter_state
