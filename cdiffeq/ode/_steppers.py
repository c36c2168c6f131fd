r"""One step of a Runge-Kutta method, and the exact adjoint of that step.

    Y_i = y + h sum_j a_ij k_j,      k_i = F(t + c_i h, Y_i),      y+ = y + h sum_i b_i k_i

For a costate mu of y+ the adjoint of the step goes through the stages backward:

    l_i = h (b_i mu + sum_{j>i} a_ji m_j),        (s_i, m_i, p_i) = (dF(t_i, Y_i, p))* l_i
    mu- = mu + sum_i m_i

so each stage costs one evaluation of F with its vjp. A diagonally implicit stage,
``Y_i = ... + h a_ii k_i``, has ``m_i`` replaced by the solution of ``(1 - h a_ii J_i^T) m = m_i``, and to
``l_i`` is added ``h a_ii m_i``.

An implicit-explicit method has F in two parts, with a tableau each: k_i and l_i are pairs, and J_i is that
of the implicit part.

Source: E. Hairer, G. Wanner, C. Lubich 2006, Geometric Numerical Integration, VI.10; A. Sandu 2006,
doi:10.1007/11758549_85. The tableaus are diffrax's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Real

from cdiffeq._flat import Layout
from cdiffeq.wirtinger._linear_map import pull_back

# (t, y, p) -> dy/dt, all real vectors but for the parameters
Field = Callable[[Any, Any, Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class SplitField:
    """A field in two parts, (t, y, p) -> (explicit, implicit), shape (2, N); called, it is their sum."""

    parts: Callable[[Any, Any, Any], Any]

    def __call__(self, t: Any, y: Any, p: Any) -> Any:
        return jnp.sum(self.parts(t, y, p), axis=0)


class Step(NamedTuple):
    """What a step returns.

    - `y`: the state after it; `error`: an estimate of its error, None where there is none.
    - `carry`: what the next step starts from beside y.
    - `good`: whether the equations of an implicit step were solved.
    - `stages`: (t, b, Y), stacked, of the stages with b_i != 0: the times (or places, see `ExplicitStepper`),
      weights and states of a quadrature; in groups, see `_groups`.
    - `dense`: what diffrax's interpolation of the solver needs.
    """

    y: Float[Array, " N"]
    error: Float[Array, " N"] | None
    carry: Any
    good: Bool[Array, ""]
    stages: list[tuple[PyTree[Array], Float[Array, " S"], Float[Array, "S N"]]]
    dense: dict[str, Any]


class StepAdjoint(NamedTuple):
    """Gradients of a step in its state, in its parameters, its initial time and its length."""

    y: Float[Array, " N"]
    p: PyTree[Any]
    t: Real[Array, ""]
    h: Real[Array, ""]


def _themselves(ts: Any) -> Any:
    return ts


@dataclasses.dataclass(frozen=True)
class ExplicitStepper:
    """An explicit Runge-Kutta method, its stages written out.

    `places` makes of the times of a step's stages, stacked, what F gets in their place, stacked: a time with
    what is known at that time, found for all stages at once.
    """

    solver: diffrax.AbstractERK
    places: Callable[[Any], Any] = _themselves

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
        return F(_places(self.places, t, jnp.ones_like(t), [0.0])[0], y, p)

    def restart(self, F: Field, t: Any, y: Any, p: Any, carry: Any) -> Any:
        """The carry where F may have jumped."""
        return self.init(F, t, y, p)

    def step(self, F: Field, t: Any, h: Any, y: Any, p: Any, carry: Any) -> Step:
        """A step; a carry of None, the slope at its beginning, is found here."""
        tab = self.tableau
        at = _places(self.places, t, h, [*_nodes(tab), *([] if tab.fsal else [1.0])])
        Ys, ks = self._stages(F, at, h, y, p, tab.num_stages, carry)
        y1 = Ys[-1] if tab.fsal else y + h * _combine(tab.b_sol, ks)
        error = h * _combine(tab.b_error, ks) if self.has_error else None
        carry = ks[-1] if tab.fsal else _slope(F, at[-1], y1, p, h)
        dense = dict(y0=y, y1=y1, k=h * jnp.stack(ks))
        return Step(y1, error, carry, jnp.asarray(True), _stages(at, tab.b_sol, Ys, p), dense)

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
        at = _places(self.places, t, h, _nodes(tab)[:count])
        Ys, ks = self._stages(F, at, h, y, p, count, None)

        def pull(i, l):
            return _slope_back(F, at[i], Ys[i], p, l, h)

        def back(mu):
            return _stages_back(F, tab, at, Ys, ks, p, h, mu, pull)

        return h * _combine(tab.b_sol, ks), back

    def _stages(self, F, at, h, y, p, count, first):
        """States and slopes of the first `count` stages; `first` is the slope of the first, if known."""
        tab, Ys, ks = self.tableau, [y], [_slope(F, at[0], y, p, h) if first is None else first]
        for i in range(1, count):
            Ys.append(y + h * _combine(tab.a_lower[i - 1], ks))
            ks.append(_slope(F, at[i], Ys[-1], p, h))
        return Ys, ks


@dataclasses.dataclass(frozen=True)
class DiffraxStepper:
    """Any solver of diffrax for ordinary differential equations, through its own `step`."""

    solver: Any
    places: Callable[[Any], Any] = _themselves  # see ExplicitStepper

    @property
    def tableau(self) -> diffrax.ButcherTableau | diffrax.MultiButcherTableau | None:
        return getattr(self.solver, "tableau", None)

    @property
    def evaluations(self) -> int:
        """The least that a step evaluates F; an implicit one adds its Newton iterations."""
        return len(_nodes(self.tableau)) if self.tableau is not None else 1

    def init(self, F: Field, t: Any, y: Any, p: Any) -> Any:
        return self.solver.init(self._term(F), t, t + 1, y, p)

    def restart(self, F: Field, t: Any, y: Any, p: Any, carry: Any) -> Any:
        return self.init(F, t, y, p)

    def step(self, F: Field, t: Any, h: Any, y: Any, p: Any, carry: Any) -> Step:
        y1, error, dense, carry, result = self.solver.step(
            self._term(F), t, t + h, y, p, carry, jnp.asarray(False)
        )
        tab = self.tableau
        if tab is None:  # the trapezoidal rule
            stages = _stages(self._places(t, h, [0.0, 1.0]), np.array([0.5, 0.5]), [y, y1], p)
        elif is_split(tab):  # no one weight for both parts, and no adjoint method that asks for it
            stages = []
        else:
            Ys = _stage_states(tab, y, dense["k"])
            stages = _stages(self._places(t, h, _nodes(tab)), _tableaus(tab)[0].b_sol, Ys, p)
        return Step(y1, error, carry, result == diffrax.RESULTS.successful, stages, dense)

    def adjoint_step(self, F: Field, t: Any, h: Any, y: Any, p: Any, mu: Any) -> StepAdjoint:
        tab = self.tableau
        assert tab is not None, "only for Runge-Kutta methods"
        k = self.step(F, t, h, y, p, self.init(F, t, y, p)).dense["k"]
        Ys, K = _stage_states(tab, y, k), jnp.stack(k, axis=1) if is_split(tab) else k
        diagonal, at = _diagonal(tab), self._places(t, h, _nodes(tab))
        whole = F.parts if isinstance(F, SplitField) else F

        def pull(i, l):
            stage = lambda Y: whole(at[i], Y, p)
            m = pull_back(stage, Ys[i])[1](l)[0]
            if np.any(diagonal[i]):
                a = h * float(np.max(diagonal[i]))
                J = jax.jacfwd(lambda Y: stage(Y)[1] if is_split(tab) else stage(Y))(Ys[i])
                m = jnp.linalg.solve((jnp.eye(len(y), dtype=y.dtype) - a * J).T, m)
            return m

        return _stages_back(whole, tab, at, Ys, K / jnp.where(h == 0, 1, h), p, h, mu, pull)

    def _places(self, t, h, nodes):
        found = self.places(t + h * jnp.asarray(nodes, h.dtype))
        return [_pick(found, i) for i in range(len(nodes))]

    def _term(self, F):
        """F for diffrax, which knows of times alone."""
        at = lambda t: _pick(self.places(jnp.asarray(t)[None]), 0)
        if not is_split(self.tableau):
            return diffrax.ODETerm(lambda t, y, p: F(at(t), y, p))
        part = lambda i: diffrax.ODETerm(lambda t, y, p: F.parts(at(t), y, p)[i])
        return diffrax.MultiTerm(part(0), part(1))


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


def _stages_back(F, tab, at, Ys, ks, p, h, mu, pull) -> StepAdjoint:
    """The stages backward, from their times, states and slopes; ``pull(i, l)`` is m_i.

    The length of the step moves y+ by ``sum_i <k_i, l_i> / h``, beside the times of the stages.
    """
    count, nodes, diagonal = len(Ys), _nodes(tab), _diagonal(tab)
    ls, ms = [mu] * count, [mu] * count
    along = jnp.zeros_like(h)
    for i in reversed(range(count)):
        l = _column(tab, i, mu, ms)
        ms[i] = pull(i, h * l)
        if np.any(diagonal[i]):  # what an implicit stage adds: h a_ii k_i moves Y_i
            l = l + _each(diagonal[i], ms[i])
        ls[i] = h * l
        along = along + jnp.sum(ks[i] * l)
    g_t = g_c = jnp.zeros_like(h)
    g_p = jax.tree.map(jnp.zeros_like, p)
    rows = lambda *operands: pull_params(F, *operands)
    for some in _groups(range(count), mu, p):
        operands = (_stack(at, some), _stack(Ys, some), p, _stack(ls, some))
        g_at, more = apart(h, rows, *operands)
        c = jnp.asarray([nodes[i] for i in some], h.dtype)
        g_t, g_c = g_t + jnp.sum(g_at), g_c + jnp.sum(c * g_at)
        g_p = jax.tree.map(jnp.add, g_p, more)
    return StepAdjoint(sum(ms, mu), g_p, g_t, along + g_c)


def _groups(stages: Any, y: Any, p: Any) -> list[Any]:
    """The numbers of stages, divided into groups that have one vjp in the parameters each.

    A vjp takes memory for evaluating F at all stages of its group, and for another gradient of p: all
    stages are one group where p is large.
    """
    large = Layout.of(p).size > 4 * len(y)
    return np.array_split(np.asarray(stages), 1 if large else math.ceil(len(stages) / 6))


def pull_params(F: Field, at: Any, Ys: Any, p: Any, ls: Any) -> tuple[Any, Any]:
    """The gradients of ``sum_i <l_i, F(t_i, Y_i, p)>`` in the times and in p, of several stages at once."""
    return pull_back(lambda at, p: jax.vmap(F, (0, 0, None))(at, Ys, p), at, p)[1](ls)


def apart(h: Any, fn: Callable[..., Any], *operands: Any) -> Any:
    """``fn(*operands)``, compiled apart from what makes the operands and what uses the result.

    Fused with them, as XLA would on a CPU, everything is computed anew for each entry that fn reads: a
    difference quotient on a grid took four times as long. A choice is not fused into; this one is NaN where
    the step h is.
    """

    def nan(*operands):
        shapes = jax.eval_shape(fn, *operands)
        return jax.tree.map(lambda a: jnp.full(a.shape, jnp.nan, a.dtype), shapes)

    return jax.lax.cond(h == h, fn, nan, *operands)


def _slope(F, at, y, p, h):
    return apart(h, F, at, y, p)


def _slope_back(F, at, y, p, l, h):
    """The adjoint of F's derivative in y, applied to l."""
    back = lambda at, y, p, l: pull_back(lambda y: F(at, y, p), y)[1](l)[0]
    return apart(h, back, at, y, p, l)


