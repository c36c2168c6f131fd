r"""The action of an exponential by Krylov spaces, for any matrix.

In steps of tau = h / s, each in the space of K vectors, with Arnoldi's Q and H of A and y (Saad 1992,
doi:10.1137/0729014; of a Hermitian A it is Lanczos' process):

    y <- |y| Q exp(tau H) e_1.

The gradient of a step comes from its space and that of A^H and the gradient l after the step, Q_l and H_l:

    g_A = conj(tau) Q_l Z Q^H,    [[., Z], [0, .]] = exp [[conj(tau) H_l, |l| |y| e_1 e_1^T],
                                                          [0,             conj(tau) H^H]].

Neither depends on its arguments in a way that one would differentiate. The tangent is instead the action of
the exponential of a larger operator,

    [y; dy] = exp(h [[A, 0], [dA, A]]) [v; dv],

and the tangent of the gradients that of this one's gradients, since second derivatives are symmetric.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int

from cdiffeq._errors import raise_if
from cdiffeq.linalg._action import Action, Params, Task, act, add_outer, zeros_like
from cdiffeq.linalg._action_taylor import backwards
from cdiffeq.linalg._arnoldi import Basis, arnoldi, two_norm
from cdiffeq.linalg._expm import exponential
from cdiffeq.linalg._operator import Operator
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule


class Krylov(Action):
    r"""exp(hA) v by Krylov spaces, for any A, of which nothing needs to be known.

    **Arguments**

    - `dimension`: K, of the spaces; 30 by default.
    - `tol`: what the errors of all steps together may be, each estimated relative to the state before it
      (Saad's estimate, which is the first term of the error's series); eps^(3/4) by default.
    - `max_steps`: more is an error.

    The number of steps is doubled until the estimates are within `tol`. When run, it raises where `max_steps`
    of them aren't enough. **Cost**: K products with A for each step and column; the gradient three times as
    many, and K pull-backs. **Memory**: a gradient takes 2 K vectors for the spaces, as many for its
    pull-backs, and 16 states.
    """

    dimension: int = eqx.field(static=True, default=30)
    tol: float | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=1024)

    def init(self, A: Operator) -> tuple[()]:
        return ()

    def compute(self, task: Task) -> tuple[Array, Any]:
        A = task.A

        def column(v):
            def attempt(steps):
                step = lambda _, state: self._step(A, task.h / steps, *state)
                return jax.lax.fori_loop(0, steps, step, (v, _zero(v)))

            return self._until_close(attempt, jnp.asarray(1, jnp.int32))

        y, steps = jax.lax.map(column, task.v.T)
        return y.T, jax.lax.stop_gradient(steps.astype(jnp.finfo(y.dtype).dtype))

    def tangent(self, task: Task, dparams: Params, dv: Array) -> Any:
        larger, scale = _augmented(task, dparams, dv)
        params, fixed = eqx.partition(larger.A, eqx.is_inexact_array)
        ys, steps = act(params, larger.v, task.h, fixed, (), self)
        return jnp.split(ys, 2)[1] / scale, jnp.zeros_like(steps)

    def adjoint(self, task: Task, kept: Any, g: Array) -> tuple[Params, Array]:
        params, fixed = eqx.partition(task.A, eqx.is_inexact_array)
        return _gradients(params, task.v, task.h, g, fixed, jax.lax.stop_gradient(kept), self)

    def gradients(self, task: Task, kept: Array, g: Array) -> tuple[Params, Array]:
        """What `adjoint` gives, without derivatives."""
        A = task.A
        back = A.adjoint()

        def column(g_params, data):
            v, g, steps = data

            def attempt(steps):
                tau = task.h / steps
                step = lambda y: self._step(A, tau, y, _zero(y))[0]

                def step_back(y, state):
                    l, g_params, error = state
                    l, left, right, more = self._pair(A, back, tau, y, l)
                    return l, add_outer(task, g_params, left, right), error + more

                start = g, g_params, _zero(v)
                l, g_new, error = backwards(step, step_back, v, steps, start)
                return (l, g_new), error

            (l, g_params), _ = self._until_close(attempt, steps.astype(jnp.int32))
            return g_params, l

        data = task.v.T, g.T, kept
        g_params, g_v = jax.lax.scan(column, zeros_like(task.params), data)
        return g_params, g_v.T

    def _until_close(self, attempt: Any, steps: Int[Array, ""]) -> Any:
        """The result of attempt(steps) and the steps, doubled until the error is within the tolerance."""
        result, error = jax.eval_shape(attempt, steps)
        tol = float(jnp.finfo(error.dtype).eps) ** 0.75 if self.tol is None else self.tol

        def again(state):
            steps, _, error = state
            return (error > tol) & (steps <= self.max_steps)

        def double(state):
            steps, *_ = state
            return 2 * steps, *attempt(steps)

        start = steps, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), result), jnp.inf
        steps, result, error = jax.lax.while_loop(again, double, jax.tree.map(jnp.asarray, start))
        steps = steps // 2
        message = "expm_multiply: Krylov(): after {} steps the errors add up to {:.1e}, beyond tol = {:.1e}."
        text = lambda steps, error: RuntimeError(message.format(steps, error, tol))
        return raise_if((result, steps), error > tol, text, steps, error)

    def _step(self, A: Operator, tau: Array, y: Array, error: Array) -> tuple[Array, Array]:
        basis = self._basis(A, y)
        first, more = _exponential(basis, tau)
        return basis.norm * (first @ basis.Q[:-1]), error + more

    def _basis(self, A: Operator, y: Array) -> Basis:
        return arnoldi(A.mv, y, min(self.dimension, y.shape[0]))

    def _pair(
        self, A: Operator, back: Operator, tau: Array, y: Array, l: Array
    ) -> tuple[Array, Array, Array, Float[Array, ""]]:
        """l before the step, the two factors of the gradient of A, and an estimate of the error."""
        ys, ls = self._basis(A, y), self._basis(back, l)
        K = ys.H.shape[0]
        H, H_l = jnp.conj(tau) * jnp.conj(ys.H.T), jnp.conj(tau) * ls.H
        corner = jnp.zeros_like(H).at[0, 0].set(ls.norm * ys.norm)
        E = exponential(jnp.block([[H_l, corner], [jnp.zeros_like(H), H]]), False).value
        left = jnp.conj(tau) * (E[:K, K:].T @ ls.Q[:-1]).T
        _, error = _exponential(ls, jnp.conj(tau))
        return ls.norm * (E[:K, 0] @ ls.Q[:-1]), left, ys.Q[:-1].T, error


def _zero(v: Array) -> Float[Array, ""]:
    return jnp.zeros((), jnp.finfo(v.dtype).dtype)


def _exponential(basis: Basis, tau: Array) -> tuple[Inexact[Array, " K"], Float[Array, ""]]:
    """exp(tau H) e_1, and Saad's estimate of the error relative to the norm of v."""
    K = basis.H.shape[0]
    H = tau * basis.H
    # The last column of this is phi_1(tau H) e_1 = int_0^1 exp(s tau H) e_1 ds.
    larger = jnp.zeros((K + 1, K + 1), H.dtype).at[:K, :K].set(H).at[0, K].set(1)
    E = exponential(larger, False).value
    last = jnp.abs(E[K - 1, K]) - 10 * jnp.finfo(H.dtype).eps  # less is rounding
    return E[:K, 0], jnp.abs(tau) * basis.beta * jnp.maximum(last, 0)


