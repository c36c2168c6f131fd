r"""The action of an exponential by Taylor's polynomial with scaling, for any matrix.

With A' = A - mu and the step h/s, s times

    y <- e^(mu h/s) sum_k b_k,     b_0 = y,  b_k = (h/(s k)) A' b_(k-1),     k = 1 ... m

(Al-Mohy and Higham 2011, doi:10.1137/100788860). The adjoint goes through the steps from the last to the
first, and in each with l_m = g backwards through the sum:

    l_(k-1) = g + conj(h/(s k)) A'^H l_k,      g_A' = sum_k conj(h/(s k)) l_k b_(k-1)^H.

The states at the steps are computed again, from few of them that are kept on the way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Int

from cdiffeq._errors import raise_if
from cdiffeq.linalg._action import Action, Params, Task, add_outer, max_norm, rounding, zeros_like
from cdiffeq.linalg._arnoldi import two_norm
from cdiffeq.linalg._operator import Operator
from cdiffeq.linalg._spectrum import entries, norm_estimate

_DEGREES = (*range(2, 30), 30, 35, 40, 45, 50, 55)
_SLOTS = 8  # states kept among the steps, and again as many within a stretch


class Known(NamedTuple):
    """The shift mu, a norm of A - mu, and whether that is a bound rather than an estimate."""

    shift: Inexact[Array, ""]
    norm: Float[Array, ""]
    bound: bool


class Scheme(NamedTuple):
    """`steps` steps of size h, each a polynomial of the degree `degree`."""

    h: Inexact[Array, ""]
    degree: Int[Array, ""]
    steps: Int[Array, ""]
    ratio: Float[Array, ""]  # of one term's norm to the last one's beyond the degree, at most


class Taylor(Action):
    r"""exp(hA) v by Taylor's polynomial with scaling, for any A.

    **Arguments**

    - `norm`: a bound of any norm of A that vectors have, too. By default the smaller of the 1-norm and the
      infinity-norm of A less the mean of its diagonal, where the entries of A are known; otherwise
      the 2-norm is estimated (12 products with A and with A^H), and the terms' decay checked.
    - `tol`: the backward error: what is computed is exp(h(A + E)) v with ``norm(E) <= tol norm(A)``, half of
      eps by default.

    When run, it raises where the norm is too small for the terms to decay as they should. **Cost**: about
    6 norm(hA) products with A, less where the sum ends early; the gradient about six times as many.
    **Memory**: a gradient takes 55 vectors for the powers in a step, and 16 states, for any norm (beyond 64
    steps, norm 600, states are computed more than twice).
    """

    norm: Any = None
    tol: float | None = eqx.field(static=True, default=None)

    def init(self, A: Operator) -> Known:
        real = jnp.finfo(A.dtype).dtype
        zero = jnp.zeros((), A.dtype)
        if self.norm is not None:
            return Known(zero, jnp.asarray(self.norm, real), False)
        known = entries(A)
        if known is None:
            return Known(zero, norm_estimate(A), False)
        shift = jnp.mean(known.diagonal) if A.shape[0] else zero
        off = jnp.abs(known.diagonal - shift)
        norm = jnp.minimum(*(jnp.max(off + x, initial=0) for x in (known.rows, known.columns)))
        return Known(shift, norm, True)

    def compute(self, task: Task) -> tuple[Array, tuple[()]]:
        scheme = self._scheme(task)
        apply, growth = _shifted(task, scheme)
        tol = self._tol(task)

        def step(_, state):
            y, failed = state
            y, decayed = _early_sum(scheme, apply, y, tol)
            return growth * y, failed | ~decayed

        y, failed = jax.lax.fori_loop(0, scheme.steps, step, (task.v, jnp.asarray(False)))
        if task.state.bound:
            return y, ()
        message = "expm_multiply: Taylor(): the terms don't decay as a norm of {} says; give a larger `norm`."
        error = lambda norm: RuntimeError(message.format(norm))
        return raise_if(y, failed, error, task.state.norm), ()

    def tangent(self, task: Task, dparams: Params, dv: Array) -> Any:
        scheme = self._scheme(task)

        def of(params, v):
            apply, growth = _shifted(task._replace(params=params), scheme)
            step = lambda y: growth * _full_sum(scheme, apply, y)
            return _advance(step, v, scheme.steps)

        return jax.jvp(of, (task.params, task.v), (dparams, dv))[1], ()

    def adjoint(self, task: Task, kept: Any, g: Array) -> tuple[Params, Array]:
        scheme = self._scheme(task)
        apply, growth = _shifted(task, scheme)
        back = task.A.adjoint()
        apply_adjoint = lambda X: back.mm(X) - jnp.conj(_like(task.state.shift, X)) * X
        step = lambda y: growth * _full_sum(scheme, apply, y)

        def step_back(y, state):
            g, g_params = state
            powers = _powers(scheme, apply, y)
            g = jnp.conj(growth) * g

            def term(i, state):
                l, g_params = state
                k = scheme.degree - i
                c = jnp.conj(scheme.h / k)
                g_params = add_outer(task, g_params, c * l, powers[k - 1])
                return g + c * apply_adjoint(l), g_params

            return jax.lax.fori_loop(0, scheme.degree, term, (g, g_params))

        start = g, zeros_like(task.params)
        g_v, g_params = backwards(step, step_back, task.v, scheme.steps, start)
        return g_params, g_v

    def _tol(self, task: Task) -> float:
        return rounding(task.v.dtype) if self.tol is None else self.tol

    def _scheme(self, task: Task) -> Scheme:
        """The degree and the number of steps with the fewest products."""
        theta = jnp.asarray(_thetas(self._tol(task)), task.state.norm.dtype)
        degrees = jnp.asarray(_DEGREES)
        norm = task.state.norm * jnp.abs(jax.lax.stop_gradient(task.h))
        steps = jnp.maximum(jnp.ceil(norm / theta), 1)
        best = jnp.argmin(steps * degrees)
        # NaN and infinity make NaN of the result in one step.
        h = jnp.where(jnp.isfinite(norm), task.h / steps[best].astype(norm.dtype), jnp.nan)
        steps = jnp.where(jnp.isfinite(norm), steps[best], 1)
        return Scheme(
            h, degrees[best].astype(jnp.int32), steps.astype(jnp.int32), theta[best] / degrees[best]
        )


@functools.cache
def _thetas(tol: float) -> np.ndarray:
    """For each degree m the norm up to which Taylor's polynomial has the backward error tol.

    exp(-x) T_m(x) = 1 - int_0^x e^-u u^m / m! du; where the moduli of the integral's series add up to
    tol theta, so do those of the logarithm's, to first order in tol: the paper's equation 3.3.
    """
    return np.array([_theta(m, tol) for m in _DEGREES])


def _theta(m: int, tol: float) -> float:
    def excess(x):
        term, total = 1.0, 0.0
        for j in range(1, m + 1):
            term *= x / j
        for i in range(200):
            total += term / (m + 1 + i)  # x^(m + i) / (m! i! (m + 1 + i))
            term *= x / (i + 1)
        return total - tol

    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return low


def _like(c: Array, X: Array) -> Array:
    """c, real where X is."""
    return c if jnp.iscomplexobj(X) else c.real


def _shifted(task: Task, scheme: Scheme) -> tuple[Callable[[Array], Array], Array]:
    """X -> A' X, and the factor exp(mu h / s) of a step."""
    A, shift = task.A, _like(task.state.shift, task.v)
    return lambda X: A.mm(X) - shift * X, jnp.exp(scheme.h * shift)


