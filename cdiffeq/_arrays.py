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
            a = jnp.asarray(a.full() if is_qobj(a) else a)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be an array, got {type(a).__name__}: {error}") from error
        return a if jnp.issubdtype(a.dtype, jnp.inexact) else a.astype(jnp.result_type(float))


def is_qobj(a: Any) -> bool:
    """Whether it is a `Qobj` of QuTiP, which needn't be installed."""
    return hasattr(a, "full") and hasattr(a, "dims")


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


def as_state(name: str, y: Any) -> PyTree[Inexact[Array, "..."]]:
    """Unknowns of a solve: a pytree of real and complex floating arrays, finite, all of one precision."""
    leaves = jax.tree_util.tree_leaves_with_path(y)
    if not leaves:
        raise ValueError(f"{name} holds no arrays.")
    for path, leaf in leaves:
        where = name + jax.tree_util.keystr(path)
        if not isinstance(leaf, float | complex | np.ndarray | np.generic | jax.Array):
            raise TypeError(
                f"{where} must be a floating or complex array, got {type(leaf).__name__}."
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{where} must be floating or complex, got {jnp.result_type(leaf)}: make it so, for "
                "example with .astype(float)."
            )
    # Weak types, of Python's numbers, would change between the state and what f returns.
    y = jax.tree.map(lambda y: jax.lax.convert_element_type(jnp.asarray(y), jnp.result_type(y)), y)
    widths = {np.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(y)}
    if len(widths) > 1 or np.finfo(widths.copy().pop()).bits < 32:
        got = ", ".join(str(leaf.dtype) for leaf in jax.tree.leaves(y))
        raise TypeError(
            f"the leaves of {name} must all be of single or all of double precision; got {got}."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(y):
        if not is_traced(leaf) and not np.all(np.isfinite(leaf)):
            raise ValueError(f"{name}{jax.tree_util.keystr(path)} must be finite, got {leaf}.")
    return y


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
