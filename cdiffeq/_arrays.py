"""Arguments made into arrays, and refused by name where they can't be."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from cdiffeq._errors import is_traced


def as_array(name: str, a: Any) -> Inexact[Array, "..."]:
    """A floating or complex array of `a`, whose values stay known, also inside a jitted function."""
    with jax.ensure_compile_time_eval():
        try:
            a = jnp.asarray(a)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be an array, got {type(a).__name__}: {error}") from error
        return a if jnp.issubdtype(a.dtype, jnp.inexact) else a.astype(jnp.result_type(float))


def as_real(name: str, a: Any) -> Float[Array, "..."]:
    """A real floating array of `a`, as `as_array` makes it."""
    a = as_array(name, a)
    if jnp.iscomplexobj(a):
        raise TypeError(f"{name} must be real, got {a.dtype}.")
    return a


def as_params(params: PyTree[Any]) -> PyTree[Any]:
    """Floats as arrays, so that they are leaves which can be differentiated, mapped and traced.

    Integers stay as they are: a function may count or index with them.
    """
    number = lambda p: isinstance(p, float | complex | np.ndarray | np.generic)
    return jax.tree.map(lambda p: jnp.asarray(p) if number(p) else p, params)


def require_finite(name: str, a: Array | np.ndarray) -> None:
    """Refuses NaN and infinity, where the values of `a` are known."""
    if not is_traced(a) and not np.all(np.isfinite(a)):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(a))[0])
        raise ValueError(f"{name} must be finite, but entry {list(where)} is {a[where]}.")


def as_times(ts: Any, dtype: Any) -> Float[Array, " time"]:
    """Times, ascending or descending where they are known, of the given real dtype."""
    ts = as_real("ts", ts)
    if ts.ndim != 1 or len(ts) == 0:
        raise ValueError(f"ts must be a vector of times, got shape {ts.shape}.")
    require_finite("ts", ts)
    if not is_traced(ts):
        steps = np.diff(ts)
        if not (np.all(steps >= 0) or np.all(steps <= 0)):
            raise ValueError("ts must ascend or descend throughout.")
    with jax.ensure_compile_time_eval():
        return ts.astype(dtype)
