"""The arguments that a transformation differentiates, picked out of a call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def pick_arguments(
    f: Callable[..., Any], argnums: int | tuple[int, ...], args: tuple, kwargs: dict[str, Any]
) -> tuple[Callable[[PyTree], Any], PyTree]:
    """`f` as a function of the arguments `argnums` alone, and their values.

    The values are one argument's pytree for an integer, a tuple of pytrees for a tuple. Raises
    `ValueError` for a position that the call doesn't have, `TypeError` for a leaf that is neither
    real nor complex floating point: there is no derivative with respect to an integer.
    """
    positions = [argnums] if isinstance(argnums, int) else list(argnums)
    for position in positions:
        if not -len(args) <= position < len(args):
            raise ValueError(f"argnums has {position}, but there are {len(args)} arguments")
    positions = [position % len(args) for position in positions]
    if len(set(positions)) != len(positions):
        raise ValueError(f"argnums={argnums} names an argument twice")
    for position in positions:
        _check_inexact(position, args[position])

    def of_picked(picked: PyTree) -> Any:
        full = list(args)
        for position, value in zip(
            positions, [picked] if isinstance(argnums, int) else picked, strict=True
        ):
            full[position] = value
        return f(*full, **kwargs)

    picked = tuple(args[position] for position in positions)
    return of_picked, picked[0] if isinstance(argnums, int) else picked


def _check_inexact(position: int, argument: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(argument):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            where = f"argument {position}{jax.tree_util.keystr(path)}"
            raise TypeError(
                f"{where} is {dtype}: only real and complex floating-point arguments have a "
                "derivative. Convert it to a float, or leave it out of argnums"
            )
