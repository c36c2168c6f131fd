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

Field = Callable[
    [Any, Any, Any], Any
]  # (t, y, p) -> dy/dt, all real vectors but for the parameters


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
        return self.solver.tableau  # type: ignore[return-value]  # see make_stepper

    @property
    def evaluations(self) -> int:
        """Evaluations of F in a step."""
        return self.tableau.num_stages - (1 if self.tableau.fsal else 0)

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
        Ys, ks = self._stages(F, t, h, y, p, tab.num_stages, carry)
        y1 = Ys[-1] if tab.fsal else y + h * _combine(tab.b_sol, ks)
        error = h * _combine(tab.b_error, ks) if self.has_error else None
        carry = ks[-1] if tab.fsal else _slope(F, t + h, y1, p, h)
        dense = dict(y0=y, y1=y1, k=h * jnp.stack(ks))
        return Step(y1, error, carry, jnp.asarray(True), _stages(tab, Ys), dense)

    def adjoint_step(self, F: Field, t: Any, h: Any, y: Any, p: Any, mu: Any) -> StepAdjoint:
        return self.increment(F, t, h, y, p)[1](mu)

    def increment(
        self, F: Field, t: Any, h: Any, y: Any, p: Any
    ) -> tuple[Any, Callable[[Any], StepAdjoint]]:
        """y+ - y, and the adjoint of the step to y+, from the same stages."""
        tab = self.tableau
        count = tab.num_stages
        while tab.b_sol[count - 1] == 0:  # stages that only the error estimate or the next step use
            count -= 1
        Ys, ks = self._stages(F, t, h, y, p, count, _slope(F, _stage_time(t, h, 0.0), y, p, h))

        def pull(i, l):
            return _slope_back(F, _stage_time(t, h, _nodes(tab)[i]), Ys[i], p, l, h)

        return h * _combine(tab.b_sol, ks), lambda mu: _stages_back(tab, count, h, mu, ks, pull)

    def _stages(self, F, t, h, y, p, count, first):
        """States and slopes of the first `count` stages; `first` is the slope of the first."""
        tab, Ys, ks = self.tableau, [y], [first]
        for i in range(1, count):
            Ys.append(y + h * _combine(tab.a_lower[i - 1], ks))
            ks.append(_slope(F, _stage_time(t, h, _nodes(tab)[i]), Ys[-1], p, h))
        return Ys, ks


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
        Ys = _stage_states(tab, y, dense["k"])
        diagonal = _diagonal(tab)

        def pull(i, l):
            t_i = t + _nodes(tab)[i] * h
            if diagonal[i]:
                J = jax.jacfwd(lambda Y: F(t_i, Y, p))(Ys[i])
                l = jnp.linalg.solve((jnp.eye(len(y), dtype=y.dtype) - h * diagonal[i] * J).T, l)
            return pull_back(F, t_i, Ys[i], p)[1](l)

        K = dense["k"] / jnp.where(h == 0, 1, h)
        return _stages_back(tab, tab.num_stages, h, mu, K, pull)


def make_stepper(solver: Any) -> ExplicitStepper | DiffraxStepper:
    """The stepper of a diffrax solver."""
    explicit = isinstance(solver, diffrax.AbstractERK) and isinstance(
        solver.tableau, diffrax.ButcherTableau
    )
    if explicit:
        return ExplicitStepper(solver)
    if hasattr(solver, "scan_kind"):  # a loop over the stages that has a forward mode
        solver = eqx.tree_at(lambda s: s.scan_kind, solver, "lax", is_leaf=lambda x: x is None)
    return DiffraxStepper(solver)


def interpolate(solver: Any, t0: Any, t1: Any, dense: dict[str, Any]) -> Any:
    """The continuous solution that the solver itself provides within a step."""
    return solver.interpolation_cls(t0=t0, t1=t1, **dense)


def _stages_back(tab, count, h, mu, K, pull) -> StepAdjoint:
    """The stages backward, from their slopes K; ``pull(i, l)`` is (s_i, m_i, p_i).

    The length of the step moves y+ by ``sum_i <k_i, l_i> / h``, beside the times of the stages.
    """
    ms: dict[int, Any] = {}
    g_p, g_t, g_c, along = None, jnp.zeros_like(h), jnp.zeros_like(h), jnp.zeros_like(mu)
    diagonal = _diagonal(tab)
    for i in reversed(range(count)):
        later = range(i + 1, count)
        l = _combine([tab.b_sol[i], *(_a(tab, j, i) for j in later)], [mu, *(ms[j] for j in later)])
        s_i, ms[i], p_i = pull(i, h * l)
        # What an implicit stage adds: h a_ii k_i moves Y_i.
        along = along + K[i] * (l + float(diagonal[i]) * ms[i] if diagonal[i] else l)
        g_p = p_i if g_p is None else jax.tree.map(jnp.add, g_p, p_i)
        g_t, g_c = g_t + s_i, g_c + _nodes(tab)[i] * s_i
    return StepAdjoint(sum(ms.values(), mu), g_p, g_t, jnp.sum(along) + g_c)


def _slope(F, t, y, p, h):
    """F(t, y, p), compiled apart from what makes y and what uses the result.

    Fused with them, as XLA would on a CPU, everything is computed anew for each entry that F reads: a
    difference quotient on a grid took four times as long. A choice is not fused into; this one is NaN where
    the step h of the stage is.
    """
    nan = lambda t, y, p: jnp.full_like(y, jnp.nan)
    return jax.lax.cond(h == h, F, nan, t, y, p)


def _slope_back(F, t, y, p, l, h):
    """The adjoint of F's derivative, applied to l; also apart."""
    back = lambda t, y, p, l: pull_back(F, t, y, p)[1](l)
    nan = lambda t, y, p, l: jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), (t, y, p))
    return jax.lax.cond(h == h, back, nan, t, y, p, l)


def _nodes(tab):
    return [0.0, *(float(c) for c in tab.c)]


def _diagonal(tab):
    return np.zeros(tab.num_stages) if tab.a_diagonal is None else tab.a_diagonal


def _a(tab, i, j):
    """The entry a_ij below the diagonal."""
    return tab.a_lower[i - 1][j]


def _combine(weights, ks):
    """sum_j w_j k_j, without the terms whose weight is zero."""
    terms = [float(w) * k for w, k in zip(weights, ks, strict=False) if w != 0]
    return sum(terms[1:], terms[0]) if terms else 0.0


def _stage_states(tab, y, ks):
    """The states Y_i of the stages, from h k_i."""
    diagonal = _diagonal(tab)
    rows = [[diagonal[0]], *([*a, d] for a, d in zip(tab.a_lower, diagonal[1:], strict=True))]
    return [y + _combine(row, list(ks)) for row in rows]


def _stages(tab, Ys):
    return [(c, float(b), Y) for c, b, Y in zip(_nodes(tab), tab.b_sol, Ys, strict=True) if b != 0]


def _stage_time(t, h, c):
    """t + c h, but never the very ends of a step: F may jump there, and belongs to the inside.

    Not within the rounding of t / dt either, by which an F may look up where it is.
    """
    if c not in (0.0, 1.0):
        return t + c * h
    exact = t + c * h
    still, other_end = jax.lax.stop_gradient((exact, t + (1 - c) * h))
    least = 8 * jnp.finfo(still.dtype).eps * jnp.maximum(jnp.abs(still), jnp.abs(other_end))
    length = other_end - still
    return exact + jnp.sign(length) * jnp.minimum(least, jnp.abs(length) / 8)
