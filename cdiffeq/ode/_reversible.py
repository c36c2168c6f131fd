r"""Any explicit Runge-Kutta method made algebraically reversible, and its exact derivative.

With ``Psi_h(t, y)`` the increment of the method from (t, y) over a step h, two states are coupled:

    y+ = l y + (1 - l) z + Psi_h(t, z),        z+ = z - Psi_{-h}(t + h, y+)

and can be had back exactly: ``z = z+ + Psi_{-h}(t + h, y+)``, ``y = (y+ - (1 - l) z - Psi_h(t, z)) / l``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from cdiffeq.ode._discrete import add_time_gradient
from cdiffeq.ode._flow import Problem, require
from cdiffeq.ode._march import Record, Stepping, grid_of, step_times
from cdiffeq.ode._method import AdjointMethod
from cdiffeq.ode._steppers import ExplicitStepper, Field, Step, StepAdjoint


@dataclasses.dataclass(frozen=True)
class CoupledStepper:
    """The coupled method; what it carries beside y is z."""

    base: ExplicitStepper
    coupling: float

    @property
    def solver(self) -> Any:
        return self.base.solver

    @property
    def tableau(self) -> Any:
        return self.base.tableau

    @property
    def evaluations(self) -> int:
        return 2 * self.base.tableau.num_stages

    def init(self, F: Field, t: Any, y: Any, p: Any) -> Any:
        return y

    def restart(self, F: Field, t: Any, y: Any, p: Any, carry: Any) -> Any:
        return carry

    def last(self, carry: Any, y: Any) -> Any:
        """What the reverse run needs beside the last y."""
        return carry

    def step(self, F: Field, t: Any, h: Any, y: Any, p: Any, carry: Any) -> Step:
        z, l = carry, self.coupling
        forth = self.base.step(F, t, h, z, p, None)
        y1 = l * y + (1 - l) * z + (forth.y - z)
        z1 = z - (self.base.step(F, t + h, -h, y1, p, None).y - y1)
        return forth._replace(y=y1, carry=z1)

    def step_back(
        self, F: Field, t: Any, h: Any, y1: Any, z1: Any, p: Any, c_y: Any, c_z: Any
    ) -> tuple[Any, Any, StepAdjoint, Any]:
        """(y, z) before the step that ended in (y1, z1), and from the costates of (y1, z1) the adjoint of the
        step: the costate of y in a `StepAdjoint`, and that of z."""
        l = self.coupling
        increment = self.base.increment  # Psi, and mu -> mu + (dPsi)* mu
        psi, pull = increment(F, t + h, -h, y1, p)
        z, first = z1 + psi, pull(-c_z)
        psi, pull = increment(F, t, h, z, p)
        y = (y1 - (1 - l) * z - psi) / l
        c_y = c_y + (first.y + c_z)
        second = pull(c_y)
        c_z = c_z + (1 - l) * c_y + (second.y - c_y)
        g_p = jax.tree.map(jnp.add, first.p, second.p)
        step = StepAdjoint(l * c_y, g_p, first.t + second.t, first.t - first.h + second.h)
        return y, z, step, c_z


class Reversible(AdjointMethod):
    r"""Adjoint method: a reversible form of the solver, run backward; the exact derivative of its steps.

    The solve itself takes the steps of the coupled method (the equations are above): order and error
    estimate are those of the explicit Runge-Kutta method that it is made of.

    **Works for** long solves of non-stiff problems where memory counts. **Don't use it** for stiff or
    strongly damped problems: running backward, rounding grows as ``l**-N`` over N steps. That bound is
    computed, ``eps l**-N``, and before it passes `rounding` an error is raised with the number (with
    ``throw=False`` the gradient is NaN). A larger l grows less, but damps less of what parts y from z.

    **Arguments**: `l`: the coupling, below 1. `rounding`: by default the square root of eps: about 18,000
    steps at l = 0.999 in double precision.

    **Cost**: a step costs two of the method's; the gradient another two, two vjps of f in y for each stage,
    and a few in the parameters, of several stages at once.
    **Memory**: a few states, however many steps. Adaptive steps are remembered, a number for each of
    max_steps; equal ones (``stepsize=h``) aren't, and the memory doesn't grow at all.

    Source: S. McCallum, J. Foster 2024, arXiv:2410.11648.

    >>> f = lambda t, z, w: -1j * w * z
    >>> loss = lambda w: cd.ode.solve(f, 1 + 0j, [0.0, 1.0], w, adjoint=cd.ode.Reversible()).ys[-1].real
    >>> print(f"{jax.grad(loss)(0.5):.5f} {-np.sin(0.5):.5f}")
    -0.47943 -0.47943
    """

    l: float = 0.999
    rounding: float | None = None

    def prepare(self, stepping: Stepping, dense: bool) -> Stepping:
        """The coupled stepper, and a record of the steps."""
        if not 0 < self.l < 1:
            raise ValueError(f"Reversible: l must be between 0 and 1, got {self.l!r}.")
        if not isinstance(stepping.stepper, ExplicitStepper):
            name = type(stepping.stepper.solver).__name__
            raise TypeError(
                f"adjoint=Reversible() needs an explicit Runge-Kutta solver; got {name}."
            )
        return dataclasses.replace(
            stepping, stepper=CoupledStepper(stepping.stepper, self.l), record=True
        )

    def pull_back(self, problem: Problem, args: Any, out: Record, g: Record) -> Any:
        y0, ts, params, fixed, _ = args
        F, stepper = problem.with_fixed(fixed), problem.stepping.stepper
        grid = grid_of(ts, out, problem.stepping)

        def back(i, state):
            y1, z1, c_y, c_z, g_ts, g_params = state
            place = grid.at(grid.total - 1 - i)
            k, _, end = place
            t, h = step_times(ts, place)
            c_y = c_y + jnp.where(end >= 1, g.ys[k + 1], 0)
            y, z, step, c_z = stepper.step_back(F, t, h, y1, z1, params, c_y, c_z)
            if problem.moving:
                g_ts = add_time_gradient(g_ts, place, step.t, step.h)
            return y, z, step.y, c_z, g_ts, jax.tree.map(jnp.add, g_params, step.p)

        zeros = jax.tree.map(jnp.zeros_like, (y0, y0, ts, params))
        state = (out.ys[-1], out.last, *zeros)
        *_, c_y, c_z, g_ts, g_params = jax.lax.fori_loop(0, grid.total, back, state)
        eps = jnp.finfo(y0.dtype).eps
        limit = math.sqrt(eps) if self.rounding is None else self.rounding
        growth = eps * jnp.exp(-math.log(self.l) * grid.total.astype(y0.dtype))
        values = (growth, jnp.asarray(limit, y0.dtype), grid.total, jnp.asarray(self.l))
        gradients = (c_y + c_z + g.ys[0], g_ts, g_params)
        return require(problem, gradients, ~(growth <= limit), _error, *values)


def _error(growth: Any, limit: Any, steps: Any, l: Any) -> Exception:
    return RuntimeError(
        f"Reversible: over {int(steps)} steps at l = {float(l):.6g} rounding may grow to "
        f"{float(growth):.2g}, and at most {float(limit):.2g} is allowed. "
        "Take an l closer to 1, fewer steps, or Discrete()."
    )