class _Augmented(Operator):
    """[[A, 0], [dA, A]], for the tangent dA of A in its parameters."""

    A: Operator
    dA: Operator
    adjointed: bool = eqx.field(static=True, default=False)

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.A.shape
        return 2 * m, 2 * n

    @property
    def dtype(self) -> Any:
        return self.A.dtype

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        params, fixed = eqx.partition(self.A, eqx.is_inexact_array)
        dparams = eqx.filter(self.dA, eqx.is_inexact_array)
        top, bottom = jnp.split(x, 2)

        def product(params, x):
            A = eqx.combine(params, fixed)
            return (A.adjoint() if self.adjointed else A).mv(x)

        # The upper triangle of the adjoint changes the places of the two.
        x, dx = (bottom, top) if self.adjointed else (top, bottom)
        y, dy = jax.jvp(product, (params, x), (dparams, dx))
        return jnp.concatenate((dy, y) if self.adjointed else (y, dy))

    def adjoint(self) -> _Augmented:
        return _Augmented(self.A, self.dA, not self.adjointed)


def _augmented(task: Task, dparams: Params, dv: Array) -> tuple[Task, Float[Array, ""]]:
    """The larger problem, whose tangent part is scaled to the size of the other, and by how much."""
    params, fixed = eqx.partition(task.A, eqx.is_inexact_array)
    along = lambda params: eqx.combine(params, fixed).mm(task.v)
    moved = jax.jvp(along, (params,), (dparams,))[1]
    size, there = two_norm(dv) + jnp.abs(task.h) * two_norm(moved), two_norm(task.v)
    usual = (size > 0) & (there > 0) & jnp.isfinite(size)
    scale = jax.lax.stop_gradient(jnp.where(usual, there / jnp.where(usual, size, 1), 1))
    scaled = jax.tree.map(lambda d: scale.astype(jnp.finfo(d.dtype).dtype) * d, dparams)
    A = _Augmented(task.A, eqx.combine(scaled, fixed))
    v = jnp.concatenate([task.v, scale * dv])
    params, fixed = eqx.partition(A, eqx.is_inexact_array)
    return Task(lambda params: eqx.combine(params, fixed), params, (), v, task.h), scale


