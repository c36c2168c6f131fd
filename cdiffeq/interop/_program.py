r"""What another framework's automatic differentiation asks of a JAX function f, as JAX functions again.

With ``f(x + dx) = f(x) + J dx`` to first order, J linear over the reals, and ``<x, y> = Re sum(conj(x) y)``:

    adjoint    (x, g)  -> J(x)* g        the backward map of PyTorch and TensorFlow, with no conjugate to add
    tangent    (x, dx) -> J(x) dx        their forward mode
    mapped     x       -> f(x)           for each x of a batch

Each is a `Program` too, so that the framework can differentiate it in turn, as often as it likes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from cdiffeq.wirtinger._linear_map import pull_back


class Program:
    """A function of `count` arrays that returns a pytree of arrays, compiled once for all shapes alike."""

    def __init__(self, fn: Callable[..., PyTree[Array]], count: int):
        self.fn = fn
        self.count = count
        self.jitted = jax.jit(fn)
        # Kept, as each is compiled in turn.
        self.adjoint = functools.cache(self._adjoint)
        self.tangent = functools.cache(self._tangent)
        self.mapped = functools.cache(self._mapped)

    def __call__(self, *args: Array) -> list[Array]:
        """The leaves of the result."""
        return jax.tree.leaves(self.jitted(*args))

    def form(self, *args: jax.ShapeDtypeStruct) -> PyTree[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the result, from those of the arguments."""
        return self.jitted.eval_shape(*args)

    def _adjoint(self, argnums: tuple[int, ...], gradients: int) -> Program:
        """(arguments, gradients of the result's inexact leaves) -> gradients of the arguments `argnums`."""

        def adjoint(*args):
            x, g = args[: self.count], args[self.count :]
            _, back = pull_back(self._of(argnums, x), *(x[i] for i in argnums))
            return list(back(list(g)))

        return Program(adjoint, self.count + gradients)

    def _tangent(self, argnums: tuple[int, ...]) -> Program:
        """(arguments, tangents of the arguments `argnums`) -> tangents of the result's inexact leaves."""

        def tangent(*args):
            x, dx = args[: self.count], args[self.count :]
            return jax.jvp(self._of(argnums, x), [x[i] for i in argnums], list(dx))[1]

        return Program(tangent, self.count + len(argnums))

    def _mapped(self, axes: tuple[int | None, ...]) -> Program:
        """The same for a batch along these axes of the arguments; results have it in front."""
        return Program(jax.vmap(self.fn, axes), self.count)

    def _of(self, argnums: tuple[int, ...], x: tuple[Array, ...]) -> Callable[..., list[Array]]:
        """The inexact leaves of the result, as a function of the arguments `argnums` alone."""

        def of_picked(*picked):
            full = list(x)
            for i, value in zip(argnums, picked, strict=True):
                full[i] = value
            return [leaf for leaf in jax.tree.leaves(self.fn(*full)) if is_inexact(leaf)]

        return of_picked


class Programs:
    """The programs of a function of pytrees, one for each structure of its arguments."""

    def __init__(self, fn: Any):
        if not callable(fn):
            raise TypeError(f"wrap: fn must be a function of arrays, got {type(fn).__name__}.")
        self.fn = fn
        self.made: dict[Any, Program] = {}

    def of(self, tree: Any) -> Program:
        if tree not in self.made:
            flat = lambda *leaves: _arrays(self.fn(*tree.unflatten(leaves)))
            self.made[tree] = Program(flat, tree.num_leaves)
        return self.made[tree]


def is_inexact(x: Any) -> bool:
    """Whether this is floating or complex."""
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def require_dtype(name: str, dtype: Any) -> None:
    """Refuses a dtype that JAX would cut down."""
    used = jax.dtypes.canonicalize_dtype(dtype)
    if used != dtype:
        raise TypeError(
            f"{name} is of {dtype}, which JAX would cut down to {used}: run "
            'jax.config.update("jax_enable_x64", True) before any array is made, or pass it as '
            f"{used}."
        )


def _arrays(out: PyTree[Any]) -> PyTree[Array]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(out):
        if not isinstance(leaf, jax.Array | float | int | complex) and not hasattr(leaf, "dtype"):
            where = f"the result{jax.tree_util.keystr(path)}"
            raise TypeError(f"wrap: fn must return arrays, but {where} is {type(leaf).__name__}.")
    return jax.tree.map(jnp.asarray, out)
