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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int, PyTree

from cdiffeq.schrodinger._grid import Grid
from cdiffeq.schrodinger._steps import Steps
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule

# The most that |G_i| may be, in single and in double precision: terms, and the rounding in them, may grow
# to e^|G| before they fall, by 55 and by 3000.
LONGEST = {32: 4.0, 64: 8.0}


@dataclasses.dataclass(frozen=True, eq=False)
class Action:
    """What is fixed about a sequence of exponentials' actions.

    - `operators`: (params, fixed, x) -> the operators of one step, a pytree.
    - `apply`: (operators, R) -> G R, linear in R; R is (N, batch).
    - `bound`: operators -> a bound of the norm of G.
    - `saves`: how many states are saved; `block`: the number of steps in a block.
    """

    operators: Callable[[PyTree[Any], PyTree[Any], PyTree[Any]], PyTree[Array]]
    apply: Callable[[PyTree[Array], Array], Array]
    bound: Callable[[PyTree[Array]], Array]
    saves: int
    block: int

    def stride(self, steps: int) -> int:
        """Every how many blocks a state is kept, of so many steps."""
        return max(1, math.isqrt(steps // self.block))


class Evolution(NamedTuple):
    """The saved states, and those kept for the adjoint."""

    saved: Float[Array, "saves N batch"]
    kept: Float[Array, "checkpoints N batch"]


@adjoint_rule(nondiff=("fixed", "slots", "blocks", "action"))
def act(
    params: PyTree[Inexact[Array, "..."]],
    xs: PyTree[Inexact[Array, "steps ..."]],
    R: Float[Array, "N batch"],
    fixed: PyTree[Array],
    slots: Int[Array, " steps"],
    blocks: int | Int[Array, ""],
    action: Action,
) -> Evolution:
    """States after the steps; `slots[i]` is where the one after step i is saved, beyond `saves` nowhere."""
    stride = action.stride(len(slots))

    def run(b, state):
        R, saved, kept = state
        slot = jnp.where(b % stride == 0, b // stride, len(kept))
        kept = kept.at[slot].set(R, mode="drop")
        R, ends = _run_block(action, params, fixed, _block(xs, b, action), R)
        return R, saved.at[_block(slots, b, action)].set(ends, mode="drop"), kept

    saved = jnp.zeros((action.saves, *R.shape), R.dtype)
    kept = jnp.zeros((-(-len(slots) // (action.block * stride)), *R.shape), R.dtype)
    _, saved, kept = jax.lax.fori_loop(0, blocks, run, (R, saved, kept))
    return Evolution(saved, kept)


@act.def_tangent
def _tangent(args, out, dargs):
    # In forward mode the derivative of the program is the tangent equation.
    *diff, fixed, slots, blocks, action = args
    program = lambda *diff: act.primal(*diff, fixed, slots, blocks, action)
    return jax.jvp(program, tuple(diff), dargs[:3])[1]


@act.def_adjoint
def _adjoint(args, out, g):
    params, xs, R, fixed, slots, blocks, action = args
    stride = action.stride(len(slots))
    # NaN of a failed solve must reach all gradients.
    lost = 0 * jnp.sum(g.saved)
    zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros_like(a) + lost.astype(a.dtype), tree)

    def back_block(b, R, state):
        """One block backward, from the state R at its beginning."""
        lam, g_params, g_xs = state
        operators = lambda params, x: jax.vmap(lambda x: action.operators(params, fixed, x))(x)
        ops, pull = pull_back(operators, params, _block(xs, b, action))
        _, terms = jax.lax.scan(lambda R, ops: _terms(action, ops, R), R, ops)
        jumps = g.saved.at[_block(slots, b, action)].get(mode="fill", fill_value=0)
        step = lambda lam, step: _back_step(action, lam, *step)
        lam, g_ops = jax.lax.scan(step, lam, (ops, terms, jumps), reverse=True)
        g_p, g_x = pull(g_ops)
        g_params = jax.tree.map(jnp.add, g_params, g_p)
        put = lambda a, new: jax.lax.dynamic_update_slice_in_dim(a, new, b * action.block, 0)
        return lam, g_params, jax.tree.map(put, g_xs, g_x)

    def back_stretch(i, state):
        s = stretches - 1 - i
        first, last = s * stride, jnp.minimum((s + 1) * stride, blocks)

        def again(b, carry):
            R, starts = carry
            R, _ = _run_block(action, params, fixed, _block(xs, b, action), R)
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


def _block(tree, b, action):
    size = action.block
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, b * size, size), tree)


def _run_block(action, params, fixed, x, R):
    """The state after a block of steps, and after each of them."""
    ops = jax.vmap(lambda x: action.operators(params, fixed, x))(x)

    def step(R, ops):
        def add(k, carry):
            total, term = carry
            term = action.apply(ops, term) / k
            return total + term, term

        degree = _degree(action.bound(ops), R.dtype)
        R, _ = jax.lax.fori_loop(1, degree + 1, add, (R, R))
        return R, R

    return jax.lax.scan(step, R, ops)


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
    # All terms are columns of one application.
    columns = lambda a: jnp.moveaxis(a, 0, -1).reshape(a.shape[1], -1)
    apply = lambda ops: action.apply(ops, columns(terms))
    return lam, pull_back(apply, ops)[1](columns(lams))[0]


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


def short_steps(norms: Float[Array, " p"], most: int) -> tuple[Steps, Array, Array]:
    """Equal steps in each interval, as few as bring its norm to `LONGEST`, at most so many in all.

    With them comes whether they are enough, and the interval that they get to.
    """
    few = jnp.nan_to_num(
        jnp.ceil(norms / LONGEST[jnp.finfo(norms.dtype).bits]), nan=1.0, posinf=most
    )
    counts = jnp.clip(few, 1, most).astype(jnp.int32)
    # A sum that can't overflow: what lies beyond `most` doesn't matter.
    ends = jax.lax.associative_scan(lambda a, b: jnp.minimum(a + b, most + 1), counts)
    rows = jnp.arange(most, dtype=jnp.int32)
    interval = jnp.searchsorted(ends, rows, side="right").astype(jnp.int32)
    inside = jnp.minimum(interval, len(norms) - 1)
    place = rows - (ends[inside] - counts[inside])
    size = counts[inside].astype(norms.dtype)
    used = jnp.minimum(ends[-1], most)
    steps = Steps(interval, place / size, (place + 1) / size, used)
    return steps, ends[-1] <= most, inside[used - 1]


def step_norms(
    bound: Callable[[Any], Array], operators: Callable[[Any], Any], x: PyTree[Array], grid: Grid
) -> Float[Array, " p"]:
    """Bounds of |G| times the length of each interval, whose data is x."""
    norms = jax.lax.map(lambda x: bound(operators(x)), x)
    return jax.lax.stop_gradient(norms)
