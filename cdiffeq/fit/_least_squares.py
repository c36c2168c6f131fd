r"""Nonlinear least squares with complex residuals and parameters, in real and imaginary parts.

    chi2(p) = sum |r(p)|^2 / sigma^2 = |f(x)|^2,     J = df/dx,      C = (J^T J)^-1 chi2/dof,

with x all real numbers in p, and f all real numbers in r / sigma. J has one column for each entry of x: a
jvp of the residuals, which goes through a solver as its tangent equations do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its submodules are loaded when they are used
from jaxtyping import Array, Float, PyTree

from cdiffeq._arrays import as_params, as_state
from cdiffeq._flat import Layout
from cdiffeq.fit._real import flat_bounds, real_names, require_known
from cdiffeq.fit._result import Fit

_NAME = "fit.least_squares"


def least_squares(
    residuals: Callable[[Any, Any], Any],
    params: PyTree[Any],
    data: PyTree[Any] = None,
    *,
    sigma: PyTree[Any] = None,
    bounds: tuple[Any, Any] | None = None,
    rtol: float | None = None,
    max_steps: int = 200,
) -> Fit:
    r"""The parameters with the smallest sum of squared residuals, and their error bars.

    >>> t = jnp.linspace(0.0, 3.0, 40)
    >>> model = lambda p, t: p["amplitude"] * jnp.exp((1j * p["frequency"] - p["decay"]) * t)
    >>> noise = np.random.default_rng(0).normal(scale=0.01, size=(2, 40))
    >>> truth = {"amplitude": 1 + 0.5j, "frequency": 4.0, "decay": 0.3}
    >>> measured = model(truth, t) + noise[0] + 1j * noise[1]
    >>> start = {"amplitude": 1 + 0j, "frequency": 3.7, "decay": 0.1}
    >>> fit = least_squares(lambda p, d: model(p, d[0]) - d[1], start, (t, measured))
    >>> pulls = jax.tree.map(lambda a, b, s: abs(a - b) < 4 * abs(s), fit.params, truth, fit.stderr)
    >>> print(pulls, fit.dof)
    {'amplitude': Array(True, dtype=bool), 'decay': Array(True, dtype=bool), ...} 76

    **Arguments**

    - `residuals`: ``(params, data) -> r``, any pytree of real and complex arrays, not yet squared. Each real
      and imaginary part counts as one residual. Needs forward-mode derivatives.
    - `params`: where the fit starts: a pytree of real and complex floating arrays of one precision.
    - `data`: any pytree, passed on. A fit of one function to other data of those shapes compiles nothing.
    - `sigma`: the standard deviation of each real and each imaginary part: real, a number, or a pytree like r
      whose leaves broadcast against r's. Infinite where a residual shall not count. Without it all weigh the
      same, and the noise is estimated from what is left.
    - `bounds`: a pair (lower, upper) of pytrees like params, or None; leaves may be None, for none. A complex
      bound holds for real and imaginary parts.
    - `rtol`: the fit ends when a step would lower chi2 by less than this part of it: the parameters are then
      off by less than ``sqrt(rtol dof)`` error bars, mostly by far less. eps^(2/3) by default: 3.7e-11 in
      double, 2.4e-5 in single precision.
    - `max_steps`: the most evaluations of the residuals.

    **Returns** a `Fit`: `.params`, `.covariance`, `.stderr`, `.chi2`, `.confidence_intervals()`, and a
    summary as its `str`.

    **Raises** `ValueError`: fewer residuals than parameters; residuals or Jacobian not finite at the start, a
    start that is out of bounds; `TypeError`: residuals that aren't floating, traced arguments (it runs on the
    host: `cd.implicit.minimise` works inside jit and has derivatives); `RuntimeError`: max_steps. Points
    where the residuals are NaN are avoided, so a solver inside may be called with ``throw=False``.

    **Method**: Levenberg and Marquardt's, as a trust region that knows bounds: `scipy.optimize`'s "trf", on
    real and imaginary parts, with parameters scaled by the Jacobian (M. A. Branch, T. F. Coleman, Y. Li
    1999, doi:10.1137/S1064827595289108). **Cost** of a step: an evaluation and N jvps, in one batch.
    **Memory**: the Jacobian, and N tangents of what the residuals compute.
    """
    require_known(_NAME, params, data, sigma, bounds)
    if not callable(residuals):
        raise TypeError(
            f"{_NAME}: residuals must be a function (params, data), got {type(residuals).__name__}."
        )
    params, data = as_state("params", params), as_params(data)
    layout = Layout.of(params)
    eps = float(jnp.finfo(layout.dtype).eps)
    rtol = eps ** (2 / 3) if rtol is None else rtol
    if not eps <= rtol < 1:
        raise ValueError(f"{_NAME}: rtol must be between {eps:.1e} and 1, got {rtol!r}.")
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"{_NAME}: max_steps must be a positive integer, got {max_steps!r}.")
    names = real_names(params, layout)
    lower, upper = flat_bounds(_NAME, bounds, params, layout, names)
    form = eqx.filter_eval_shape(_arrays, residuals, params, data)
    weights = _weights(form, sigma)
    count = int(np.sum(weights > 0))

    def at(fn, x):
        r = fn(residuals, layout, jnp.asarray(x, layout.dtype), data)
        r = np.asarray(r, np.float64)
        # Where nothing is weighed nothing comes through, NaN included.
        return np.where(weights > 0, r.T, 0).T * weights.reshape(-1, *[1] * (r.ndim - 1))

    x0 = np.asarray(layout.pack(params), np.float64)
    J0 = at(_jacobian, x0)
    if not (np.all(np.isfinite(at(_values, x0))) and np.all(np.isfinite(J0))):
        raise ValueError(f"{_NAME}: the residuals, or their derivatives, are not finite at params.")
    found = _search(
        lambda x: at(_values, x), lambda x: at(_jacobian, x), x0, J0,
        (lower, upper), rtol, eps, max_steps,
    )  # fmt: skip
    x, f, J, evaluations = found

    free = (x > lower) & (x < upper)
    dof = count - int(np.sum(free))
    if dof < 0:
        raise ValueError(
            f"{_NAME}: {count} real residuals can't determine {np.sum(free)} real parameters."
        )
    chi2 = float(f @ f)
    scale = 1.0 if sigma is not None else (chi2 / dof if dof else np.nan)
    covariance = scale * _covariance(J, free)
    solution = jnp.asarray(x, layout.dtype)
    left = Layout.of(form).unpack(_values(residuals, layout, solution, data))
    return Fit(
        params=layout.unpack(solution),
        covariance=covariance,
        labels=tuple(names),
        stderr=layout.unpack(jnp.asarray(np.sqrt(np.diag(covariance)), layout.dtype)),
        residuals=left,
        chi2=chi2,
        dof=dof,
        at_bound=tuple(name for name, f in zip(names, free, strict=True) if not f),
        evaluations=evaluations,
        scaled=sigma is None,
    )


# By trial on a resonator's reflection, two damped exponentials, Rosenbrock's valley and badly scaled
# parameters: "trf" with x_scale="jac" took 7 to 13 evaluations, MINPACK's "lm" 8 to 21, optimistix's
# LevenbergMarquardt 11 to 35 and its Dogleg 8 to 24, to the same minima; and of these it alone knows bounds.
def _search(
    values: Callable[[np.ndarray], np.ndarray],
    jacobian: Callable[[np.ndarray], np.ndarray],
    x0: np.ndarray,
    J0: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    rtol: float,
    eps: float,
    max_steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The minimum: x, f and J there, and the number of evaluations."""
    # SciPy compares the length of a step with that of x: in units of the data one large parameter, a
    # frequency in Hz, doesn't hide that others still move. Its test of the gradient is absolute, and is off.
    unit = np.linalg.norm(J0, axis=0)
    unit = 1 / np.where(unit > 0, unit, 1)
    try:
        found = scipy.optimize.least_squares(
            lambda u: values(u * unit),
            x0 / unit,
            lambda u: jacobian(u * unit) * unit,
            bounds=tuple(b / unit for b in bounds),
            x_scale="jac",
            ftol=rtol,
            xtol=eps,
            gtol=None,
            max_nfev=max_steps,
        )
    except np.linalg.LinAlgError as error:
        raise RuntimeError(f"{_NAME}: the Jacobian is not finite on the way.") from error
    if found.status <= 0:
        raise RuntimeError(
            f"{_NAME}: {max_steps} evaluations were made before rtol was met (chi2 is "
            f"{2 * found.cost:.6g} now). Raise max_steps, or start closer."
        )
    x = np.clip(found.x * unit, *bounds)
    active = found.active_mask
    x = np.where(active < 0, bounds[0], np.where(active > 0, bounds[1], x))
    return x, found.fun, found.jac / unit, int(found.nfev)


