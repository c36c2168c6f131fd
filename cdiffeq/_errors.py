"""Errors that name what is wrong and what to do."""

from collections.abc import Callable
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, PyTree

# One complex multiplication and one addition may be off by (sqrt(5) + 1) eps/2 = 1.6 eps
# (R. P. Brent, C. Percival, P. Zimmermann 2007, doi:10.1090/S0025-5718-07-01931-X). An error
# estimate is the difference of two results with no less rounding in them, 3.2 eps in all: below
# 4 eps a solver would be steering by noise.
_SMALLEST_IN_EPS = 4


def check_tolerance(name: str, value: float, dtype: DTypeLike) -> None:
    """Refuses a tolerance that arithmetic in `dtype` cannot meet.

    `value` is a relative tolerance, or an absolute one on quantities of order one (normalised
    states); `name` is what the user calls it. `dtype` is the floating-point type of the data *as
    the user gave it*: NumPy's complex128 becomes complex64 inside JAX while `jax_enable_x64` is
    off, and that is then what the message is about. Raises `ValueError` if `value` is below 4 eps
    of the type that JAX really computes in, or NaN.

    >>> check_tolerance("rtol", 1e-8, jnp.float64)
    >>> check_tolerance("rtol", 1e-8, jnp.complex64)
    Traceback (most recent call last):
    ValueError: rtol=1e-08 is below what complex64 can resolve (4.8e-07). Ask for no less, or ...
    """
    given = jnp.dtype(dtype)
    used = jax.dtypes.canonicalize_dtype(given)
    smallest = _SMALLEST_IN_EPS * float(jnp.finfo(used).eps)
    if value >= smallest:
        return
    message = f"{name}={value:.3g} is below what {used} can resolve ({smallest:.2g}). "
    double = "complex128" if jnp.issubdtype(used, jnp.complexfloating) else "float64"
    switch_on = 'run jax.config.update("jax_enable_x64", True) before any array is made'
    if used != given:
        message += f"The data came as {given}, but JAX cuts it down to {used}: {switch_on}"
    elif used == jnp.dtype(double):
        message += "Ask for no less"
    elif jax.config.jax_enable_x64:
        message += f"Ask for no less, or pass {double} data"
    else:
        message += f"Ask for no less, or {switch_on} and pass {double} data"
    raise ValueError(message)


def is_traced(x: Any) -> bool:
    """Whether the values of `x` are unknown now, inside a JAX transformation."""
    return isinstance(x, jax.core.Tracer)


def raise_if(
    out: PyTree[Array], failed: Bool[Array, ""], error: Callable[..., Exception], *values: Array
) -> PyTree[Array]:
    """`out`, unless `failed`: then the exception `error(*values)` is raised, with the run's values.

    Where `failed` is traced the error is raised when the program runs, by a callback to the host
    that costs nothing as long as nothing fails (under `jax.vmap`: in the whole batch);
    JAX wraps it in an error of its own, whose text holds the message. `out` becomes NaN in that
    case, so that no plausible number can survive. The check happens only if the result is used.

    >>> error = lambda t: RuntimeError(f"failed at t = {t}")
    >>> raise_if(jnp.ones(2), jnp.array(True), error, jnp.array(3.0))
    Traceback (most recent call last):
    RuntimeError: failed at t = 3.0
    """
    failed, values = jax.lax.stop_gradient((failed, values))
    if not any(is_traced(v) for v in (failed, *values)):
        if failed:
            raise error(*values)
        return out

    def check(failed, *values):
        # Under vmap the values come with leading axes of the batch.
        bad = np.argwhere(np.asarray(failed))
        if len(bad):
            first = tuple(bad[0])
            pick = lambda v: np.broadcast_to(v, failed.shape)[first]
            raise error(*map(pick, values))
        return np.asarray(failed)

    flag = jax.ShapeDtypeStruct((), bool)
    call = lambda: jax.pure_callback(check, flag, failed, *values, vmap_method="broadcast_all")
    # One failure in a whole batch calls, for all: a predicate that isn't mapped keeps the choice a choice.
    failed = jax.lax.cond(eqxi.unvmap_any(failed), call, lambda: jnp.zeros((), bool))
    return poison(out, failed)


def poison(out: PyTree[Array], failed: Bool[Array, ""]) -> PyTree[Array]:
    """`out` with NaN in every floating or complex leaf where `failed`, and in all its derivatives."""
    factor = jnp.where(failed, jnp.nan, 1)  # a product, as the derivative of a choice would be zero

    def taint(x):
        inexact = jnp.issubdtype(x.dtype, jnp.inexact)
        return x * factor.astype(jnp.finfo(x.dtype).dtype) if inexact else x

    return jax.tree.map(taint, out)
