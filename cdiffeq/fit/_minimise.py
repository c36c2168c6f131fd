"""Minima of any real loss of complex parameters, by L-BFGS on real and imaginary parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its submodules are loaded when they are used
from jaxtyping import Array, PyTree

from cdiffeq._arrays import as_params, as_state
from cdiffeq._flat import Layout
from cdiffeq.fit._real import flat_bounds, real_names, require_known

_NAME = "fit.minimise"


class Minimum(NamedTuple):
    """What `minimise` found: the parameters, the loss there, the largest entry of its real gradient, and how
    often the loss and its gradient were evaluated."""

    params: PyTree[Any]
    value: float
    gradient: float
    evaluations: int


def minimise(
    loss: Callable[[Any, Any], Any],
    params: PyTree[Any],
    data: PyTree[Any] = None,
    *,
    bounds: tuple[Any, Any] | None = None,
    rtol: float | None = None,
    max_steps: int = 2000,
) -> Minimum:
    r"""A local minimum of a real loss of complex, real or mixed parameters.

    >>> loss = lambda p, target: jnp.sum(jnp.abs(p["a"] * p["b"] - target) ** 2) + (p["b"] - 2) ** 2
    >>> found = minimise(loss, {"a": jnp.ones(2, complex), "b": 1.0}, jnp.array([2.0, 4j]))
    >>> print(jnp.abs(found.params["a"] - jnp.array([1, 2j])).max() < 1e-6, round(found.value, 9))
    True 0.0

    **Arguments**

    - `loss`: ``(params, data) -> L``, a real number, with a gradient.
    - `params`: where the search starts: a pytree of real and complex floating arrays of one precision.
    - `data`: any pytree, passed on.
    - `bounds`: as in `least_squares`.
    - `rtol`: the search ends when the largest entry of the gradient has fallen to this part of what it was
      at the start, or when the loss doesn't fall any more within rounding. sqrt(eps) by default.
    - `max_steps`: the most steps.

    **Returns** a `Minimum`: `.params`, `.value`, `.gradient`, `.evaluations`.

    **Raises** `ValueError`: a loss or gradient that isn't finite at the start, a start out of bounds;
    `TypeError`: a loss that isn't a real number, traced arguments (it runs on the host:
    `cd.implicit.minimise` works inside jit and has derivatives); `RuntimeError`, with the loss and the
    gradient: max_steps, or a line search that fails.

    **Method**: L-BFGS with bounds, `scipy.optimize`'s "L-BFGS-B" (R. H. Byrd, P. Lu, J. Nocedal, C. Zhu 1995,
    doi:10.1137/0916069). **Cost** of a step: mostly one value and gradient. **Memory**: some 20 vectors.
    """
    require_known(_NAME, params, data, bounds)
    if not callable(loss):
        raise TypeError(
            f"{_NAME}: loss must be a function (params, data), got {type(loss).__name__}."
        )
    params, data = as_state("params", params), as_params(data)
    layout = Layout.of(params)
    eps = float(jnp.finfo(layout.dtype).eps)
    rtol = eps**0.5 if rtol is None else rtol
    if not eps <= rtol < 1:
        raise ValueError(f"{_NAME}: rtol must be between {eps:.1e} and 1, got {rtol!r}.")
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"{_NAME}: max_steps must be a positive integer, got {max_steps!r}.")
    lower, upper = flat_bounds(_NAME, bounds, params, layout, real_names(params, layout))
    form = eqx.filter_eval_shape(loss, params, data)
    if getattr(form, "shape", None) != () or not jnp.issubdtype(form.dtype, jnp.floating):
        raise TypeError(f"{_NAME}: loss must return a real number, got {form}.")

    def at(x):
        value, gradient = _value_and_gradient(loss, layout, jnp.asarray(x, layout.dtype), data)
        return float(value), np.asarray(gradient, np.float64)

    x0 = np.asarray(layout.pack(params), np.float64)
    value, gradient = at(x0)
    if not (np.isfinite(value) and np.all(np.isfinite(gradient))):
        raise ValueError(f"{_NAME}: the loss, or its gradient, is not finite at params.")
    goal = rtol * np.max(np.abs(gradient), initial=0)
    found = scipy.optimize.minimize(
        at,
        x0,
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(lower, upper),
        options=dict(maxiter=max_steps, maxfun=20 * max_steps, ftol=0.0, gtol=goal),
    )
    value, gradient = at(found.x)
    free = _free_gradient(found.x, gradient, lower, upper)
    slope = float(np.max(np.abs(free), initial=0))
    # SciPy's own test of the loss is absolute below 1, and is off. So where the loss is flat within rounding,
    # and a search shall end, its line search fails.
    ended = found.success or (found.status == 2 and _is_flat(at, found.x, free, value, eps))
    if not ended or not np.isfinite(value):
        reason = f"{max_steps} steps were made" if found.status == 1 else "the line search failed"
        raise RuntimeError(
            f"{_NAME}: {reason}; the loss is {value:.6g}, the largest entry of its gradient "
            f"{slope:.2e}, and {goal:.2e} was asked for."
        )
    solution = layout.unpack(jnp.asarray(found.x, layout.dtype))
    return Minimum(solution, value, slope, int(found.nfev) + 2)


def _free_gradient(x: Any, gradient: Any, lower: Any, upper: Any) -> np.ndarray:
    """The gradient without what pushes against a bound."""
    pushed = ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0))
    return np.where(pushed, 0, gradient)


def _is_flat(at: Any, x: np.ndarray, g: np.ndarray, value: float, eps: float) -> bool:
    """Whether a step along the gradient g, as long as the curvature there lets it be, would lower the loss
    by no more than rounding."""
    size = np.linalg.norm(g)
    if size == 0:
        return True
    h = eps**0.5 * (1 + np.linalg.norm(x)) / size
    curvature = g @ (at(x + h * g)[1] - at(x)[1]) / (h * size**2)
    return bool(curvature > 0 and size**2 / (2 * curvature) <= 1000 * eps * abs(value))


@eqx.filter_jit
def _value_and_gradient(loss: Any, layout: Layout, x: Array, data: Any) -> tuple[Array, Array]:
    return jax.value_and_grad(lambda x: loss(layout.unpack(x), data))(x)
