"""What `root`, `fixed_point` and `minimise` are asked for, checked."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from cdiffeq._errors import check_tolerance, is_traced
from cdiffeq._flat import Layout, is_complex
from cdiffeq.implicit._jacobian import default_linear_solver
from cdiffeq.implicit._method import Options
from cdiffeq.linalg._solver import Solver


def make_options(
    name: str, layout: Layout, rtol: Any, atol: Any, max_steps: Any, linear_solver: Any
) -> Options:
    """The options of a solve for unknowns of this layout; tolerances are eps^(2/3) where none are given."""
    default = float(jnp.finfo(layout.dtype).eps) ** (2 / 3)
    rtol, atol = (default if tol is None else tol for tol in (rtol, atol))
    for which, value in (("rtol", rtol), ("atol", atol)):
        if is_traced(value) or not isinstance(value, float | int) or not value >= 0:
            raise ValueError(
                f"{name}: {which} must be a number that isn't negative, got {value!r}."
            )
    # The message speaks of the dtype that the user gave.
    dtype = next((d for d in layout.dtypes if is_complex(d)), layout.dtype)
    check_tolerance("rtol" if rtol else "atol", rtol or atol, dtype)
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"{name}: max_steps must be a positive integer, got {max_steps!r}.")
    if linear_solver is not None and not isinstance(linear_solver, Solver):
        raise TypeError(
            f"{name}: linear_solver must be one such as cd.linalg.GMRES(), got {linear_solver!r}."
        )
    accuracy = max(rtol, 100 * float(jnp.finfo(layout.dtype).eps))
    linear_solver = linear_solver or default_linear_solver(layout.size, accuracy)
    return Options(float(rtol), float(atol), max_steps, linear_solver)


def require_function(name: str, which: str, fn: Any) -> None:
    """Refuses what can't be called."""
    if not callable(fn):
        raise TypeError(f"{name}: {which} must be a function (z, args), got {type(fn).__name__}.")


def require_precision(name: str, dtype: Any, layout: Layout) -> None:
    """Refuses a result in another precision than the unknowns'."""
    if jnp.finfo(dtype).dtype != layout.dtype:
        raise TypeError(
            f"{name} returns {dtype}, and z0 is of {layout.dtype}'s precision: give z0 and all that it uses "
            "one precision."
        )