@adjoint_rule(nondiff=("fixed", "steps", "method"))
def _gradients(
    params: Params,
    v: Inexact[Array, "n k"],
    h: Inexact[Array, ""],
    g: Inexact[Array, "n k"],
    fixed: Any,
    steps: Float[Array, " k"],
    method: Any,
) -> tuple[Params, Inexact[Array, "n k"]]:
    """The gradients of the params and of v from that of exp(hA) v."""
    return method.gradients(_task(params, v, h, fixed), steps, g)


@_gradients.def_tangent
def _tangent(args, out, dargs):
    params, v, h, g, fixed, steps, method = args
    dparams, dv, dh, dg, *_ = dargs
    task = _task(params, v, h, fixed)
    # Along h: exp(hA) v moves by dh A exp(hA) v.
    y, _ = act(params, v, h, fixed, (), method)
    _, pull = pull_back(lambda params: task.of(params).mm(y), params)
    dg = dg + jnp.conj(dh) * task.A.adjoint().mm(g)
    along_h = pull(jnp.conj(dh) * g)[0], jnp.zeros_like(v)
    along_g = _gradients(params, v, h, dg, fixed, steps, method)
    along_point = _second(args, dparams, dv)
    return jax.tree.map(lambda *terms: sum(terms), along_h, along_g, along_point)


@_gradients.def_adjoint
def _adjoint(args, out, u):
    # <u, T* g> = <T u, g>, whose second derivative in the point is symmetric.
    params, v, h, g, fixed, _, method = args
    task = _task(params, v, h, fixed)
    y, _ = act(params, v, h, fixed, (), method)
    dy, _ = method.tangent(task, *u)
    moved = jax.jvp(lambda params: task.of(params).mm(y), (params,), (u[0],))[1]
    g_h = jnp.sum(jnp.conj(task.A.mm(dy) + moved) * g)
    return *_second(args, *u), g_h, dy


def _second(args: Any, dparams: Params, dv: Array) -> tuple[Params, Array]:
    """How the gradients move as the params and v do."""
    params, v, h, g, fixed, steps, method = args
    larger, scale = _augmented(_task(params, v, h, fixed), dparams, dv)
    larger_params, larger_fixed = eqx.partition(larger.A, eqx.is_inexact_array)
    g_larger = jnp.concatenate([jnp.zeros_like(g), g]) / scale
    of_params, of_v = _gradients(larger_params, larger.v, h, g_larger, larger_fixed, steps, method)
    return eqx.filter(of_params.A, eqx.is_inexact_array), jnp.split(of_v, 2)[0]


def _task(params: Params, v: Array, h: Array, fixed: Any) -> Task:
    return Task(lambda params: eqx.combine(params, fixed), params, (), v, h)
