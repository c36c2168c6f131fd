r"""The loop that steps a flat real state through a list of times, and the record of its steps.

The interval between two saved times is divided at fractions ``0 < theta < 1``; a step from ``theta_0`` to
``theta_1`` starts at ``t = ts_k + theta_0 (ts_{k+1} - ts_k)``. Steps end exactly at every saved time. A
*grid* says where all steps begin and end: adaptive steps keep one number each, equal ones none.

Derivatives of what is computed here hold the fractions fixed: the controller of the step sizes sees
nothing that moves. A derivative then is exactly that of the steps that were accepted, and moves with ts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from cdiffeq.ode._steppers import Field


class Code:
    """What became of a solve."""

    SUCCESS, UNORDERED, MAX_STEPS, TINY, NOT_FINITE, NOT_SOLVED, EVENT = range(7)


class Grid(NamedTuple):
    """Where the steps are: `before[k]` steps lie before interval k, and step n ends at `ends[n]`."""

    before: Int[Array, " saves"]
    ends: Real[Array, " M"]

    @property
    def total(self) -> Int[Array, ""]:
        """How many steps there are."""
        return self.before[-1]

    def at(self, n: Any) -> tuple[Any, Any, Any]:
        """The number of the interval of step n, and the fractions at which the step starts and ends."""
        k = _interval(self.before, n)
        return k, jnp.where(n == self.before[k], 0, self.ends[n - 1]), self.ends[n]


class EqualGrid(NamedTuple):
    """The same for equal steps in each interval."""

    before: Int[Array, " saves"]

    @property
    def total(self) -> Int[Array, ""]:
        return self.before[-1]

    def at(self, n: Any) -> tuple[Any, Any, Any]:
        k = _interval(self.before, n)
        first, size = self.before[k], self.before[k + 1] - self.before[k]
        fraction = lambda j: (j / size).astype(jnp.finfo(jnp.result_type(float)).dtype)
        return k, fraction(n - first), fraction(n + 1 - first)


def _interval(before, n):
    # Without a loop, unless there are so many times that one pays.
    method = "compare_all" if len(before) <= 256 else "scan"
    return jnp.searchsorted(before, n, side="right", method=method) - 1


class Record(NamedTuple):
    """What a march leaves behind, all real arrays.

    - `ys`: the states at the saved times.
    - `ends`: the fraction at which each step ends, zero where there is none (empty for equal steps).
    - `before`: how many steps lie before each saved time.
    - `kept`: the states before some of the steps, see `spacing`.
    - `last`: what of the stepper's carry is needed beside the last state to run backward.
    - `report`: see `Report`.
    """

    ys: Float[Array, "saves N"]
    ends: Float[Array, " M"]
    before: Float[Array, " saves"]
    kept: Float[Array, "checkpoints N"]
    last: Float[Array, " L"]
    report: Float[Array, "5"]


class Report(NamedTuple):
    """How a march went; numbers as floats, since a rule returns nothing else."""

    code: Any
    time: Any
    steps: Any
    rejected: Any
    evaluations: Any


@dataclasses.dataclass(frozen=True)
class Stepping:
    """How to step: everything that is fixed about a march.

    - `stepper`: see `_steppers.py`; `controller`: a diffrax controller, or a float, the largest equal step.
    - `first`: the first step to try, or None. `max_steps`: the most steps tried.
    - `slots`: how many states can be kept, see `spacing`. `record`: whether `ends` are kept.
    - `meter`: a progress meter of diffrax.
    """

    stepper: Any
    controller: Any
    first: float | None = None
    max_steps: int = 4096
    slots: int = 0
    record: bool = False
    meter: Any = dataclasses.field(default_factory=diffrax.NoProgressMeter)

    @property
    def equal(self) -> bool:
        return isinstance(self.controller, float)

    def bare(self) -> Stepping:
        """The same with nothing kept and nothing shown: for solves within a solve."""
        silent = diffrax.NoProgressMeter()
        return dataclasses.replace(self, first=None, slots=0, record=False, meter=silent)

    def backward(self) -> Stepping:
        """`bare`, at four times the tolerances: for the costate.

        A gradient owes most of its error to that of the state, and a step backward costs more than one
        forward: for one error of the gradient there is least to do when the costate's tolerances are the
        looser ones. Steps of the costate that end where those of the state do would moreover be divided as
        often as not, if both had the same tolerances.
        """
        if self.equal:
            return self.bare()
        where = lambda c: (c.rtol, c.atol)
        looser = eqx.tree_at(where, self.controller, tuple(4 * x for x in where(self.controller)))
        return dataclasses.replace(self.bare(), controller=looser)


def spacing(n: Any, slots: int) -> Any:
    """How many steps lie between two of the states that are kept when state n is the last: a power of two.

    One while all states fit into the slots, an even number of them; whenever these are full, every other
    state makes room.
    """
    return 1 << (32 - jax.lax.clz(jnp.asarray(n, jnp.int32) // slots))


def widest_spacing(max_steps: int, slots: int) -> int:
    """The spacing at the end of `max_steps` steps."""
    return 1 << ((max_steps - 1) // slots).bit_length()


def slot_of(n: Any, slots: int, max_steps: int) -> Any:
    """The slot of state n, if it is kept: n, or that of the state which makes room for it."""
    for _ in range(((max_steps - 1) // slots).bit_length()):
        half = spacing(n, slots) // 2
        n = jnp.where(n < slots, n, n - slots * half + half)
    return n


def balanced_slots(max_steps: int) -> int:
    """How many slots take about as much memory as the states between two of those that are kept."""
    between = 2 ** round(math.log2(max_steps) / 2)
    return 2 * math.ceil(max_steps / between / 2)


def equal_grid(ts: Float[Array, " saves"], stepping: Stepping) -> EqualGrid:
    """The fewest equal steps in each interval that are no longer than the controller, a float, says."""
    lengths = jax.lax.stop_gradient(jnp.abs(jnp.diff(ts)))
    # A hundred eps more than asked for: 0.3 / 0.1 is three steps, not four.
    few = lengths / stepping.controller * (1 - 100 * jnp.finfo(ts.dtype).eps)
    # More steps than max_steps end in an error, and not before that in an endless way back.
    counts = jnp.clip(jnp.nan_to_num(jnp.ceil(few)), 1, stepping.max_steps + 1).astype(jnp.int32)
    return EqualGrid(jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts)]))


def grid_of(ts: Float[Array, " saves"], record: Any, stepping: Stepping) -> Any:
    """The grid of the march that left a record (or its `ends` and `before`)."""
    if stepping.equal:
        return equal_grid(ts, stepping)
    return Grid(record.before.astype(jnp.int32), record.ends)


def step_times(ts: Any, place: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    """The initial time and the length of the step at a place (interval, start, end) of the grid."""
    k, start, end = place
    length = ts[k + 1] - ts[k]
    start, end = start.astype(ts.dtype), end.astype(ts.dtype)
    return ts[k] + start * length, (end - start) * length


class _State(NamedTuple):
    theta: Any  # how far the interval is done, and at which time the controller wants to be next
    target: Any
    y: Any
    carry: Any
    control: Any
    steps: Any
    tried: Any
    ends: Any
    kept: Any
    code: Any
    meter: Any
    total: Any  # of what is summed over the accepted steps
    before: (
        Any  # with an event: of the last step its time, length, state and carry, and e before it
    )


def march(
    F: Field,
    y0: Float[Array, " N"],
    ts: Float[Array, " saves"],
    p: Any,
    stepping: Stepping,
    first: Any = None,
    summand: Callable[[Any, Any, Any], Any] | None = None,
    event: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """Steps y from ``ts[0]`` through all ascending `ts`; `first` is a first step to try, if known.

    With a `summand` ``(t, h, stages) -> pytree`` the sum over all accepted steps is returned, too. With an
    `event` ``(t, y) -> real`` the march stops where it changes sign, and reports that time.
    """
    stepper, still, saves = stepping.stepper, jax.lax.stop_gradient, len(ts)
    dtype = y0.dtype
    ts = ts.astype(dtype)
    # Nothing of the controller moves: it sees a field with its parameters held.
    held = still(p)
    term = diffrax.ODETerm(lambda t, y, _: F(t, y, held))
    order = stepper.solver.error_order(term)
    grid = equal_grid(ts, stepping) if stepping.equal else None
    carry = stepper.init(F, ts[0], y0, p)
    if grid is None:
        first = stepping.first if first is None else first
        target, control = stepping.controller.init(
            term, still(ts[0]), still(ts[-1]), still(y0), first, None, stepper.solver.func, order
        )
        target = jnp.asarray(target, dtype)
    else:
        target, control = jnp.zeros((), dtype), ()

    def step(k, length, s):
        """Try one step in interval k."""
        if grid is None:
            wish = jnp.where(length > 0, (s.target - still(ts[k])) / still(length), 1)
            # No sliver is left over before a saved time.
            end = jnp.where(wish + 0.01 * (wish - s.theta) >= 1, 1, wish)
        else:
            end = grid.at(s.steps)[2].astype(dtype)
        t, h = step_times(ts, (k, s.theta, end))
        done = stepper.step(F, t, h, s.y, p, s.carry)
        if grid is None:
            keep, target, control, code = _control(stepping, s, t, h, done, length, order)
        else:
            keep, target, control = jnp.asarray(True), s.target, s.control
            code = jnp.where(done.good, Code.SUCCESS, Code.NOT_SOLVED)
        choose = lambda new, old: jnp.where(keep, new, old)
        total, before, ends, kept = s.total, s.before, s.ends, s.kept
        if summand is not None:
            add = lambda a, b: jnp.where(keep, a + b, a)
            for stages in done.stages:
                total = jax.tree.map(add, total, summand(t, h, stages))
        if event is not None:
            e = event(t + h, done.y)
            crossed = keep & (h > 0) & ((e * s.before[-1] < 0) | ((e == 0) & (s.before[-1] != 0)))
            code = jnp.where((code == Code.SUCCESS) & crossed, Code.EVENT, code)
            before = (t, h, s.y, s.carry, jnp.where(crossed | ~keep, s.before[-1], e))
        if stepping.record and grid is None:
            ends = jax.lax.dynamic_update_index_in_dim(ends, choose(end, 0), s.steps, 0)
        if stepping.slots:
            due = s.steps % spacing(s.steps, stepping.slots) == 0
            # What isn't due may fall into any slot.
            slot = slot_of(s.steps, stepping.slots, stepping.max_steps)
            old = jax.lax.dynamic_index_in_dim(kept, slot, keepdims=False)
            kept = jax.lax.dynamic_update_index_in_dim(kept, jnp.where(due, s.y, old), slot, 0)
        fraction = still((t + h - ts[0]) / (ts[-1] - ts[0]))
        return _State(
            choose(end, s.theta), target, choose(done.y, s.y), jax.tree.map(choose, done.carry, s.carry),
            control, s.steps + keep, s.tried + 1, ends, kept, code,
            stepping.meter.step(s.meter, fraction), total, before,
        )  # fmt: skip

    def interval(k, s, ys, counts):
        carry = s.carry
        if saves > 2:
            # f may jump at a saved time: what was known of its slope is the other side's.
            restart = lambda carry: stepper.restart(F, ts[k], s.y, p, carry)
            carry = jax.lax.cond(k > 0, restart, lambda carry: carry, carry)
        going = lambda s: (s.theta < 1) & (s.tried < stepping.max_steps) & (s.code == Code.SUCCESS)
        length = ts[k + 1] - ts[k]
        s = jax.lax.while_loop(
            going, lambda s: step(k, length, s), s._replace(carry=carry, theta=jnp.zeros((), dtype))
        )
        ys = ys.at[jnp.where(s.theta >= 1, k + 1, saves)].set(s.y, mode="drop")
        return s, ys, counts.at[k + 1].set(s.steps)

    def go_on(state):
        k, s, *_ = state
        return (k < saves - 1) & (s.code == Code.SUCCESS) & ((k == 0) | (s.theta >= 1))

    def next_interval(state):
        k, *rest = state
        return (k + 1, *interval(k, *rest))

    ordered = jnp.all(jnp.diff(ts) >= 0)  # false for NaN
    zero = jnp.zeros((), jnp.int32)
    start = _State(
        jnp.zeros((), dtype), target, y0, carry, control, zero, zero,
        jnp.zeros(stepping.max_steps if stepping.record and grid is None else 0, dtype),
        jnp.zeros((stepping.slots, len(y0)), dtype),
        jnp.where(ordered, Code.SUCCESS, Code.UNORDERED), stepping.meter.init(),
        None if summand is None else _zeros_like_sum(summand, stepper, F, ts[0], y0, p, carry),
        None if event is None else (ts[0], jnp.zeros((), dtype), y0, carry, event(ts[0], y0)),
    )  # fmt: skip
    ys = jnp.zeros((saves, len(y0)), dtype).at[0].set(y0)
    counts = jnp.zeros(saves, jnp.int32)
    state = (zero, start, ys, counts)
    if saves == 2:  # needs no loop; where times are out of order no step is made
        done, s, ys, counts = next_interval(state)
    else:
        done, s, ys, counts = jax.lax.while_loop(go_on, next_interval, state)
    stepping.meter.close(s.meter)

    code, time = _outcome(F, ts, p, stepping, done, s, ys)
    if event is not None:
        t, h, y, carry, e = s.before
        root = _bisect(lambda tau: event(t + tau, stepper.step(F, t, tau, y, p, carry).y), h, e)
        time = jnp.where(s.code == Code.EVENT, t + root, time)
    evaluations = s.tried * stepper.evaluations + saves - 1
    report = Report(code, time, s.steps, s.tried - s.steps, evaluations)
    numbers = jnp.stack([still(jnp.asarray(x, dtype)) for x in report])
    last = stepper.last(s.carry, y0) if hasattr(stepper, "last") else jnp.zeros(0, dtype)
    record = Record(ys, s.ends, counts.astype(dtype), s.kept, last, numbers)
    return record if summand is None else (record, s.total)


def _outcome(F, ts, p, stepping, done, s, ys):
    """What became of a march that began `done` intervals, and how far it came."""
    still = jax.lax.stop_gradient
    p, ts, y, ys, theta = still((p, ts, s.y, ys, s.theta))
    if len(ts) == 1:
        return jnp.where(jnp.all(jnp.isfinite(y)), s.code, Code.NOT_FINITE), ts[0]
    k = jnp.maximum(done - 1, 0)
    time, _ = step_times(ts, (k, theta, theta))
    finite = jnp.all(jnp.isfinite(ys))

    def why():
        """Whether the steps shrank since there are no numbers ahead, or for another reason."""
        # A little further than the last of the vanishing steps.
        scale = jnp.maximum(jnp.abs(time), ts[k + 1] - ts[k])
        stepper, h = stepping.stepper, 1e3 * jnp.finfo(y.dtype).eps * scale
        ahead = stepper.step(F, time, h, y, p, stepper.init(F, time, y, p))
        blind = ~jnp.all(jnp.isfinite(ahead.y) & jnp.isfinite(ahead.error))
        return jnp.where(blind, Code.NOT_FINITE, Code.TINY)

    code = s.code
    if not stepping.equal:
        code = jax.lax.cond(code == Code.TINY, why, lambda: jnp.asarray(code))
    code = jnp.where((code == Code.SUCCESS) & ~finite, Code.NOT_FINITE, code)
    unfinished = (done < len(ts) - 1) | (theta < 1)
    return jnp.where((code == Code.SUCCESS) & unfinished, Code.MAX_STEPS, code), time


def _control(stepping, s, t, h, done, length, order):
    """Whether the step is accepted, where the next should end, and whether there is hope."""
    t, h, y, y1, error, length = jax.lax.stop_gradient((t, h, s.y, done.y, done.error, length))
    dtype = y.dtype
    keep, _, target, _, control, _ = stepping.controller.adapt_step_size(
        t, t + h, y, y1, None, error, order, s.control
    )
    target = jnp.asarray(target, dtype)
    # diffrax's controllers don't recover from an error that is NaN: the step is shortened here.
    lost = jnp.isnan(target) | ~done.good
    empty = length == 0
    keep = (jnp.asarray(keep) & ~lost) | empty
    target = jnp.where(lost, t + 0.2 * h, target)
    # A step that was cut short at a saved time says little about how long the next may be.
    wished = s.target - t
    target = jnp.where(keep & (h < wished), jnp.maximum(target, t + h + wished), target)
    target = jnp.where(empty, s.target, target)
    control = jax.tree.map(lambda new, old: jnp.where(empty | lost, old, new), control, s.control)
    tiny = ~keep & ~(target - t > 8 * jnp.finfo(dtype).eps * jnp.maximum(jnp.abs(t), length))
    return keep, target, control, jnp.where(tiny, Code.TINY, Code.SUCCESS)


def _zeros_like_sum(summand, stepper, F, t, y, p, carry):
    one = jnp.ones_like(t)
    shape = jax.eval_shape(lambda: summand(t, one, stepper.step(F, t, one, y, p, carry).stages[0]))
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shape)


def _bisect(e, h, e_start):
    """Where in a step ``e`` changes sign: a root to all digits, by halving."""

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        same = e(middle) * e_start > 0
        return jnp.where(same, middle, low), jnp.where(same, high, middle)

    low, high = jax.lax.fori_loop(0, jnp.finfo(h.dtype).nmant + 2, halve, (jnp.zeros_like(h), h))
    return (low + high) / 2
