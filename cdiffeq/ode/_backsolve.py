r"""The adjoint equations solved backward together with the state, from nothing but the saved states."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from cdiffeq._flat import Layout
from cdiffeq.ode._flow import Problem, require
from cdiffeq.ode._march import Code, Record, Report, Stepping, march
from cdiffeq.ode._method import AdjointMethod
from cdiffeq.ode._steppers import apart, pull_params
from cdiffeq.wirtinger._linear_map import pull_back


class Backsolve(AdjointMethod):
    r"""Adjoint method: the state is solved again, backward in time, with its costate. No memory at all.

    From each saved time to the one before it, by the same solver at four times the tolerances,

        dy/dt = F,    dmu/dt = -(dF/dy)* mu,    g_p = integral of (dF/dp)* mu dt

    are solved, the first two as one system with y starting from the saved state, the integral by the
    quadrature that belongs to the method: its weights at its stages.

    **Works for** conservative problems: oscillations, waves, unitary evolution. **Don't use it** where the
    solution forgets where it came from: what decays forward grows backward. After each interval the state
    is compared with the saved one; where it is off by more than `drift`, relative to its norm, an error
    is raised with the number (with ``throw=False`` the gradient is NaN). Stiff and dissipative problems
    want `Discrete` or `Interpolated`.

    **Arguments**: `drift`: by default the square root of rtol (of 1e-6 for equal steps).

    **Cost**: one solve of a system of twice the state; a step costs a vjp of f in y for each stage, and a
    few in the parameters, of several stages at once. **Memory**: a few states, however many steps.

    Source: R. T. Q. Chen et al. 2018, arXiv:1806.07366.

    >>> f = lambda t, z, w: -1j * w * z
    >>> loss = lambda w: cd.ode.solve(f, 1 + 0j, [0.0, 1.0], w, adjoint=cd.ode.Backsolve()).ys[-1].real
    >>> print(f"{jax.grad(loss)(0.5):.5f} {-np.sin(0.5):.5f}")
    -0.47943 -0.47943
    """

    drift: float | None = None

    def prepare(self, stepping: Stepping, dense: bool) -> Stepping:
        """Nothing is kept."""
        return stepping

    def pull_back(self, problem: Problem, args: Any, out: Record, g: Record) -> Any:
        y0, ts, params, fixed, _ = args
        F = problem.with_fixed(fixed)
        layout = Layout.of((y0, y0))
        stepping = problem.stepping.backward()

        def reversed_field(s, flat, params):  # in the time s = -t
            y, mu = layout.unpack(flat)
            dy, pull = pull_back(lambda y: F(-s, y, params), y)
            return layout.pack((-dy, pull(mu)[0]))

        def summand(s, size, stages):
            def quadrature(stages, params):
                ss, weights, states = stages
                ys, mus = layout.unpack(states)
                return pull_params(F, -ss, ys, params, (size * weights)[:, None] * mus)[1]

            return apart(size, quadrature, stages, params)

        def interval(carry, k):
            mu, g_params, worst, code = carry
            mu = mu + g.ys[k + 1]
            g_end = jnp.sum(mu * F(ts[k + 1], out.ys[k + 1], params))
            start = layout.pack((out.ys[k + 1], mu))
            span = jnp.stack([-ts[k + 1], -ts[k]])
            record, more = march(reversed_field, start, span, params, stepping, summand=summand)
            y, mu = layout.unpack(record.ys[-1])
            g_params = jax.tree.map(jnp.add, g_params, more)
            off = jnp.linalg.norm(y - out.ys[k]) / (jnp.linalg.norm(out.ys[k]) + tiny)
            g_start = -jnp.sum(mu * F(ts[k], out.ys[k], params))
            code = jnp.where(code == Code.SUCCESS, Report(*record.report).code, code)
            # A comparison that NaN fails: a drift that isn't a number is the worst.
            worst = jnp.where(off <= worst, worst, off)
            return (mu, g_params, worst, code), (g_start, g_end)

        tiny = jnp.finfo(y0.dtype).tiny
        zeros = jax.tree.map(jnp.zeros_like, (y0, params))
        zero = jnp.zeros((), y0.dtype)
        intervals = jnp.arange(len(ts) - 1)
        (mu, g_params, worst, code), (starts, ends) = jax.lax.scan(
            interval, (*zeros, zero, zero), intervals, reverse=True
        )
        g_ts = jnp.zeros_like(ts).at[:-1].add(starts).at[1:].add(ends)
        limit = self._limit(problem.stepping)
        failed = (code != Code.SUCCESS) | ~(worst <= limit)
        values = (code, worst, jnp.asarray(limit, worst.dtype))
        return require(problem, (mu + g.ys[0], g_ts, g_params), failed, _error, *values)

    def _limit(self, stepping: Stepping) -> float:
        if self.drift is not None:
            return self.drift
        return math.sqrt(1e-6 if stepping.equal else max(stepping.controller.rtol, 1e-12))


def _error(code: Any, worst: Any, limit: Any) -> Exception:
    remedy = "Use Discrete() or Interpolated(), which keep checkpoints, or tighten rtol and atol."
    if int(code) != Code.SUCCESS:
        return RuntimeError(
            "Backsolve: the backward solve failed: the state can't be solved for backward in time, or "
            f"max_steps is too few. {remedy}"
        )
    return RuntimeError(
        f"Backsolve: solved backward, the state came back {float(worst):.2g} off, relative to its norm; at "
        f"most {float(limit):.2g} is allowed. {remedy}"
    )
