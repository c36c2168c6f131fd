r"""Ordered products of exponentials acting on states, with their exact derivative.

    psi_{m+1} = exp(X_m(p, x_m)) psi_m,     m = 0 ... M-1,      X_m = -i (Hermitian matrix)

Every solve of the Schrödinger equation in this package comes down to this: a piecewise constant H gives
one exponential for each piece, a commutator-free Magnus step a few, a split one a few diagonal ones. The
exponents of one step are made from the parameters p that all steps share and the data x_m of its own.

    tangent    dpsi_{m+1} = U_m dpsi_m + L(X_m, dX_m) psi_m
    adjoint    lambda_m = U_m^H lambda_{m+1} (+ the gradient of what was saved there)
               g_{X_m} = L(X_m^H, lambda_{m+1} psi_m^H),   g_p = sum_m (dX_m/dp)* g_{X_m}

with L the Fréchet derivative of the exponential. This is the derivative of what was computed, to
rounding. Where H is Hermitian the adjoint pass recovers ``psi_m = U_m^H psi_{m+1}`` as it goes backward
and stores no trajectory. Elsewhere that would be unstable, and states are kept at the square root of
the number of blocks and computed again in between.

How steps are taken, forward and backward, is a `Stepper`'s affair: `Product`, of small dense matrices, whose
exponents are formed and exponentiated in blocks of steps that stay in the cache; others are in their own
files.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int, PyTree, Real

from cdiffeq.linalg._expm import adjoint, expm_of, exponential
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule


class Stepper:
    """How a block of steps is taken, and taken back: all that `propagate` has to know about steps.

    A dataclass with the fields

    - `saves`: how many states are saved; the last of them is the final state.
    - `block`: number of steps in a block; the number of steps is a multiple of it.
    - `unitary`: whether the steps are unitary, and can run backward.
    - `meter`: a diffrax progress meter.
    """

    saves: int
    block: int
    unitary: bool
    meter: diffrax.AbstractProgressMeter

    @abc.abstractmethod
    def forward(
        self, params: Any, fixed: Any, x: Any, psi: Inexact[Array, "n batch"]
    ) -> tuple[Inexact[Array, "n batch"], Inexact[Array, "block n batch"], Real[Array, ""]]:
        """The state after a block of steps of the data x, the states after each of its steps, and the
        number of the first of them that isn't unitary though it should be, or infinity."""

    @abc.abstractmethod
    def backward(
        self,
        params: Any,
        fixed: Any,
        x: Any,
        psi: Inexact[Array, "n batch"],
        lam: Inexact[Array, "n batch"],
        jumps: Inexact[Array, "block n batch"],
        g_params: Any,
    ) -> tuple[Inexact[Array, "n batch"], Inexact[Array, "n batch"], Any, Any]:
        """The state and the costate before a block, `g_params` plus the gradient of the params that the
        block adds, and the gradient of x.

        `psi` is the state after the block where steps are unitary, and before it where they aren't; `lam`
        is the costate after it, without `jumps`, what it gains after each step."""


@dataclasses.dataclass(frozen=True, eq=False)
class Product(Stepper):
    """Products of exponentials of small dense matrices, formed and exponentiated a block at a time.

    - `generator`: (params, fixed, x) -> (s, n, n), the s exponents of one step, the first to act first.
    - `parallel`: whether the products within a block are formed by a parallel scan (needs `unitary`).

    The others are those of `Stepper`.
    """

    generator: Callable[[PyTree[Any], PyTree[Any], PyTree[Any]], Inexact[Array, "s n n"]]
    saves: int
    block: int
    unitary: bool
    parallel: bool
    meter: diffrax.AbstractProgressMeter

    def forward(self, params, fixed, x, psi):
        X = _exponents(self, params, fixed, x)
        psis = _apply_all(expm_of(X, self.unitary), psi, self.parallel)
        ends = psis[_per_step(X, self) - 1 :: _per_step(X, self)]
        never = jnp.asarray(jnp.inf, psi.real.dtype)
        return psis[-1], ends, _first_breach(X, self) if self.unitary else never

    def backward(self, params, fixed, x, psi, lam, jumps, g_params):
        exponents = lambda params, x: _exponents(self, params, fixed, x)
        X, pull = pull_back(exponents, params, x)
        exp = exponential(X, self.unitary)
        befores, lams, psi, lam = _apply_all_back(exp.value, psi, lam, jumps, self)
        more, g_x = pull(exp.adjoint_outer(lams, befores))
        return psi, lam, jax.tree.map(jnp.add, g_params, more), g_x


