r"""The costate solved backward against the continuous solution."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cdiffeq.ode._discrete import run_steps_back
from cdiffeq.ode._flow import Problem, require
from cdiffeq.ode._march import Code, Record, Report, Stepping, balanced_slots, march, step_times
from cdiffeq.ode._method import AdjointMethod
from cdiffeq.ode._steppers import apart, interpolate, pull_params
from cdiffeq.wirtinger._linear_map import pull_back


class Interpolated(AdjointMethod):
    r"""Adjoint method: the costate is solved for backward, with the state from the solver's interpolation.

    In each step of the forward solve, from the last to the first, y(t) is the solver's own continuous
    solution, and

        dmu/dt = -(dF/dy)* mu,        g_p = integral of (dF/dp)* mu dt

    is solved by the same solver, its steps ending where those of the forward solve do and held to four times
    the tolerances, the integral by the quadrature that belongs to the method: its weights at its stages.
    However many the parameters, the costate stays as small as the state.

    **Works for** every solver and problem, stiff and dissipative ones included: nothing runs backward that
    doesn't want to. The gradient is as accurate as the tolerances say, not the exact derivative of the
    steps. **Don't use it** where the solver's interpolation is of low order (Euler: straight lines).

    **Arguments**: `checkpoints`: how many states to keep at most; by default about the square root of
    max_steps.

    **Cost**: a forward solve between the checkpoints (none where all states could be kept), one more for the
    interpolation, and the costate: at least one step for each step forward, with a vjp of f in y for each
    stage, and a few in the parameters, of several stages at once. **Memory**: `checkpoints` states, as
    many as there are steps between two of them, and one number for each of max_steps.

    Source: the quadrature is that of C. Rackauckas's GaussAdjoint in SciMLSensitivity (arXiv:2001.04385).

    >>> f = lambda t, z, w: 1j * w * z - z
    >>> loss = lambda w: cd.ode.solve(f, 1 + 0j, [0.0, 1.0], w, adjoint=cd.ode.Interpolated()).ys[-1].real
    >>> print(f"{jax.grad(loss)(0.5):.5f} {-np.sin(0.5) / np.e:.5f}")
    -0.17637 -0.17637
    """

    checkpoints: int | None = None

    def prepare(self, stepping: Stepping, dense: bool) -> Stepping:
        """What the forward pass has to keep."""
        slots = balanced_slots(stepping.max_steps)
        if self.checkpoints is not None:
            if not isinstance(self.checkpoints, int) or self.checkpoints < 1:
                raise ValueError(
                    f"checkpoints must be a positive integer, got {self.checkpoints!r}."
                )
            slots = max(1, self.checkpoints - self.checkpoints % 2)  # see `spacing`
        return dataclasses.replace(stepping, slots=slots, record=True)

    def pull_back(self, problem: Problem, args: Any, out: Record, g: Record) -> Any:
        y0, ts, params, fixed, _ = args
        F, stepper = problem.with_fixed(fixed), problem.stepping.stepper
        bare = problem.stepping.backward()

        def back_in_step(t, h, y, mu):
            """The costate at the step's beginning, and what the step adds to the parameters' gradient."""
            step = stepper.step(F, t, h, y, params, stepper.init(F, t, y, params))
            path = interpolate(stepper.solver, t, t + h, step.dense)

            def places(ss):  # of the costate's stages, in the time s = -t
                return apart(h, lambda ss: (-ss, jax.vmap(path.evaluate)(-ss)), ss)

            def field(place, mu, params):
                t, y = place
                return pull_back(lambda y: F(t, y, params), y)[1](mu)[0]

            def summand(s, size, stages):
                def quadrature(stages, params):
                    (ts, ys), weights, mus = stages
                    return pull_params(F, ts, ys, params, (size * weights)[:, None] * mus)[1]

                return apart(size, quadrature, stages, params)

            costate = dataclasses.replace(bare, stepper=dataclasses.replace(stepper, places=places))
            span, guess = jnp.stack([-(t + h), -t]), jax.lax.stop_gradient(h)
            record, g_p = march(field, mu, span, params, costate, first=guess, summand=summand)
            return record.ys[-1], g_p, Report(*record.report).code

        def back(n, place, y, state):
            mu, g_ts, g_params, code = state
            k, start, end = place
            t, h = step_times(ts, place)
            closes, opens = end >= 1, start <= 0
            mu = mu + jnp.where(closes, g.ys[k + 1], 0)
            if problem.moving:
                g_end = jnp.sum(mu * F(t + h, out.ys[k + 1], params))
                g_ts = g_ts.at[k + 1].add(jnp.where(closes, g_end, 0))
            nothing = jax.tree.map(jnp.zeros_like, params)
            skip = lambda *_: (mu, nothing, jnp.zeros_like(code))
            mu, g_p, step_code = jax.lax.cond(h > 0, back_in_step, skip, t, h, y, mu)
            if problem.moving:
                g_start = -jnp.sum(mu * F(t, y, params))
                g_ts = g_ts.at[k].add(jnp.where(opens, g_start, 0))
            code = jnp.where(code == Code.SUCCESS, step_code, code)
            return mu, g_ts, jax.tree.map(jnp.add, g_params, g_p), code

        zeros = jax.tree.map(jnp.zeros_like, (y0, ts, params))
        state = (*zeros, jnp.zeros((), y0.dtype))
        mu, g_ts, g_params, code = run_steps_back(problem, args, out, back, state)
        gradients = (mu + g.ys[0], g_ts, g_params)
        return require(problem, gradients, code != Code.SUCCESS, _error, code)


def _error(code: Any) -> Exception:
    return RuntimeError(
        "Interpolated: the costate could not be solved for to the tolerances, or it isn't finite. Use "
        "Discrete(), which takes the steps of the forward solve, or loosen rtol and atol."
    )
