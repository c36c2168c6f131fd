r"""The time at which a real function of the solution changes sign, and its derivative.

primal     e(t*, y(t*)) = 0
tangent    dt* = -de / (de/dt),     de the change of e(t*, y(t*)) at a fixed time t*,
                                    de/dt = partial_t e + <grad e, F>
adjoint    g -> the gradient of e(t*, y(t*)) at fixed t*, times -g / (de/dt)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cdiffeq.ode._flow import Problem, flow
from cdiffeq.ode._march import Code, Report, march
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule


def event_time(y0: Any, span: Any, params: Any, fixed: Any, problem: Problem, e: Any) -> Any:
    """The first time in the span at which `e` changes sign, or the end of the span, and whether it does.

    `params` and `fixed` are pairs: of the field and of `e`.
    """
    when, occurred = _event_time(y0, span, params, fixed, problem, e)
    return when, occurred > 0


@adjoint_rule(nondiff=("fixed", "problem", "e"))
def _event_time(y0, span, params, fixed, problem, e):
    (field_params, e_params), (field_fixed, e_fixed) = params, fixed
    F = problem.with_fixed(field_fixed)
    trigger = lambda t, y: e(t, y, e_params, e_fixed)
    stepping = problem.stepping.bare()
    out = march(F, y0, span, field_params, stepping, event=trigger)
    report = Report(*out.report)
    occurred = report.code == Code.EVENT
    # Where the solve fails before any event, the solve to the end that follows fails too, and says so.
    return jnp.where(occurred, report.time, span[-1]), occurred.astype(y0.dtype)


def _at_event(args, when):
    """e at a fixed time, as a function of all that it depends on."""
    fixed, problem, e = args[3:]

    def value(y0, first, params):
        field_params, e_params = params
        out = flow(y0, jnp.stack([first, when]), field_params, fixed[0], problem)
        return e(when, out.ys[-1], e_params, fixed[1])

    return value


def _slope(args, when):
    """The total time derivative of e at the event."""
    y0, span, (field_params, e_params), fixed, problem, e = args
    y = flow(y0, jnp.stack([span[0], when]), field_params, fixed[0], problem).ys[-1]
    slope = problem.with_fixed(fixed[0])(when, y, field_params)
    move = lambda t, y: e(t, y, e_params, fixed[1])
    return jax.jvp(move, (when, y), (jnp.ones_like(when), slope))[1]


@_event_time.def_tangent
def _tangent(args, out, dargs):
    y0, span, params, *_ = args
    dy0, dspan, dparams, *_ = dargs
    when, occurred = out
    value = _at_event(args, when)
    de = jax.jvp(value, (y0, span[0], params), (dy0, dspan[0], dparams))[1]
    moved = -de / jnp.where(occurred > 0, _slope(args, when), 1)
    return jnp.where(occurred > 0, moved, dspan[-1]), jnp.zeros_like(occurred)


@_event_time.def_adjoint
def _adjoint(args, out, g):
    y0, span, params, *_ = args
    when, occurred = out
    g_when, _ = g
    happened = occurred > 0
    _, pull = pull_back(_at_event(args, when), y0, span[0], params)
    g_y0, g_first, g_params = pull(
        jnp.where(happened, -g_when / jnp.where(happened, _slope(args, when), 1), 0)
    )
    g_span = jnp.stack([g_first, jnp.where(happened, 0, g_when)])
    return g_y0, g_span, g_params