@adjoint_rule(nondiff=("fixed", "slots", "blocks", "stepper", "meter_state"))
def propagate(
    params: PyTree[Inexact[Array, "..."]],
    xs: PyTree[Inexact[Array, "steps ..."]],
    psi: Inexact[Array, "n batch"],
    fixed: PyTree[Array],
    slots: Int[Array, " steps"],
    blocks: int | Int[Array, ""],
    stepper: Stepper,
    meter_state: PyTree[Array],
) -> tuple[Inexact[Array, "saves n batch"], Real[Array, ""]]:
    """The saved states, and the number of the first step that isn't unitary though it should be.

    `slots[m]` is where the state after step m is saved, or `saves` where it isn't; the last slot is for that
    after all steps. `blocks` is how many blocks of steps are run; `fixed` is what the stepper needs beside
    its parameters.
    """
    last = stepper.saves - 1  # not kept twice

    def run(b, state):
        psi, saved, breach, meter_state = state
        psi, ends, first = stepper.forward(params, fixed, _block(xs, b, stepper), psi)
        if last:
            saved = saved.at[_block(slots, b, stepper)].set(ends, mode="drop")
        if stepper.unitary:
            breach = jnp.minimum(breach, b * stepper.block + first)
        meter_state = stepper.meter.step(meter_state, (b + 1) / blocks)
        return psi, saved, breach, meter_state

    saved = jnp.zeros((last, *psi.shape), psi.dtype)
    breach = jnp.asarray(jnp.inf, psi.real.dtype)
    psi, saved, breach, _ = jax.lax.fori_loop(0, blocks, run, (psi, saved, breach, meter_state))
    return jnp.concatenate([saved, psi[None]]), breach


@propagate.def_tangent
def _tangent(args, out, dargs):
    # In forward mode the derivative of the program is the tangent equation: expm has its own rule.
    *diff, fixed, slots, blocks, stepper, _ = args
    silent = dataclasses.replace(stepper, meter=diffrax.NoProgressMeter())
    program = lambda *diff: propagate.primal(*diff, fixed, slots, blocks, silent, None)
    return jax.jvp(program, tuple(diff), dargs[:3])[1]


