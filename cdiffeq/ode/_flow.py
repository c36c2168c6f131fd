r"""The rule of the initial value problem: ``y' = F(t, y, p)``, all states and times real and flat.

    primal     ys_k = y(ts_k),       y(ts_0) = y0
    tangent    s' = (dF/dy) s + (dF/dp) dp,      d ys_k = s(ts_k) + F(ts_k, ys_k) d ts_k
    adjoint    mu' = -(dF/dy)* mu between saved times,   mu(ts_k-) = mu(ts_k+) + g_k,
               g_p = integral of (dF/dp)* mu,    g_y0 = mu(ts_0),
               g_ts_k = <g_k, F> (k > 0),        g_ts_0 = -<mu(ts_0+), F>

The primal and the tangent are the same for all adjoint methods: the steps of `march`, and the derivative
of the accepted ones, which are the same method's steps of the tangent equation. An adjoint method adds
what the steps have to leave behind for it, and its backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from cdiffeq._errors import poison, raise_if
from cdiffeq.ode._march import Record, Stepping, march
from cdiffeq.ode._steppers import Field, SplitField, is_split
from cdiffeq.wirtinger._rule import adjoint_rule


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is fixed about a solve.

    `field` is ``(t, y, params, fixed) -> dy/dt``, or its two parts, see `SplitField`; `adjoint` an adjoint
    method; `throw` whether a backward pass that fails raises, rather than returning NaN; `moving` whether the
    times may have derivatives: if not, an adjoint method returns zeros for theirs.
    """

    field: Any
    stepping: Stepping
    adjoint: Any
    throw: bool
    moving: bool

    def with_fixed(self, fixed: Any) -> Field:
        """The field as a function of (t, y, params)."""
        field = lambda t, y, p: self.field(t, y, p, fixed)
        return SplitField(field) if is_split(self.stepping.stepper.tableau) else field


@adjoint_rule(nondiff=("fixed", "problem"))
def flow(
    y0: Float[Array, " N"],
    ts: Float[Array, " saves"],
    params: PyTree[Inexact[Array, "..."]],
    fixed: PyTree[Array],
    problem: Problem,
) -> Record:
    """The states at ascending `ts`, and what the adjoint method keeps."""
    return march(problem.with_fixed(fixed), y0, ts, params, problem.stepping)


@flow.def_tangent
def _tangent(args, out, dargs):
    problem = args[-1]
    return problem.adjoint.tangent(problem, args, out, dargs)


@flow.def_adjoint
def _adjoint(args, out, g):
    problem = args[-1]
    gradients = problem.adjoint.pull_back(problem, args, out, g)
    # NaN of a failed solve must reach all gradients.
    lost = 0 * jnp.sum(g.ys)
    return jax.tree.map(lambda a: a + lost.astype(jnp.finfo(a.dtype).dtype), gradients)


def tangent_of_steps(problem: Problem, args: Any, out: Record, dargs: Any) -> Record:
    """The tangent equation, solved by the accepted steps of the same method."""
    y0, ts, params, fixed, _ = args
    silent = dataclasses.replace(problem.stepping, meter=diffrax.NoProgressMeter())
    F = problem.with_fixed(fixed)
    program = lambda y0, ts, params: march(F, y0, ts, params, silent)
    return jax.jvp(program, (y0, ts, params), tuple(dargs[:3]))[1]


def require(
    problem: Problem, gradients: Any, failed: Any, error: Callable[..., Exception], *values: Any
) -> Any:
    """Gradients, unless the backward pass failed: then an error, or NaN where the caller asked for that."""
    if problem.throw:
        return raise_if(gradients, failed, error, *values)
    return poison(gradients, jax.lax.stop_gradient(failed))
