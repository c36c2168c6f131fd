"""The times at which a solve must stop, and the slice of every control in between.

A step may not run over a time that is saved or over an edge of a piecewise constant control. All of
these, sorted in the direction of the solve, are the *pins*; *interval* p ends at pin p. Which slice of a
control holds on an interval is counted from the order of the pins, never computed from a time: rounding
can't put a step on the wrong side of an edge.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from cdiffeq.schrodinger._hamiltonian import Hamiltonian, Pwc


class Grid(NamedTuple):
    """Intervals of a solve in their order; the first has no length, and ends at the initial time.

    - `starts`: where each interval begins, (p,).
    - `lengths`: its signed length, (p,); intervals may be empty.
    - `amplitudes`: for each piecewise constant term, its amplitude in each interval, (p,).
    - `slots`: the index of the saved time at which the interval ends, or len(ts), (p,).
    """

    starts: Float[Array, " p"]
    lengths: Float[Array, " p"]
    amplitudes: list[Inexact[Array, " p"]]
    slots: Int[Array, " p"]


def make_grid(H: Hamiltonian, ts: Float[Array, " time"]) -> Grid:
    """The grid of a solve that starts at ts[0] and saves at all ts, in ascending or descending order."""
    controls = [term for term in H.terms if isinstance(term, Pwc)]
    forward = ts[-1] >= ts[0]
    low, high = jnp.where(forward, ts[0], ts[-1]), jnp.where(forward, ts[-1], ts[0])

    # An edge outside the solve is moved to its end, where it bounds an empty interval.
    inside = lambda edges: jnp.where(edges < low, low, jnp.where(edges > high, high, edges))
    points = jnp.concatenate([ts, *[inside(c.edges.astype(ts.dtype)) for c in controls]])
    origin = jnp.concatenate([jnp.full(len(ts), -1), *[jnp.full(len(c.edges), j) for j, c in enumerate(controls)]])

    order = jnp.argsort(jax.lax.stop_gradient(points), stable=True)
    order = jnp.where(forward, order, order[::-1])
    pins, origin = points[order], origin[order]
    starts = jnp.concatenate([pins[:1], pins[:-1]])

    amplitudes = []
    for j, control in enumerate(controls):
        passed = jnp.cumsum(origin == j) - (origin == j)  # edges passed before the interval
        below = jnp.where(forward, passed, len(control.edges) - passed)
        amplitudes.append(control.padded_values()[below])
    slots = jnp.where(origin == -1, order, len(ts))
    return Grid(starts, pins - starts, amplitudes, slots)
