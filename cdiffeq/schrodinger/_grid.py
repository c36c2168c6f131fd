"""The times at which a solve must stop, and the slice of every control in between.

A step may not run over a time that is saved or over an edge of a piecewise constant control. All of
these, sorted in the direction of the solve, are the *pins*; *interval* p ends at pin p. Which slice of a
control holds on an interval is counted from the order of the pins, never computed from a time: rounding
can't put a step on the wrong side of an edge.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, Int

from cdiffeq._errors import is_traced
from cdiffeq.schrodinger._hamiltonian import Hamiltonian


class Order(NamedTuple):
    """The order of the pins, integers only.

    - `sources`: the controls whose edges are pins; controls with the same edges share them.
    - `groups`: for each control, its place in `sources`.
    - `order`: the pins as positions in (ts, edges of the first source, ...), (p,).
    - `slices`: for each source the slice of its amplitudes, padded, that holds on each interval, (p,).
    - `slots`: the index of the saved time at which each interval ends, or len(ts), (p,).
    """

    sources: tuple[int, ...]
    groups: tuple[int, ...]
    order: Int[ArrayLike, " p"]
    slices: list[Int[ArrayLike, " p"]]
    slots: Int[ArrayLike, " p"]


class Grid(NamedTuple):
    """Intervals of a solve in their order; the first has no length, and ends at the initial time.

    - `starts`: where each interval begins, (p,).
    - `lengths`: its signed length, (p,); intervals may be empty.
    - `amplitudes`, `slices`: for each piecewise constant term its amplitudes, with a zero at both ends,
      and which of them holds in each interval, (p,).
    - `slots`: the index of the saved time at which the interval ends, or len(ts), (p,).
    """

    starts: Float[Array, " p"]
    lengths: Float[Array, " p"]
    amplitudes: list[Inexact[Array, " k+2"]]
    slices: list[Int[Array, " p"]]
    slots: Int[Array, " p"]


def order_pins(H: Hamiltonian, ts: Float[Array, " time"]) -> Order:
    """The order of a solve that starts at ts[0] and saves at all ts, which ascend or descend.

    Found with NumPy, once, where the times are known; a part of the program where they are traced.
    """
    controls = H.controls
    sources: list[int] = []
    groups = []
    for j, control in enumerate(controls):
        same = [k for k, s in enumerate(sources) if _equal(controls[s].edges, control.edges)]
        groups.append(same[0] if same else len(sources))
        if not same:
            sources.append(j)
    edges = [controls[s].edges for s in sources]

    known = not any(is_traced(a) for a in (ts, *edges))
    xp: Any = np if known else jnp
    ts = xp.asarray(ts)
    forward = ts[-1] >= ts[0]
    ascending = xp.where(forward, ts, ts[::-1])
    order = _merge(xp, [ascending, *[xp.asarray(e).astype(ts.dtype) for e in edges]])
    order = xp.where(forward, order, order[::-1])
    origin = np.concatenate(
        [np.full(len(ts), -1), *[np.full(len(e), k) for k, e in enumerate(edges)]]
    )
    origin = xp.asarray(origin)[order]
    order = xp.where(forward | (origin != -1), order, len(ts) - 1 - order)
    slices = []
    for k, e in enumerate(edges):
        passed = xp.cumsum(origin == k) - (origin == k)  # edges of the source before the interval
        slices.append(xp.where(forward, passed, len(e) - passed))
    slots = xp.where(origin == -1, order, len(ts))
    small = lambda a: a.astype(np.int32)
    return Order(
        tuple(sources), tuple(groups), small(order), [small(s) for s in slices], small(slots)
    )


def make_grid(H: Hamiltonian, ts: Float[Array, " time"], pins: Order) -> Grid:
    """The intervals between the pins, as differentiable functions of times, edges and amplitudes."""
    controls = H.controls
    edges = _inside(jnp, ts, [controls[s].edges for s in pins.sources])
    times = jnp.concatenate([ts, *edges])[pins.order]
    starts = jnp.concatenate([times[:1], times[:-1]])
    return Grid(
        starts,
        times - starts,
        [control.padded_values() for control in controls],
        [jnp.asarray(pins.slices[group]) for group in pins.groups],
        jnp.asarray(pins.slots),
    )


def _equal(a: Array, b: Array) -> bool:
    if is_traced(a) or is_traced(b):
        return a is b
    return a is b or np.array_equal(a, b)


def _inside(xp: Any, ts: Any, edges: list[Any]) -> list[Any]:
    """The edges, where one outside the solve is moved to its end and bounds an empty interval."""
    # Not a minimum and a maximum: where both times are equal, these have half of each as derivative.
    forward = ts[-1] >= ts[0]
    low, high = xp.where(forward, ts[0], ts[-1]), xp.where(forward, ts[-1], ts[0])
    edges = [xp.asarray(e).astype(ts.dtype) for e in edges]
    return [xp.where(e < low, low, xp.where(e > high, high, e)) for e in edges]


def _merge(xp: Any, lists: list[Any]) -> Any:
    """The stable order of the concatenation of ascending lists.

    Ranks are counted by bisection: XLA takes seconds to fold a sort of known numbers away.
    """
    ranks = []
    for k, a in enumerate(lists):
        others = [(b, "right" if j < k else "left") for j, b in enumerate(lists) if j != k]
        ranks.append(
            np.arange(len(a)) + sum(xp.searchsorted(b, a, side=side) for b, side in others)
        )
    ranks = xp.concatenate(ranks)
    if xp is np:
        return np.argsort(ranks)
    return jnp.zeros(len(ranks), ranks.dtype).at[ranks].set(jnp.arange(len(ranks)))