@propagate.def_adjoint
def _adjoint(args, out, g):
    params, xs, psi, fixed, slots, blocks, stepper, _ = args
    g_saved, _ = g
    end = out[0][-1]
    # NaN of a failed solve must reach all gradients, also where no step ever came to save a state.
    lost = 0 * jnp.sum(g_saved)
    zero = lambda a: jnp.zeros_like(a) + (lost if jnp.iscomplexobj(a) else lost.real)
    zeros = lambda tree: jax.tree.map(zero, tree)

    def run_back(b, psi, state):
        """One block backward; psi is its final state where steps are unitary, else its initial one."""
        lam, g_params, g_xs = state
        jumps = jnp.zeros((stepper.block, *lam.shape), lam.dtype)
        if stepper.saves > 1:
            jumps = g_saved[:-1].at[_block(slots, b, stepper)].get(mode="fill", fill_value=0)
        x = _block(xs, b, stepper)
        psi, lam, g_params, g_x = stepper.backward(params, fixed, x, psi, lam, jumps, g_params)
        return psi, (lam, g_params, _set_block(g_xs, g_x, b, stepper))

    state = (g_saved[-1] + lost, *zeros((params, xs)))
    if stepper.unitary:

        def back(i, carry):
            psi, state = carry
            return run_back(blocks - 1 - i, psi, state)

        _, state = jax.lax.fori_loop(0, blocks, back, (end, state))
    else:
        forward = lambda b, psi: stepper.forward(params, fixed, _block(xs, b, stepper), psi)[0]
        state = _checkpointed(forward, run_back, psi, state, blocks, len(slots) // stepper.block)
    lam, g_params, g_xs = state
    return g_params, g_xs, lam


def _checkpointed(forward, run_back, psi, state, blocks, most_blocks):
    """Runs all blocks backward, keeping states at two levels: 2 sqrt(blocks) of them at any time."""
    size = max(1, math.isqrt(most_blocks))
    groups = (blocks + size - 1) // size

    def keep(first, last, psi, count):
        """The initial states of the blocks first ... last - 1 and the state after them."""

        def run(i, carry):
            psi, kept = carry
            return forward(first + i, psi), kept.at[i].set(psi)

        kept = jnp.zeros((count, *psi.shape), psi.dtype)
        return jax.lax.fori_loop(0, last - first, run, (psi, kept))

    def group_end(g):
        return jnp.minimum((g + 1) * size, blocks)

    def run_group(g, carry):
        psi, kept = carry
        after, _ = keep(g * size, group_end(g), psi, size)
        return after, kept.at[g].set(psi)

    kept = jnp.zeros((-(-most_blocks // size), *psi.shape), psi.dtype)
    _, kept = jax.lax.fori_loop(0, groups, run_group, (psi, kept))

    def back_group(i, state):
        first, last = (groups - 1 - i) * size, group_end(groups - 1 - i)
        _, starts = keep(first, last, kept[groups - 1 - i], size)
        back = lambda j, state: run_back(last - 1 - j, starts[last - 1 - j - first], state)[1]
        return jax.lax.fori_loop(0, last - first, back, state)

    return jax.lax.fori_loop(0, groups, back_group, state)


def _block(tree, b, product):
    size = product.block
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, b * size, size), tree)


def _set_block(tree, block, b, product):
    update = lambda a, new: jax.lax.dynamic_update_slice_in_dim(a, new, b * product.block, 0)
    return jax.tree.map(update, tree, block)


def _exponents(product, params, fixed, x):
    """The exponents of a block of steps in their order, (block * s, n, n)."""
    X = jax.vmap(lambda x: product.generator(params, fixed, x))(x)
    return X.reshape(-1, *X.shape[2:])


def _per_step(X, product):
    return len(X) // product.block


def _first_breach(X, product):
    """The first step of the block with an exponent that isn't anti-Hermitian, or infinity."""
    # Where overflow is no concern, squares take a tenth of the time of the careful `abs`.
    largest = lambda A: jnp.max(A.real**2 + A.imag**2, axis=(1, 2))
    skew, size = largest(X + adjoint(X)), largest(X)
    # Rounding of a sum of terms leaves a few eps; anything that means something is far above.
    bad = skew > (1e3 * jnp.finfo(X.dtype).eps) ** 2 * size
    first = jnp.argmax(bad) // _per_step(X, product)
    return jnp.where(jnp.any(bad), first, jnp.inf).astype(skew.dtype)


def _apply(U, psi):
    """U psi. A sum of products is one fused kernel, where a tiny matrix product is a library call."""
    if U.shape[-1] * psi.shape[-1] <= 64:
        return jnp.sum(U[:, :, None] * psi[None], axis=1)
    return U @ psi


def _apply_all(U, psi, parallel):
    """The states after each of the exponentials, (k, n, batch)."""
    if parallel:
        return jax.lax.associative_scan(lambda A, B: B @ A, U) @ psi

    def step(psi, U):
        psi = _apply(U, psi)
        return psi, psi

    return jax.lax.scan(step, psi, U)[1]


def _apply_all_back(U, psi, lam, jumps, product):
    """One block backward: the states before each exponential, the costates after each, and both at the
    block's beginning. `jumps` is what the costate gains after each step."""
    s = _per_step(U, product)
    jumps = jnp.zeros((len(U), *psi.shape), psi.dtype).at[s - 1 :: s].set(jumps)
    Uh = adjoint(U)
    if product.parallel:
        # With P_k = U_k ... U_1 unitary: psi_k = P_k P^H psi, and in the picture that moves with P the
        # costate only jumps: P_k^H lambda_k = P^H lambda + sum_{j >= k} P_j^H jump_j.
        P = jax.lax.associative_scan(lambda A, B: B @ A, U)
        Ph = adjoint(P)
        moving = (Ph[-1] @ lam)[None] + jnp.cumsum((Ph @ jumps)[::-1], axis=0)[::-1]
        psi = Ph[-1] @ psi
        befores = jnp.concatenate([psi[None], P[:-1] @ psi])
        return befores, P @ moving, psi, moving[0]

    if product.unitary:

        def back(state, step):
            psi, lam = state
            Uh, jump = step
            after = lam + jump
            both = _apply(Uh, jnp.concatenate([psi, after], axis=1))
            psi, lam = jnp.split(both, 2, axis=1)
            return (psi, lam), (psi, after)

        (psi, lam), (befores, lams) = jax.lax.scan(back, (psi, lam), (Uh, jumps), reverse=True)
        return befores, lams, psi, lam

    def back_costate(lam, step):
        Uh, jump = step
        return _apply(Uh, lam + jump), lam + jump

    befores = jnp.concatenate([psi[None], _apply_all(U, psi, False)[:-1]])
    lam, lams = jax.lax.scan(back_costate, lam, (Uh, jumps), reverse=True)
    return befores, lams, psi, lam