def is_split(tab: Any) -> bool:
    """Whether a tableau is that of an implicit-explicit method, which steps a `SplitField`."""
    return isinstance(tab, diffrax.MultiButcherTableau)


def _tableaus(tab):
    """The tableaus of the parts of F: one, or that of the explicit and that of the implicit part."""
    return tab.tableaus if is_split(tab) else (tab,)


def _nodes(tab):
    return [0.0, *(float(c) for c in _tableaus(tab)[0].c)]  # the same for both parts


def _diagonal(tab):
    """The a_ii; for two parts a pair for each stage."""
    few = [np.zeros(t.num_stages) if t.a_diagonal is None else t.a_diagonal for t in _tableaus(tab)]
    return few[0] if len(few) == 1 else np.stack(few, axis=1)


def _each(a, v):
    """a v for a number, and for a pair of numbers both products, shape (2, N)."""
    return jnp.tensordot(jnp.asarray(a, v.dtype), v, axes=0)


def _column(tab, i, mu, ms):
    """b_i mu + sum_{j>i} a_ji m_j, for each part of F."""
    if is_split(tab):
        return jnp.stack([jnp.zeros_like(mu) + _column(part, i, mu, ms) for part in tab.tableaus])
    later = range(i + 1, len(ms))
    weights = [tab.b_sol[i], *(tab.a_lower[j - 1][i] for j in later)]
    return _combine(weights, [mu, *(ms[j] for j in later)])


