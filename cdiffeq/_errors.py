"""Errors that name what is wrong and what to do."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# One complex multiplication and one addition are right to (sqrt(5) + 1) eps/2 = 1.6 eps at best
# (R. P. Brent, C. Percival, P. Zimmermann 2007, doi:10.1090/S0025-5718-07-01931-X). An error
# estimate is a difference of two such results, so up to 3.2 eps of it is rounding: below 4 eps
# a solver would be steering by noise.
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
