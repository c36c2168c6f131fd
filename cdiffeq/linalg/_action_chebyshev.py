r"""The action of an exponential by a Chebyshev sum, for Hermitian and anti-Hermitian matrices.

With A = c + rho A', where the spectrum of A' lies in [-1, 1] (kappa = 1) or in [-i, i] (kappa = -1),

    exp(hA) v = sum_k c_k S_k,     S_0 = v,  S_1 = A' v,  S_(k+1) = 2 A' S_k - kappa S_(k-1),

S_k = T_k(A') v, or i^k T_k(A'/i) v: real where A and v are (Tal-Ezer and Kosloff 1984,
doi:10.1063/1.448136). The adjoint runs the recurrence of its multipliers b_k, and backwards that of the S_k,
which is as stable that way:

    b_k = conj(c_k) g + kappa (2 A' b_(k+1) - b_(k+2)),      g_A' = b_1 S_0^H + 2 sum_k b_(k+1) S_k^H.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.fft
from jaxtyping import Array, Float, Inexact, Int

from cdiffeq._errors import raise_if
from cdiffeq.linalg._action import Action, Params, Task, add_outer, rounding, zeros_like
from cdiffeq.linalg._arnoldi import two_norm
from cdiffeq.linalg._operator import Operator
from cdiffeq.linalg._spectrum import adjoint_sign, entries, real_bounds

_SWAMPED = (
    "expm_multiply: Chebyshev(): the result is lost in the rounding of the sum, whose terms are as large as "
    "exp may be between the bounds {} and {}; give closer bounds, shorter times or another method."
)


class Interval(NamedTuple):
    """Where the spectrum is: in ``center + radius [-1, 1]``, times i if `sign`, kappa, is -1."""

    center: Float[Array, ""]
    radius: Float[Array, ""]
    sign: Float[Array, ""]


class Chebyshev(Action):
    r"""exp(hA) v by a Chebyshev sum, for A Hermitian or anti-Hermitian.

    Of all polynomials one of nearly the lowest degree: about ``|h| rho`` and some tens, where the spectrum is
    an interval of length 2 rho.

    **Arguments**

    - `bounds`: the lowest and the highest eigenvalue of A, or of A / i where A is anti-Hermitian, or bounds
      of them. By default Gershgorin's, where the entries of A are known, and otherwise Lanczos' (30 products
      with A). The closer, the fewer terms.
    - `tol`: how far the sum may be from exp, relative to the largest modulus of exp(hA) on the interval; half
      of eps by default. Then ``norm(y - exp(hA) v) <= tol max|exp| norm(v)``, and the degree is
      the least for which Bernstein's bound says so (Trefethen 2019, Approximation Theory and Approximation
      Practice, theorem 8.2).
    - `max_degree`: the largest degree; more is an error.

    When run, it raises where A is neither Hermitian nor anti-Hermitian, the spectrum isn't within the bounds,
    the degree is beyond `max_degree`, or y is so small beside max|exp| norm(v) that less than half of its
    digits would be right: a growing exponential wants close bounds. **Cost**: a product with A for each
    degree; the gradient two more, and a pull-back. **Memory**: a gradient takes ten vectors, at any degree.
    """

    bounds: Any = None
    tol: float | None = eqx.field(static=True, default=None)
    max_degree: int = eqx.field(static=True, default=2047)

    def init(self, A: Operator) -> Interval:
        sign = adjoint_sign(A)
        message = "expm_multiply: Chebyshev() wants a Hermitian or an anti-Hermitian A, and it is neither."
        sign = raise_if(sign, jnp.isnan(sign), lambda: ValueError(message))
        anti = sign < 0
        if self.bounds is None:
            low, high = real_bounds(A, anti, entries(A))
        else:
            low, high = (jnp.asarray(b, sign.dtype) for b in self.bounds)
        # Of a real anti-symmetric matrix the spectrum is symmetric, and a center would be imaginary.
        real = not jnp.issubdtype(A.dtype, jnp.complexfloating)
        reach = jnp.maximum(jnp.abs(low), jnp.abs(high))
        low, high = (jnp.where(anti & real, b, x) for b, x in ((-reach, low), (reach, high)))
        radius = jnp.maximum((high - low) / 2, jnp.finfo(sign.dtype).tiny)
        return jax.lax.stop_gradient(Interval((low + high) / 2, radius, sign))

    def compute(self, task: Task) -> tuple[Array, tuple[Array, Array]]:
        degree, c = self._sum(task)
        y, kept = chebyshev_sum(task, degree, c)
        center, radius, sign = task.state
        low, high = center - radius, center + radius
        size = two_norm(task.v)
        grown = two_norm(kept[1]) > 2 * size
        message = "expm_multiply: Chebyshev(): the spectrum of A isn't within the bounds {} to {}."
        out = raise_if((y, kept), grown, lambda *at: ValueError(message.format(*at)), low, high)
        # What is small beside the largest that exp could be on the interval is rounding of the terms.
        turn, slope = _complex(task.state)
        largest = jnp.exp(jnp.real(task.h * turn) + jnp.abs(jnp.real(task.h * slope)))
        swamped = two_norm(y) < jnp.finfo(sign.dtype).eps ** 0.5 * largest * size
        return raise_if(out, swamped, lambda *at: RuntimeError(_SWAMPED.format(*at)), low, high)

    def tangent(self, task: Task, dparams: Params, dv: Array) -> Any:
        degree, c = self._sum(task)
        of = lambda params, v: chebyshev_sum(task._replace(params=params, v=v), degree, c)
        return jax.jvp(of, (task.params, task.v), (dparams, dv))[1]

    def adjoint(self, task: Task, kept: Any, g: Array) -> tuple[Params, Array]:
        degree, c = self._sum(task)
        return chebyshev_adjoint(task, degree, c, kept, g)

    def _sum(self, task: Task) -> tuple[Int[Array, ""], Inexact[Array, " terms"]]:
        """The degree of the sum and its coefficients."""
        real = task.state.sign.dtype
        tol = rounding(real) if self.tol is None else self.tol
        degree = bernstein_degree(jax.lax.stop_gradient(task.h) * _complex(task.state)[1], tol)
        message = "expm_multiply: Chebyshev() needs the degree {:.0f}, above max_degree = {}."
        error = lambda degree: RuntimeError(message.format(degree, self.max_degree))
        # NaN is no degree either, and comes out as NaN.
        degree = raise_if(degree, degree > self.max_degree, error, degree)
        center, radius = _complex(task.state)
        f = lambda x: jnp.exp(task.h * (center + radius * x))
        terms, few = self.max_degree + 1, min(128, self.max_degree + 1)
        of = lambda terms: chebyshev_coefficients(f, terms, task.state.sign, task.v.dtype)
        short = lambda: jnp.pad(of(few), (0, terms - few))
        c = jax.lax.cond(degree < few, short, lambda: of(terms))
        return jnp.nan_to_num(degree, nan=1).astype(jnp.int32), c


def bernstein_degree(z: Inexact[Array, ""], tol: float) -> Float[Array, ""]:
    """The degree at which the Chebyshev series of exp(z x) is cut, to be off by tol times its maximum.

    On the ellipse with the half axes cosh s and sinh s the function is at most exp(E(s)), so that beyond the
    degree m there are at most 2 exp(E(s) - m s) / (e^s - 1), for every s.
    """
    a, b = jnp.abs(z.real), jnp.abs(z.imag)
    s = jnp.geomspace(1e-3, 6.0, 256, dtype=a.dtype)
    E = jnp.hypot(a * jnp.cosh(s), b * jnp.sinh(s)) - a
    return jnp.ceil(jnp.maximum(jnp.min((E + jnp.log(2 / (jnp.expm1(s) * tol))) / s), 1))


def chebyshev_coefficients(f: Any, terms: int, sign: Float[Array, ""], dtype: Any) -> Array:
    """The coefficients c_k of ``sum c_k S_k`` for a function f of x in [-1, 1], from as many values of it."""
    real = jnp.finfo(dtype).dtype
    k = jnp.arange(terms)
    values = f(jnp.cos(jnp.pi * (k + 0.5) / terms).astype(real))
    dct = lambda x: jax.scipy.fft.dct(x) / terms
    c = (
        jax.lax.complex(dct(values.real), dct(values.imag))
        if jnp.iscomplexobj(values)
        else dct(values)
    )
    c = c.at[0].divide(2)
    # S_k is T_k, or i^k T_k.
    turn = jnp.asarray([1, -1j, -1, 1j], jnp.result_type(real, jnp.complex64))[k % 4]
    c = c * jnp.where(sign < 0, turn, 1)
    return c.astype(dtype) if jnp.issubdtype(dtype, jnp.complexfloating) else c.real.astype(dtype)


def chebyshev_sum(
    task: Task, degree: Int[Array, ""], c: Inexact[Array, " terms"]
) -> tuple[Inexact[Array, "n k"], tuple[Array, Array]]:
    """sum_k c_k S_k up to the degree, at least 1, and the last two S_k."""
    apply, sign = _scaled(task), task.state.sign
    first = apply(task.v)

    def step(k, state):
        before, last, y = state
        new = 2 * apply(last) - sign * before
        return last, new, y + c[k] * new

    start = task.v, first, c[0] * task.v + c[1] * first
    before, last, y = jax.lax.fori_loop(2, degree + 1, step, start)
    return y, (before, last)


def chebyshev_adjoint(
    task: Task, degree: Int[Array, ""], c: Array, kept: tuple[Array, Array], g: Array
) -> tuple[Params, Array]:
    """The gradients of the params and of v, for the gradient g of `chebyshev_sum`."""
    apply, sign = _scaled(task), task.state.sign

    def step(i, state):
        # S is S_k and S_(k+1), b is b_(k+1) and b_(k+2).
        k = degree - 1 - i
        (S, S_after), (b, b_after), g_params = state
        g_params = add_outer(task, g_params, b, S)
        S_before = sign * (2 * apply(S) - S_after)
        b_before = jnp.conj(c[k]) * g + sign * (2 * apply(b) - b_after)
        return (S_before, S), (b_before, b), g_params

    last = jnp.conj(c[degree]) * g, jnp.zeros_like(g)
    start = kept, last, zeros_like(task.params)
    _, (b, b_after), g_params = jax.lax.fori_loop(0, degree - 1, step, start)
    g_params = add_outer(task, g_params, b / 2, task.v)
    scale = 2 / task.state.radius
    g_params = jax.tree.map(lambda g: (scale * g).astype(g.dtype), g_params)
    return g_params, jnp.conj(c[0]) * g + sign * (apply(b) - b_after)


def _scaled(task: Task) -> Any:
    """X -> A' X."""
    A, (center, radius, sign) = task.A, task.state
    inverse = 1 / radius  # in each entry a complex division would cost as much as the rest

    def apply(X):
        c = _complex(task.state)[0] if jnp.iscomplexobj(X) else center * (sign > 0)
        return inverse * (A.mm(X) - c * X)

    return apply


def _complex(interval: Interval) -> tuple[Array, Array]:
    """Center and radius of the interval in the complex plane."""
    center, radius, sign = interval
    turn = jnp.where(sign < 0, 1j, 1).astype(jnp.result_type(sign.dtype, jnp.complex64))
    return turn * center, turn * radius