def _combine(weights, ks):
    """sum_j w_j k_j, without the terms whose weight is zero."""
    terms = [float(w) * k for w, k in zip(weights, ks, strict=False) if w != 0]
    return sum(terms[1:], terms[0]) if terms else 0.0


def _stage_states(tab, y, ks):
    """The states Y_i of the stages, from h k_i; for two parts ks is a pair."""
    if is_split(tab):
        zero = jnp.zeros_like(y)
        moves = [_stage_states(t, zero, k) for t, k in zip(tab.tableaus, ks, strict=True)]
        return [y + first + second for first, second in zip(*moves, strict=True)]
    diagonal = _diagonal(tab)
    rows = [[diagonal[0]], *([*a, d] for a, d in zip(tab.a_lower, diagonal[1:], strict=True))]
    return [y + _combine(row, list(ks)) for row in rows]


def _stages(at, weights, Ys, p):
    weigh = lambda some: jnp.asarray([float(weights[i]) for i in some], Ys[0].dtype)
    groups = _groups(np.flatnonzero(weights), Ys[0], p)
    return [(_stack(at, some), weigh(some), _stack(Ys, some)) for some in groups]


def _stack(trees, some):
    """Those with the given numbers, stacked."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(trees[i] for i in some))


def _places(places, t, h, nodes):
    """What F gets in place of its time at each node; found once for nodes that are equal."""
    few, which = np.unique(nodes, return_inverse=True)
    found = places(_stage_times(t, h, few))
    return [_pick(found, i) for i in which]


def _pick(at, i):
    return jax.tree.map(lambda a: a[i], at)


def _stage_times(t, h, nodes):
    """t + c h, but never the very ends of a step: F may jump there, and belongs to the inside.

    Not within the rounding of t / dt either, by which an F may look up where it is.
    """
    inward = jnp.asarray([{0.0: 1.0, 1.0: -1.0}.get(c, 0.0) for c in nodes], h.dtype)
    begin, end = jax.lax.stop_gradient((t, t + h))
    least = 8 * jnp.finfo(h.dtype).eps * jnp.maximum(jnp.abs(begin), jnp.abs(end))
    length = end - begin
    shift = jnp.sign(length) * jnp.minimum(least, jnp.abs(length) / 8)
    return t + h * jnp.asarray(nodes, h.dtype) + shift * inward