@eqx.filter_jit
def _values(residuals: Any, layout: Layout, x: Array, data: Any) -> Array:
    return _flat_residuals(residuals, layout, x, data)


@eqx.filter_jit
def _jacobian(residuals: Any, layout: Layout, x: Array, data: Any) -> Array:
    return jax.jacfwd(lambda x: _flat_residuals(residuals, layout, x, data))(x)


def _flat_residuals(residuals: Any, layout: Layout, x: Array, data: Any) -> Array:
    r = _arrays(residuals, layout.unpack(x), data)
    return Layout.of(r).pack(r)


def _arrays(residuals: Any, params: Any, data: Any) -> Any:
    return jax.tree.map(jnp.asarray, residuals(params, data))


def _weights(r: PyTree[Any], sigma: Any) -> Float[np.ndarray, " n"]:
    """1 / sigma for each real residual."""
    leaves, tree = jax.tree.flatten(r)
    for path, leaf in jax.tree_util.tree_leaves_with_path(r):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            where = "residuals" + jax.tree_util.keystr(path)
            raise TypeError(f"{_NAME}: {where} must be floating or complex, got {leaf.dtype}.")
    layout = Layout.of(r)
    if sigma is None:
        return np.ones(layout.size)
    alone = jax.tree.structure(sigma) == jax.tree.structure(0)
    given = [sigma] * len(leaves) if alone else jax.tree.leaves(sigma)
    if not alone and jax.tree.structure(sigma) != tree:
        raise TypeError(
            f"{_NAME}: sigma must be one array or have the structure of the residuals, {tree}; got "
            f"{jax.tree.structure(sigma)}."
        )
    filled = []
    for s, leaf in zip(given, leaves, strict=True):
        if np.iscomplexobj(s):
            raise TypeError(f"{_NAME}: sigma must be real: it holds for both parts of a residual.")
        if not np.all(np.asarray(s) > 0):
            raise ValueError(f"{_NAME}: sigma must be positive, got {s}.")
        try:
            one = np.broadcast_to(1 / np.asarray(s, np.float64), leaf.shape)
        except ValueError as error:
            raise ValueError(
                f"{_NAME}: sigma of shape {np.shape(s)} doesn't broadcast against residuals of shape "
                f"{leaf.shape}."
            ) from error
        both = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        filled.append(one * (1 + 1j) if both else one)
    weights = jax.tree.map(jnp.asarray, tree.unflatten(filled))
    return np.asarray(Layout.of(weights).pack(weights), np.float64)


def _covariance(J: Float[np.ndarray, "n N"], free: np.ndarray) -> Float[np.ndarray, "N N"]:
    """(J^T J)^-1 of the free parameters: infinite for what J leaves open, NaN for those at a bound."""
    C = np.full((J.shape[1], J.shape[1]), np.nan)
    size = np.linalg.norm(J[:, free], axis=0)
    size = np.where(size > 0, size, 1)
    _, s, Vh = np.linalg.svd(J[:, free] / size, full_matrices=False)
    known = s > np.finfo(float).eps * max(J.shape) * s.max(initial=0)
    rows = Vh[known] / s[known, None]
    inner = rows.T @ rows / np.outer(size, size)
    # A parameter with a part in a direction that changes no residual.
    lost = np.sqrt(np.maximum(0, 1 - np.sum(Vh[known] ** 2, axis=0))) > 1e-6
    inner[lost, :] = inner[:, lost] = np.nan
    inner[lost, lost] = np.inf
    C[np.ix_(free, free)] = inner
    return C
