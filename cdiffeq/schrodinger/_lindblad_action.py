r"""Exponentials of Lindblad generators acting on states, by Taylor's polynomial, with their exact derivative.

    R_{i+1} = sum_k b_k,      b_0 = R_i,      b_k = G_i b_(k-1) / k,      k = 1 ... m,

where G_i is the generator times the length of step i, all steps so short that |G_i| <= 8. The adjoint
goes through the steps from the last to the first, and in each with l_m = g backward through the sum:

    l_(k-1) = g + G_i* l_k / k,       <g_G, dG> = sum_k <l_k, dG b_(k-1)> / k.

This is the derivative of what was computed, to rounding. A generator is whatever can be applied, a matrix
or a function of the operators in the equation. States are kept at every `stride`-th block of steps, and
those in between are computed again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int, PyTree

from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule

# The most that |G_i| may be, in single and in double precision: terms, and the rounding in them, may grow
# to e^|G| before they fall, by 55 and by 3000.
LONGEST = {32: 4.0, 64: 8.0}


class Schedule(NamedTuple):
    """Equal steps in each interval: how many in it and before its end, and where the state at its end is
    saved, if at all.

    The steps themselves are told from these when they are taken: there may be many more of them.
    """

    counts: Int[Array, " p"]
    ends: Int[Array, " p"]
    slots: Int[Array, " p"]


# Numbers of a state up to which its terms' gradients are taken at once: more would be a lot of memory.
_FEW = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Action:
    """What is fixed about a sequence of exponentials' actions.

    - `operators`: (params, fixed, x) -> the operators of one step, a pytree.
    - `apply`: (operators, R) -> G R, linear in R; R is (N, batch).
    - `bound`: operators -> a bound of the norm of G.
    - `saves`: how many states are saved; `block`: the number of steps whose operators are formed at a time;
      `most_blocks`: how many blocks there may be.
    """

    operators: Callable[[PyTree[Any], PyTree[Any], PyTree[Any]], PyTree[Any]]
    apply: Callable[[PyTree[Any], Array], Array]
    bound: Callable[[PyTree[Any]], Array]
    saves: int
    block: int
    most_blocks: int

    @property
    def stride(self) -> int:
        """Every how many blocks a state is kept."""
        return math.isqrt(self.most_blocks)


class Evolution(NamedTuple):
    """The saved states, and those kept for the adjoint."""

    saved: Float[Array, "saves N batch"]
    kept: Float[Array, "checkpoints N batch"]


@adjoint_rule(nondiff=("fixed", "schedule", "blocks", "action"))
def act(
    params: PyTree[Inexact[Array, "..."]],
    xs: PyTree[Inexact[Array, "p ..."]],
    R: Float[Array, "N batch"],
    fixed: PyTree[Array],
    schedule: Schedule,
    blocks: Int[Array, ""],
    action: Action,
) -> Evolution:
    """States after the steps; xs is the data (time, size, amplitudes of the controls) of the intervals."""
    stride = action.stride

    def run(b, state):
        R, saved, kept = state
        slot = jnp.where(b % stride == 0, b // stride, len(kept))
        kept = kept.at[slot].set(R, mode="drop")
        R, ends, slots = _run_block(action, params, fixed, schedule, xs, b, R)
        return R, saved.at[slots].set(ends, mode="drop"), kept

    saved = jnp.zeros((action.saves, *R.shape), R.dtype)
    kept = jnp.zeros((-(-action.most_blocks // stride), *R.shape), R.dtype)
    _, saved, kept = jax.lax.fori_loop(0, blocks, run, (R, saved, kept))
    return Evolution(saved, kept)


@act.def_tangent
def _tangent(args, out, dargs):
    # In forward mode the derivative of the program is the tangent equation.
    *diff, fixed, schedule, blocks, action = args
    program = lambda *diff: act.primal(*diff, fixed, schedule, blocks, action)
    return jax.jvp(program, tuple(diff), dargs[:3])[1]


@act.def_adjoint
def _adjoint(args, out, g):
    params, xs, R, fixed, schedule, blocks, action = args
    stride = action.stride
    # NaN of a failed solve must reach all gradients.
    lost = 0 * jnp.sum(g.saved)
    zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros_like(a) + lost.astype(a.dtype), tree)

    def back_block(b, R, state):
        """One block backward, from the state R at its beginning."""
        lam, g_params, g_xs = state
        interval, part, slots = _steps(schedule, b, action, R.dtype)
        of_steps = lambda params, x: _operators(action, params, fixed, x, part)
        moving = lambda params, x: eqx.filter(of_steps(params, x), eqx.is_inexact_array)
        x = jax.tree.map(lambda a: a[interval], xs)
        ops = of_steps(params, x)
        _, terms = jax.lax.scan(lambda R, ops: _terms(action, ops, R), R, ops)
        jumps = g.saved.at[slots].get(mode="fill", fill_value=0)
        step = lambda lam, step: _back_step(action, lam, *step)
        lam, g_ops = jax.lax.scan(step, lam, (ops, terms, jumps), reverse=True)
        g_p, g_x = pull_back(moving, params, x)[1](g_ops)
        g_params = jax.tree.map(jnp.add, g_params, g_p)
        return lam, g_params, jax.tree.map(lambda a, more: a.at[interval].add(more), g_xs, g_x)

    def back_stretch(i, state):
        s = stretches - 1 - i
        first, last = s * stride, jnp.minimum((s + 1) * stride, blocks)

        def again(b, carry):
            R, starts = carry
            R, _, _ = _run_block(action, params, fixed, schedule, xs, b, R)
            return R, starts.at[b + 1 - first].set(R)

        # A state kept for another purpose than its own gradient has none.
        R = out.kept[s] + 0 * g.kept[s]
        starts = jnp.zeros((stride, *R.shape), R.dtype).at[0].set(R)
        _, starts = jax.lax.fori_loop(first, last - 1, again, (R, starts))
        back = lambda j, state: back_block(last - 1 - j, starts[last - 1 - j - first], state)
        return jax.lax.fori_loop(0, last - first, back, state)

    stretches = (blocks + stride - 1) // stride
    state = zeros((R, params, xs))
    lam, g_params, g_xs = jax.lax.fori_loop(0, stretches, back_stretch, state)
    return g_params, g_xs, lam


def _steps(schedule, b, action, dtype):
    """The steps of a block: their intervals, the parts (begin, size) of these that they cover, and the slots
    of the states after them. What is beyond the last step has no size."""
    counts, ends, slots = schedule
    i = b * action.block + jnp.arange(action.block, dtype=jnp.int32)
    found = jnp.searchsorted(ends, i, side="right")
    interval = jnp.minimum(found, len(ends) - 1)
    count = counts[interval]
    place = i - (ends[interval] - count)
    is_step = found < len(ends)
    begin, size = place / count.astype(dtype), is_step / count.astype(dtype)
    slot = jnp.where(is_step & (place + 1 == count), slots[interval], action.saves)
    return interval, (begin, size), slot


def _operators(action, params, fixed, x, part):
    """The operators of the steps of a block, from the data of their intervals."""

    def of(x, part):
        (t, length, amplitudes), (begin, size) = x, part
        return action.operators(params, fixed, (t + begin * length, size * length, amplitudes))

    return jax.vmap(of)(x, part)


def _run_block(action, params, fixed, schedule, xs, b, R):
    """The state after a block of steps, and after each of them, with the slots of these."""
    interval, part, slots = _steps(schedule, b, action, R.dtype)
    x = jax.tree.map(lambda a: a[interval], xs)
    ops = _operators(action, params, fixed, x, part)

    def step(R, ops):
        def add(k, carry):
            total, term = carry
            term = action.apply(ops, term) / k
            return total + term, term

        degree = _degree(action.bound(ops), R.dtype)
        R, _ = jax.lax.fori_loop(1, degree + 1, add, (R, R))
        return R, R

    R, after = jax.lax.scan(step, R, ops)
    return R, after, slots


def _terms(action, ops, R):
    """The state after a step and the terms b_0 ... b_m of its sum, with zeros after them."""

    def add(k, carry):
        total, term, terms = carry
        term = action.apply(ops, term) / k
        return total + term, term, terms.at[k].set(term)

    terms = jnp.zeros((len(_longest(R.dtype)), *R.shape), R.dtype).at[0].set(R)
    degree = _degree(action.bound(ops), R.dtype)
    R, _, terms = jax.lax.fori_loop(1, degree + 1, add, (R, R, terms))
    return R, terms


def _back_step(action, lam, ops, terms, jump):
    """The costate before a step, and the gradient of its operators."""
    g = lam + jump
    degree = _degree(action.bound(ops), g.dtype)
    back = pull_back(lambda R: action.apply(ops, R), g)[1]

    def add(i, carry):
        k = degree - i
        lam, lams = carry
        lams = lams.at[k - 1].set(lam / k)
        return g + back(lam)[0] / k, lams

    lam, lams = jax.lax.fori_loop(0, degree, add, (g, jnp.zeros_like(terms)))
    moving, rest = eqx.partition(ops, eqx.is_inexact_array)
    apply = lambda R: lambda moving: action.apply(eqx.combine(moving, rest), R)
    if g.shape[0] <= _FEW:
        # All terms are columns of one application.
        columns = lambda a: jnp.moveaxis(a, 0, -1).reshape(a.shape[1], -1)
        return lam, pull_back(apply(columns(terms)), moving)[1](columns(lams))[0]

    def pulled(k, g_ops):
        return jax.tree.map(jnp.add, g_ops, pull_back(apply(terms[k]), moving)[1](lams[k])[0])

    return lam, jax.lax.fori_loop(0, degree, pulled, jax.tree.map(jnp.zeros_like, moving))


def _longest(dtype):
    """The norm up to which the terms beyond degree m are below rounding, for m = 0, 1, ..."""
    kind = jnp.finfo(dtype)
    eps = float(kind.eps)
    norms: list[float] = []
    while not norms or norms[-1] < LONGEST[kind.bits]:
        m = len(norms)
        norms.append(math.exp((math.log(eps) + math.lgamma(m + 2)) / (m + 1)))
    return np.asarray(norms)


def _degree(norm, dtype):
    norm = jax.lax.stop_gradient(norm)
    return jnp.sum(norm > jnp.asarray(_longest(dtype), dtype), dtype=jnp.int32)


def short_steps(
    norms: Float[Array, " p"], slots: Int[Array, " p"], most: int
) -> tuple[Schedule, Array, Array]:
    """Equal steps in each interval, as few as bring its norm to `LONGEST`, at most so many in all.

    With them comes whether they are enough, and the interval that they get to.
    """
    few = jnp.nan_to_num(
        jnp.ceil(norms / LONGEST[jnp.finfo(norms.dtype).bits]), nan=1.0, posinf=most
    )
    counts = jnp.clip(few, 1, most).astype(jnp.int32)
    # A sum that can't overflow: what lies beyond `most` doesn't matter.
    ends = jax.lax.associative_scan(lambda a, b: jnp.minimum(a + b, most + 1), counts)
    last = jnp.searchsorted(ends, jnp.minimum(ends[-1], most))
    return Schedule(counts, ends, slots), ends[-1] <= most, last


def step_norms(
    bound: Callable[[Any], Array], operators: Callable[[Any], Any], x: PyTree[Array]
) -> Float[Array, " p"]:
    """Bounds of |G| times the length of each interval, whose data is x."""
    norms = jax.lax.map(lambda x: bound(operators(x)), x)
    return jax.lax.stop_gradient(norms)
