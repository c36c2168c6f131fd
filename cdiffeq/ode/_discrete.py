r"""The exact derivative of the steps that the solver took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cdiffeq.ode._flow import Problem
from cdiffeq.ode._march import (
    Record,
    Stepping,
    balanced_slots,
    grid_of,
    slot_of,
    spacing,
    step_times,
    widest_spacing,
)
from cdiffeq.ode._method import AdjointMethod


class Discrete(AdjointMethod):
    r"""Adjoint method: the derivative of the accepted steps, by the Runge-Kutta method's own adjoint.

    Each accepted step ``y+ = Phi_h(t, y)`` has the adjoint ``mu = (dPhi)* mu+``, whose stages cost one vjp
    of f each (`_steppers.py` has the equations). Step sizes are held fixed, as fractions of the interval
    between two saved times. The gradient is exact for what was computed, to rounding, however loose the
    tolerance: what an optimizer wants, and the default.

    **Works for** every Runge-Kutta solver of diffrax, explicit, diagonally implicit or both. **Don't use
    it** where f is large and the solver implicit (a stage takes a dense factorization of the Jacobian, 2N
    for N complex numbers).

    **Cost**: about two more forward solves, but one where there are no more than about sqrt(max_steps)
    steps, whose states are all kept; a vjp of f in y for each stage of each accepted step, and a few in
    the parameters for each step, of several stages at once (by `jax.vmap` of f).
    **Memory**: about 2 sqrt(max_steps) states, and one number for each of max_steps.

    Source: A. Sandu 2006, doi:10.1007/11758549_85; the checkpoints are those of A. Griewank 1992,
    doi:10.1080/10556789208805505, at two levels, made while the number of steps isn't known.

    >>> f = lambda t, z, w: 1j * w * z * jnp.abs(z) ** 2
    >>> loss = lambda w: cd.ode.solve(f, 1 + 0j, [0.0, 1.0], w, adjoint=cd.ode.Discrete()).ys[-1].real
    >>> print(f"{jax.grad(loss)(0.5):.5f} {-np.sin(0.5):.5f}")
    -0.47943 -0.47943
    """

    def prepare(self, stepping: Stepping, dense: bool) -> Stepping:
        """What the forward pass has to keep."""
        if stepping.stepper.tableau is None:
            name = type(stepping.stepper.solver).__name__
            raise TypeError(
                f"adjoint=Discrete() needs a Runge-Kutta solver with a tableau; {name} has none. Use "
                "Interpolated() or Backsolve()."
            )
        slots = stepping.max_steps if dense else balanced_slots(stepping.max_steps)
        return dataclasses.replace(stepping, slots=slots, record=True)

    def pull_back(self, problem: Problem, args: Any, out: Record, g: Record) -> Any:
        y0, ts, params, fixed, _ = args
        F, stepper = problem.with_fixed(fixed), problem.stepping.stepper
        dense = problem.stepping.slots == problem.stepping.max_steps  # each state is an output, too

        def back(n, place, y, state):
            mu, g_ts, g_params = state
            k, _, end = place
            t, h = step_times(ts, place)
            mu = mu + jnp.where(end >= 1, g.ys[k + 1], 0)
            step = stepper.adjoint_step(F, t, h, y, params, mu)
            mu = step.y + g.kept[n] if dense else step.y
            if problem.moving:
                g_ts = add_time_gradient(g_ts, place, step.t, step.h)
            return mu, g_ts, jax.tree.map(jnp.add, g_params, step.p)

        zeros = jax.tree.map(jnp.zeros_like, (y0, ts, params))
        mu, g_ts, g_params = run_steps_back(problem, args, out, back, zeros)
        return mu + g.ys[0], g_ts, g_params


def add_time_gradient(g_ts: Any, place: tuple[Any, Any, Any], g_t: Any, g_h: Any) -> Any:
    """Adds the gradients of a step's initial time and length to those of its interval's two ends."""
    k, start, end = place
    start, end = start.astype(g_ts.dtype), end.astype(g_ts.dtype)
    g_t, g_h = g_t.astype(g_ts.dtype), g_h.astype(g_ts.dtype)
    g_ts = g_ts.at[k].add(g_t * (1 - start) - g_h * (end - start))
    return g_ts.at[k + 1].add(g_t * start + g_h * (end - start))


def run_steps_back(
    problem: Problem, args: Any, out: Record, back: Callable[[Any, Any, Any, Any], Any], state: Any
) -> Any:
    """``state = back(n, place, y, state)`` for each step of the record, from the last to the first.

    `y` is the state before the step: one of those that were kept, or stepped to anew from one.
    """
    y0, ts, params, fixed, _ = args
    stepping = problem.stepping
    F, stepper = problem.with_fixed(fixed), stepping.stepper
    max_steps, slots = stepping.max_steps, stepping.slots
    grid = grid_of(ts, out, stepping)
    count = grid.total
    stride = spacing(jnp.maximum(count - 1, 0), slots)

    def segment(i, state):
        first = ((count - 1) // stride - i) * stride
        last = jnp.minimum(first + stride, count)
        y = out.kept[slot_of(first, slots, max_steps)]
        t, _ = step_times(ts, grid.at(first))

        def again(n, carried):
            y, carry, between = carried
            place = grid.at(n)
            t, h = step_times(ts, place)
            done = stepper.step(F, t, h, y, params, carry)
            carry = jax.lax.cond(
                place[2] >= 1,
                lambda c: stepper.restart(F, t + h, done.y, params, c),
                lambda c: c,
                done.carry,
            )
            return done.y, carry, jax.lax.dynamic_update_index_in_dim(between, y, n - first, 0)

        # The last step needs no stepping, only its initial state is asked for: where all states were kept,
        # nothing is stepped.
        start = lambda: stepper.init(F, t, y, params)
        unused = lambda: jax.tree.map(jnp.zeros_like, jax.eval_shape(start))
        carry = jax.lax.cond(last - first > 1, start, unused)
        between = jnp.zeros((widest_spacing(max_steps, slots), len(y0)), y0.dtype)
        carried = (y, carry, between)
        y, _, between = jax.lax.fori_loop(first, last - 1, again, carried)
        between = jax.lax.dynamic_update_index_in_dim(between, y, last - 1 - first, 0)

        def one_back(j, state):
            n = last - 1 - j
            return back(n, grid.at(n), between[n - first], state)

        return jax.lax.fori_loop(0, last - first, one_back, state)

    return jax.lax.fori_loop(0, (count + stride - 1) // stride, segment, state)
