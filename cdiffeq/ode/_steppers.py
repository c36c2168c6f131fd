r"""One step of a Runge-Kutta method, and the exact adjoint of that step.

    Y_i = y + h sum_j a_ij k_j,      k_i = F(t + c_i h, Y_i),      y+ = y + h sum_i b_i k_i

For a costate mu of y+ the adjoint of the step goes through the stages backward:

    l_i = h (b_i mu + sum_{j>i} a_ji m_j),        (s_i, m_i, p_i) = (dF(t_i, Y_i, p))* l_i
    mu- = mu + sum_i m_i

so each stage costs one evaluation of F with its vjp. A diagonally implicit stage,
``Y_i = ... + h a_ii k_i``, has ``l_i`` replaced by the solution of ``(1 - h a_ii J_i^T) l = l_i``.

Source: E. Hairer, G. Wanner, C. Lubich 2006, Geometric Numerical Integration, VI.10; A. Sandu 2006,
doi:10.1007/11758549_85. The tableaus are diffrax's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Real

from cdiffeq.wirtinger._linear_map import pull_back

Field = Callable[[Any, Any, Any], Any]  # (t, y, p) -> dy/dt, all real vectors but for the parameters


class Step(NamedTuple):
    """What a step returns.

    - `y`: the state after it; `error`: an estimate of its error, None where there is none.
    - `carry`: what the next step starts from beside y.
    - `good`: whether the equations of an implicit step were solved.
    - `stages`: (c_i, b_i, Y_i) for each stage with b_i != 0: nodes, weights and states of a quadrature.
    - `dense`: what diffrax's interpolation of the solver needs.
    """

    y: Float[Array, " N"]
    error: Float[Array, " N"] | None
    carry: Any
    good: Bool[Array, ""]
    stages: list[tuple[float, float, Float[Array, " N"]]]
    dense: dict[str, Any]


class StepAdjoint(NamedTuple):
    """Gradients of a step in its state, in its parameters, its initial time and its length."""

    y: Float[Array, " N"]
    p: PyTree[Any]
    t: Real[Array, ""]
    h: Real[Array, ""]


@dataclasses.dataclass(frozen=True)
class ExplicitStepper:
    """An explicit Runge-Kutta method, its stages written out."""

    solver: diffrax.AbstractERK

    @property
    def tableau(self) -> diffrax.ButcherTableau:
        return self.solver.tableau

    @property
    def evaluations(self) -> int:
        """Evaluations of F in a step."""
        return self.tableau.num_stages - (1 if self.tableau.fsal else 0)

    @property
    def order(self) -> int:
        return int(self.solver.order(diffrax.ODETerm(_unused)) or 1)

    @property
    def has_error(self) -> bool:
        return isinstance(self.solver, diffrax.AbstractAdaptiveSolver)

    def init(self, F: Field, t: Any, y: Any, p: Any) -> Any:
        return F(_stage_time(t, jnp.ones_like(t), 0.0), y, p)

    def restart(self, F: Field, t: Any, y: Any, p: Any, carry: Any) -> Any:
        """The carry where F may have jumped."""
        return self.init(F, t, y, p)

    def step(self, F: Field, t: Any, h: Any, y: Any, p: Any, carry: Any) -> Step:
        tab = self.tableau
        ks, Ys = [carry], [y]
        for i in range(1, tab.num_stages):
            Y = y + h * _combine(tab.a_lower[i - 1], ks)
            Ys.append(Y)
            ks.append(F(_stage_time(t, h, _nodes(tab)[i]), Y, p))
        y1 = Ys[-1] if tab.fsal else y + h * _combine(tab.b_sol, ks)
        error = h * _combine(tab.b_error, ks) if self.has_error else None
        # Not for the first stage of the next step, but of the one after a jump, `restart` is there.
        carry = ks[-1] if tab.fsal else F(t + h, y1, p)
        dense = dict(y0=y, y1=y1, k=_Stacked(ks, h))
        return Step(y1, error, carry, jnp.asarray(True), _stages(tab, Ys), dense)

    def adjoint_step(self, F: Field, t: Any, h: Any, y: Any, p: Any, mu: Any) -> StepAdjoint:
        tab = self.tableau
        count = tab.num_stages
        while tab.b_sol[count - 1] == 0:  # stages that only the error estimate or the next step use
            count -= 1
        ks: list[Any] = []
        pulls = []
        for i in range(count):
            Y = y + h * _combine(tab.a_lower[i - 1], ks) if i else y
            k, pull = pull_back(F, _stage_time(t, h, _nodes(tab)[i]), Y, p)
            ks.append(k)
            pulls.append(pull)
        ms: dict[int, Any] = {}
        g_p, g_t = None, jnp.zeros_like(h)
        g_h = jnp.sum(mu * _combine(tab.b_sol[:count], ks))
        for i in reversed(range(count)):
            l = h * (tab.b_sol[i] * mu + _combine([_a(tab, j, i) for j in ms], list(ms.values())))
            s_i, ms[i], p_i = pulls[i](l)
            g_p = p_i if g_p is None else jax.tree.map(jnp.add, g_p, p_i)
            g_t = g_t + s_i
            g_h = g_h + _nodes(tab)[i] * s_i
            if i:
                g_h = g_h + jnp.sum(ms[i] * _combine(tab.a_lower[i - 1], ks[:i]))
        return StepAdjoint(mu + sum(ms.values()), g_p, g_t, g_h)


@dataclasses.dataclass(frozen=True)
class DiffraxStepper:
    """Any solver of diffrax for ordinary differential equations, through its own `step`."""

    solver: Any

    @property
    def tableau(self) -> diffrax.ButcherTableau | None:
        tableau = getattr(self.solver, "tableau", None)
        return tableau if isinstance(tableau, diffrax.ButcherTableau) else None

    @property
    def evaluations(self) -> int:
        """The least that a step evaluates F; an implicit one adds its Newton iterations."""
        return self.tableau.num_stages if self.tableau is not None else 1

    @property
    def order(self) -> int:
        return int(self.solver.order(diffrax.ODETerm(_unused)) or 1)

    @property
    def has_error(self) -> bool:
        return isinstance(self.solver, diffrax.AbstractAdaptiveSolver)

    def init(self, F: Field, t: Any, y: Any, p: Any) -> Any:
        return self.solver.init(diffrax.ODETerm(F), t, t + 1, y, p)

    def restart(self, F: Field, t: Any, y: Any, p: Any, carry: Any) -> Any:
        return self.init(F, t, y, p)

    def step(self, F: Field, t: Any, h: Any, y: Any, p: Any, carry: Any) -> Step:
        y1, error, dense, carry, result = self.solver.step(
            diffrax.ODETerm(F), t, t + h, y, p, carry, jnp.asarray(False)
        )
        tab = self.tableau
        if tab is None:  # the trapezoidal rule
            stages = [(0.0, 0.5, y), (1.0, 0.5, y1)]
        else:
            stages = _stages(tab, _stage_states(tab, y, dense["k"]))
        return Step(y1, error, carry, result == diffrax.RESULTS.successful, stages, dense)

    def adjoint_step(self, F: Field, t: Any, h: Any, y: Any, p: Any, mu: Any) -> StepAdjoint:
        tab = self.tableau
        assert tab is not None, "only for Runge-Kutta methods"
        dense = self.step(F, t, h, y, p, self.init(F, t, y, p)).dense
        ks = list(dense["k"])  # each times h
        Ys = _stage_states(tab, y, dense["k"])
        diagonal = np.zeros(tab.num_stages) if tab.a_diagonal is None else tab.a_diagonal
        ms: dict[int, Any] = {}
        g_p, g_t = None, jnp.zeros_like(h)
        g_h = jnp.sum(mu * _combine(tab.b_sol, ks)) / h
        for i in reversed(range(tab.num_stages)):
            t_i = t + _nodes(tab)[i] * h
            l = h * (tab.b_sol[i] * mu + _combine([_a(tab, j, i) for j in ms], list(ms.values())))
            if diagonal[i]:
                J = jax.jacfwd(lambda Y, t_i=t_i: F(t_i, Y, p))(Ys[i])
                l = jnp.linalg.solve((jnp.eye(len(y), dtype=y.dtype) - h * diagonal[i] * J).T, l)
            _, pull = pull_back(F, t_i, Ys[i], p)
            s_i, ms[i], p_i = pull(l)
            g_p = p_i if g_p is None else jax.tree.map(jnp.add, g_p, p_i)
            g_t = g_t + s_i
            row = [*tab.a_lower[i - 1], diagonal[i]] if i else [diagonal[0]]
            g_h = g_h + _nodes(tab)[i] * s_i + jnp.sum(ms[i] * _combine(row, ks[: i + 1])) / h
        return StepAdjoint(mu + sum(ms.values()), g_p, g_t, g_h)


def make_stepper(solver: Any) -> ExplicitStepper | DiffraxStepper:
    """The stepper of a diffrax solver."""
    explicit = isinstance(solver, diffrax.AbstractERK) and isinstance(
        solver.tableau, diffrax.ButcherTableau
    )
    return ExplicitStepper(solver) if explicit else DiffraxStepper(solver)


def interpolate(solver: Any, t0: Any, t1: Any, dense: dict[str, Any]) -> Any:
    """The continuous solution that the solver itself provides within a step."""
    dense = {name: x.array() if isinstance(x, _Stacked) else x for name, x in dense.items()}
    return solver.interpolation_cls(t0=t0, t1=t1, **dense)


class _Stacked(NamedTuple):
    """The stages as diffrax wants them, stacked and times h; made only where they are needed."""

    ks: list[Any]
    h: Any

    def array(self) -> Any:
        return self.h * jnp.stack(self.ks)


def _unused(t, y, p):
    raise AssertionError


def _nodes(tab):
    return [0.0, *(float(c) for c in tab.c)]


def _a(tab, i, j):
    """The entry a_ij below the diagonal."""
    return tab.a_lower[i - 1][j]


def _combine(weights, ks):
    """sum_j w_j k_j, without the terms whose weight is zero."""
    terms = [float(w) * k for w, k in zip(weights, ks, strict=False) if w != 0]
    return sum(terms[1:], terms[0]) if terms else 0.0


def _stage_states(tab, y, ks):
    """The states Y_i of the stages, from h k_i."""
    diagonal = np.zeros(tab.num_stages) if tab.a_diagonal is None else tab.a_diagonal
    rows = [[diagonal[0]], *([*a, d] for a, d in zip(tab.a_lower, diagonal[1:], strict=True))]
    return [y + _combine(row, list(ks)) for row in rows]


def _stages(tab, Ys):
    return [
        (c, float(b), Y) for c, b, Y in zip(_nodes(tab), tab.b_sol, Ys, strict=True) if b != 0
    ]


def _stage_time(t, h, c):
    """t + c h, but never the very ends of a step: F may jump there, and belongs to the inside."""
    if c not in (0.0, 1.0):
        return t + c * h
    exact = t + c * h
    still, other_end = jax.lax.stop_gradient((exact, t + (1 - c) * h))
    return exact + (jnp.nextafter(still, other_end) - still)
