r"""Divided differences of a smooth function, without cancellation where points are close or equal.

    f[x0] = f(x0),      f[x0, ..., xk] = (f[x1, ..., xk] - f[x0, ..., x(k-1)]) / (xk - x0)
                                       = integral over s in (0, 1) of s^(k-1) f'[y1, ..., yk],

y_j = x0 + s (x_j - x0): the formula of Hermite and Genocchi, one variable at a time (C. de Boor 2005, Surveys
in Approximation Theory 1, 46-69, arXiv:math/0502036). The quotient loses digits where the points are close,
the integral by six Gauss points is exact to rounding there and poor where they are far apart. Where the two
agree within the rounding of the quotient the integral is taken, else the quotient: the scale on which f
changes does not have to be known.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

_NODES, _WEIGHTS = (a / 2 for a in np.polynomial.legendre.leggauss(6))
_NODES = _NODES + 0.5

# How many times its estimate the rounding of a quotient may be: functions err by some eps themselves.
_NOISE = 2


def divided_difference(
    f: Callable[[Array], Array], x: Float[Array, "k ..."]
) -> Inexact[Array, "..."]:
    """f[x[0], ..., x[k]] entry by entry, for points that ascend along the first axis.

    `f` acts on arrays entry by entry and is differentiated k + 1 times by JAX's forward mode. For k = 1 it
    is evaluated at 8 points, at 8^k for any k. The error is some eps, times what rounding of f's argument
    and result does to the difference of points on the scale on which f changes.
    """
    return _with_noise(f, x)[0]


def _with_noise(
    f: Callable[[Array], Array], x: Float[Array, "k ..."]
) -> tuple[Inexact[Array, "..."], Float[Array, "..."]]:
    """The divided difference, and what rounding of f and of its argument may do to it."""
    derivative = lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))
    k = len(x) - 1
    if k == 0:
        value, slope = derivative(x[0])
        return value, jnp.finfo(x.dtype).eps * (jnp.abs(value) + jnp.abs(x[0] * slope))

    gap = x[-1] - x[0]
    neighbours, noises = _with_noise(f, jnp.stack([x[:-1], x[1:]], axis=1))
    distinct = jnp.where(gap > 0, gap, 1)
    quotient, noise = (neighbours[1] - neighbours[0]) / distinct, (noises[1] + noises[0]) / distinct

    expand = lambda a: jnp.asarray(a, x.dtype).reshape(-1, *(1,) * gap.ndim)
    y = x[:1, None] + expand(_NODES)[None] * (x[1:] - x[:1])[:, None]
    slopes, slope_noises = _with_noise(lambda x: derivative(x)[1], y)
    weights = expand(_WEIGHTS * _NODES ** (k - 1))
    integral, integral_noise = (jnp.sum(weights * a, axis=0) for a in (slopes, slope_noises))

    # Of derivatives of f the rounding is an estimate of its least: no quotient of the closest points.
    near = gap <= jnp.finfo(x.dtype).eps ** 0.5 * jnp.maximum(jnp.abs(x[0]), jnp.abs(x[-1]))
    close = near | (jnp.abs(integral - quotient) <= _NOISE * noise)
    return jnp.where(close, integral, quotient), jnp.where(close, integral_noise, noise)
