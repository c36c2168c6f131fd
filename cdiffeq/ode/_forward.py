r"""The tangent equations, solved along with the state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from cdiffeq._flat import Layout
from cdiffeq.ode._flow import Problem, require
from cdiffeq.ode._march import Code, Record, Report, Stepping, march
from cdiffeq.ode._method import AdjointMethod


class ForwardSensitivity(AdjointMethod):
    r"""Adjoint method that isn't one: tangents ``s' = (dF/dy) s + (dF/dp) dp``, solved along with y.

    Tangents and state are one system, and the tolerances hold for both. A jvp takes one tangent; a vjp one
    for every real number in y0 and in the parameters, all in one solve, so that a Jacobian of many outputs
    (`jax.jacrev` over a trajectory) costs each of its rows no more than the first.

    **Works for** every solver; best for a few numbers in and many out. **Don't use it** for the gradient
    of one loss in more than some ten numbers, nor where args hold arrays whose gradient nobody asked
    for: they count.

    **Cost**: a solve with 1 + D states, D the count of real numbers. **Memory**: 1 + D states at every
    saved time and a few more, however many steps.

    Source: E. Hairer, S. P. Norsett, G. Wanner 1993, Solving Ordinary Differential Equations I, I.14.

    >>> f = lambda t, z, w: 1j * w * z
    >>> adjoint = cd.ode.ForwardSensitivity()
    >>> path = lambda w: cd.ode.solve(f, 1 + 0j, [0.0, 1.0, 2.0], w, adjoint=adjoint).ys.real
    >>> print(jax.jacrev(path)(0.5).round(4))
    [ 0.     -0.4794 -1.6829]
    """

    def prepare(self, stepping: Stepping, dense: bool) -> Stepping:
        """Nothing is kept."""
        return stepping

    def tangent(self, problem: Problem, args: Any, out: Record, dargs: Any) -> Record:
        first = lambda tree: jax.tree.map(lambda a: a[None], tree)
        ys, failed = _sensitivities(problem, args, out, first(tuple(dargs[:3])))
        zeros = jax.tree.map(jnp.zeros_like, out)
        return require(problem, zeros._replace(ys=ys[:, 0]), failed, _error)

    def pull_back(self, problem: Problem, args: Any, out: Record, g: Record) -> Any:
        y0, ts, params, _, _ = args
        # The times need no equation of their own: of all saved states, each moves along its slope.
        layout = Layout.of((y0, params))
        basis = jax.vmap(layout.unpack)(jnp.eye(layout.size, dtype=layout.dtype))
        still = jnp.zeros((layout.size, *ts.shape), ts.dtype)
        ys, failed = _sensitivities(problem, args, out, (basis[0], still, basis[1]))
        flat = jnp.einsum("sdn,sn->d", ys, g.ys)
        g_y0, g_params = layout.unpack(flat)
        F = problem.with_fixed(args[3])
        slopes = jax.vmap(lambda t, y: F(t, y, params))(ts, out.ys)
        g_ts = jnp.sum(g.ys * slopes, axis=1)
        # Moving the initial time by dt is starting from y0 - F dt.
        along = jnp.sum(g_y0 * slopes[0])
        g_ts = g_ts.at[0].add(-along) if len(ts) > 1 else jnp.zeros_like(g_ts)
        return require(problem, (g_y0, g_ts, g_params), failed, _error)


def _sensitivities(problem: Problem, args: Any, out: Record, directions: Any) -> Any:
    """The tangents of all saved states, (saves, D, N), for directions (D, ...) of (y0, ts, params)."""
    y0, ts, params, fixed, _ = args
    dy0, dts, dparams = directions
    F = problem.with_fixed(fixed)
    N, D = len(y0), len(dy0)

    def field(t, flat, p):
        params, dparams = p
        y, s = flat[:N], flat[N:].reshape(D, N)
        dy, push = jax.linearize(lambda y, params: F(t, y, params), y, params)
        return jnp.concatenate([dy, jax.vmap(push)(s, dparams).ravel()])

    slopes = jax.vmap(lambda t, y: F(t, y, params))(ts, out.ys)
    s0 = dy0 - dts[:, :1] * slopes[:1]
    stepping = problem.stepping.bare()
    start = jnp.concatenate([y0, s0.ravel()])
    record = march(field, start, ts, (params, dparams), stepping)
    s = record.ys[:, N:].reshape(len(ts), D, N) + dts.T[:, :, None] * slopes[:, None, :]
    return s, Report(*record.report).code != Code.SUCCESS


def _error() -> Exception:
    return RuntimeError(
        "ForwardSensitivity: the tangents could not be solved for in max_steps steps, or aren't finite. "
        "Raise max_steps, loosen rtol and atol, or use Discrete()."
    )