def _term(scheme: Scheme, apply: Callable[[Array], Array], k: Array, b: Array) -> Array:
    """b_k from b_(k-1)."""
    return (scheme.h / k) * apply(b)


def _early_sum(
    scheme: Scheme, apply: Callable[[Array], Array], y: Array, tol: float
) -> tuple[Array, Bool[Array, ""]]:
    """The sum of a step, which ends where two terms in a row don't matter; and whether it converged.

    This depends on y, and so is for values alone: in another direction, which a derivative asks for, the
    same terms may matter.
    """

    def unfinished(state):
        k, _, total, size, before, _ = state
        return (k <= scheme.degree) & ~(size + before <= tol * max_norm(total))

    def step(state):
        k, b, total, size, _, largest = state
        b = _term(scheme, apply, k, b)
        total = total + b
        return k + 1, b, total, max_norm(b), size, jnp.maximum(largest, two_norm(b))

    infinite = jnp.full((), jnp.inf, jnp.finfo(y.dtype).dtype)
    start = jnp.asarray(1, jnp.int32), y, y, max_norm(y), infinite, two_norm(y)
    _, b, total, _, _, largest = jax.lax.while_loop(unfinished, step, start)
    return total, two_norm(b) * scheme.ratio <= 10 * tol * largest


def _full_sum(scheme: Scheme, apply: Callable[[Array], Array], y: Array) -> Array:
    def step(k, state):
        b, total = state
        b = _term(scheme, apply, k, b)
        return b, total + b

    return jax.lax.fori_loop(1, scheme.degree + 1, step, (y, y))[1]


def _powers(scheme: Scheme, apply: Callable[[Array], Array], y: Array) -> Inexact[Array, "m n k"]:
    """b_0 ... b_(m-1)."""
    powers = jnp.zeros((max(_DEGREES), *y.shape), y.dtype).at[0].set(y)
    step = lambda k, powers: powers.at[k].set(_term(scheme, apply, k, powers[k - 1]))
    return jax.lax.fori_loop(1, scheme.degree, step, powers)


def _advance(step: Callable[[Array], Array], y: Array, steps: Int[Array, ""]) -> Array:
    return jax.lax.fori_loop(0, steps, lambda _, y: step(y), y)


def backwards(
    step: Callable[[Array], Array],
    step_back: Callable[[Array, Any], Any],
    y: Array,
    steps: Int[Array, ""],
    state: Any,
) -> Any:
    """`state` after ``step_back(y_j, state)`` for j = steps - 1, ..., 0, where y_0 = y, y_(j+1) = step(y_j).

    Some y_j are kept at equal distances, and in each stretch between two of these some more.
    """
    slots, stride = _keep(step, y, steps)

    def stretch(i, state):
        first = ((steps - 1) // stride - i) * stride
        count = jnp.minimum(stride, steps - first)
        inner, distance = _keep(step, slots[first // stride], count)

        def one(i, state):
            j = count - 1 - i
            y = _advance(step, inner[j // distance], j % distance)
            return step_back(y, state)

        return jax.lax.fori_loop(0, count, one, state)

    return jax.lax.fori_loop(0, (steps - 1) // stride + 1, stretch, state)


def _keep(
    step: Callable[[Array], Array], y: Array, steps: Int[Array, ""]
) -> tuple[Inexact[Array, "slots ..."], Int[Array, ""]]:
    """y_0, y_d, y_2d, ... and the distance d, the least for which they fit into the slots."""
    distance = (steps - 1) // _SLOTS + 1
    last = (steps - 1) // distance

    def advance(i, slots):
        return slots.at[i].set(_advance(step, slots[i - 1], distance))

    slots = jnp.zeros((_SLOTS, *y.shape), y.dtype).at[0].set(y)
    return jax.lax.fori_loop(1, last + 1, advance, slots), distance
