"""A solution that can be evaluated at any time: a step from the last kept state before it."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from cdiffeq._errors import poison
from cdiffeq.ode._flow import flow
from cdiffeq.ode._march import grid_of, step_times


class Dense(eqx.Module):
    """The states before every step of a solve, and all that it takes to step on from them."""

    problem: Any = eqx.field(static=True)
    layout: Any = eqx.field(static=True)
    states: Array
    ends: Array
    before: Array
    ts: Array
    direction: Array
    params: Any
    fixed: Any

    def __call__(self, t: Array) -> Any:
        """The state at a time between the first and the last, as a pytree; NaN elsewhere."""
        s = self.direction * t
        grid = grid_of(self.ts, self, self.problem.stepping)
        numbers = jnp.arange(len(self.states))
        starts = jax.vmap(lambda n: step_times(self.ts, grid.at(n))[0])(numbers)
        held = jnp.where(numbers < grid.total, jax.lax.stop_gradient(starts), jnp.inf)
        n = jnp.clip(jnp.searchsorted(held, jax.lax.stop_gradient(s), side="right") - 1, 0)
        inside = (s >= self.ts[0]) & (s <= self.ts[-1])
        # Outside a time that can be solved for, so that nothing but the NaN comes of it.
        s = jnp.where(inside, s, starts[n])
        stepping = self.problem.stepping
        few = dataclasses.replace(stepping, first=jnp.inf, max_steps=64)
        problem = dataclasses.replace(
            self.problem, stepping=self.problem.adjoint.prepare(few, False), moving=True
        )
        span = jnp.stack([starts[n], s])
        out = flow(self.states[n], span, self.params, self.fixed, problem)
        y, _ = self.layout.unpack(out.ys[-1])
        return poison(y, ~inside)
