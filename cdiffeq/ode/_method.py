"""What an adjoint method is, and how diffrax's own `diffeqsolve` takes one."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from cdiffeq._arrays import as_params
from cdiffeq._errors import poison
from cdiffeq.ode._core import Static, solve_with
from cdiffeq.ode._flow import Problem, tangent_of_steps
from cdiffeq.ode._march import Record, Stepping
from cdiffeq.ode._steppers import make_stepper


class AdjointMethod(diffrax.AbstractAdjoint):
    """A backward pass for an initial value problem; see `_flow.py` for the rule that it is part of.

    It can also be given to diffrax, ``diffrax.diffeqsolve(..., adjoint=cd.ode.Interpolated())``: the solve is
    then done here, on one flat real vector, and diffrax's `Solution` is returned.
    """

    @abstractmethod
    def prepare(self, stepping: Stepping, dense: bool) -> Stepping:
        """What the forward pass has to keep."""

    def tangent(self, problem: Problem, args: Any, out: Record, dargs: Any) -> Record:
        """The derivative of the states along `dargs`: by default that of the accepted steps."""
        return tangent_of_steps(problem, args, out, dargs)

    @abstractmethod
    def pull_back(self, problem: Problem, args: Any, out: Record, g: Record) -> Any:
        """The gradients of (y0, ts, params) for gradients g of what the forward pass returned."""

    def loop(
        self,
        *,
        args: Any,
        terms: Any,
        solver: Any,
        stepsize_controller: Any,
        event: Any,
        saveat: Any,
        t0: Any,
        t1: Any,
        dt0: Any,
        max_steps: Any,
        throw: bool,
        init_state: Any,
        passed_solver_state: bool,
        passed_controller_state: bool,
        progress_meter: Any,
    ) -> Any:
        """What `diffrax.diffeqsolve` calls (diffrax 0.7.2; not among its documented interfaces).

        Raises `TypeError` for what isn't supported there: terms other than `ODETerm`, controllers other than
        `PIDController`, `max_steps` of None, events, dense output, and other things to save than states at
        t0, t1 and ts.
        """
        save = saveat.subs
        plain = isinstance(save, diffrax.SubSaveAt) and save.steps == 0
        plain = plain and save.fn is diffrax.SubSaveAt(t1=True).fn and not saveat.dense
        unsupported = {
            "term": not isinstance(getattr(terms, "term", None), diffrax.ODETerm),
            "stepsize_controller": not isinstance(stepsize_controller, diffrax.PIDController),
            "event": event is not None,
            "max_steps=None": max_steps is None,
            "saveat": not plain or saveat.solver_state or saveat.controller_state,
            "solver_state or controller_state": passed_solver_state or passed_controller_state,
        }
        for name, found in unsupported.items():
            if found:
                raise TypeError(
                    f"diffeqsolve(adjoint={type(self).__name__}()) doesn't support this {name}; use "
                    "cd.ode.solve, or an adjoint method of diffrax."
                )
        y0 = init_state.y
        one = lambda t: jnp.reshape(jnp.asarray(t), (1,))
        real = jnp.finfo(jax.tree.leaves(y0)[0].dtype).dtype
        between = [] if save.ts is None else [save.ts]
        ts = jnp.concatenate([one(t0), *between, one(t1)]).astype(real)
        saved = slice(0 if save.t0 else 1, len(ts) if save.t1 else -1)

        stepping = Stepping(make_stepper(solver), stepsize_controller, None, max_steps)
        stepping = self.prepare(stepping, False)
        # diffrax solves forward in a time of its own, and keeps the sign in the control.
        sign = terms.contr(jnp.zeros((), real), jnp.ones((), real))
        field = lambda t, y, args: jax.tree.map(lambda d: sign * d, terms.vf(t, y, args))
        static = Static((stepping, self, False, throw, True))
        solution, _ = solve_with((field, None, None), y0, ts, as_params(args), static)
        report = solution.stats
        ys = poison(solution.ys, ~solution.success)
        failure = diffrax.RESULTS.where(
            report.steps + report.rejected_steps >= max_steps,
            diffrax.RESULTS.max_steps_reached,
            diffrax.RESULTS.dt_min_reached,
        )
        result = diffrax.RESULTS.where(solution.success, diffrax.RESULTS.successful, failure)
        where = lambda s: (
            s.y, s.save_state.ts, s.save_state.ys, s.save_state.save_index, s.result,
            s.num_steps, s.num_accepted_steps, s.num_rejected_steps,
        )  # fmt: skip
        values = (
            jax.tree.map(lambda a: a[-1], ys), ts[saved],
            jax.tree.map(lambda a: a[saved], ys), len(ts[saved]), result,
            report.steps + report.rejected_steps, report.steps, report.rejected_steps,
        )  # fmt: skip
        return eqx.tree_at(where, init_state, values), {}
