"""Complex pytrees as real vectors, for optimizers and samplers that know real numbers only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from cdiffeq._arrays import as_state
from cdiffeq._errors import is_traced
from cdiffeq._flat import Layout, is_complex


def to_real(tree: PyTree[Any]) -> tuple[Float[Array, " N"], Callable[[Any], Any]]:
    """A pytree of real and complex arrays as one real vector, and the way back.

    >>> vector, from_real = to_real({"gain": 1 + 2j, "loss": 0.5})
    >>> print(vector, from_real(vector)["gain"])
    [1.  2.  0.5] (1+2j)

    **Arguments**: `tree`, of floating and complex arrays, finite, of one precision.

    **Returns** `vector`, real, of shape (N,): all real parts of complex leaves, then all their imaginary
    parts, then the real leaves; and the function `from_real` with ``from_real(vector)`` = tree, which takes
    stacks of vectors, (..., N), too. Both can be differentiated, jitted and mapped.

    The gradient of ``lambda v: loss(from_real(v))`` is real: a step against it goes downhill, with nothing to
    conjugate. **Raises** `TypeError` for leaves that aren't floating or are of several precisions,
    `ValueError` for NaN and infinity.
    """
    tree = as_state("tree", tree)
    layout = Layout.of(tree)

    def from_real(vector: Any) -> Any:
        vector = jnp.asarray(vector, layout.dtype)
        if vector.ndim == 0 or vector.shape[-1] != layout.size:
            raise ValueError(
                f"from_real: the vector must be of shape (..., {layout.size}), got {vector.shape}."
            )
        return layout.unpack(vector)

    return layout.pack(tree), from_real


def require_known(name: str, *trees: Any) -> None:
    """Refuses traced values: SciPy's algorithms run on the host."""
    if any(is_traced(leaf) for leaf in jax.tree.leaves(trees)):
        raise TypeError(
            f"{name} runs on the host, and can't be called inside jit, vmap or a derivative: use "
            "cd.implicit.minimise there."
        )


def flat_bounds(
    name: str, bounds: Any, params: PyTree[Array], layout: Layout, names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of the real vector of `params`, which lies between."""
    start = np.asarray(layout.pack(params), np.float64)
    if bounds is None:
        return np.full(start.shape, -np.inf), np.full(start.shape, np.inf)
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"{name}: bounds must be a pair (lower, upper), got {bounds!r}.")
    lower, upper = (
        _one_bound(name, bound, params, layout, sign)
        for bound, sign in zip(bounds, (-1, 1), strict=True)
    )
    for i, (low, x, high) in enumerate(zip(lower, start, upper, strict=True)):
        if not (low <= x <= high and low < high):
            raise ValueError(
                f"{name}: {names[i]} starts at {x:.6g}, which must lie within its bounds "
                f"{low:.6g} and {high:.6g}."
            )
    return lower, upper


def _one_bound(name: str, bound: Any, params: Any, layout: Layout, sign: int) -> np.ndarray:
    free = sign * np.inf
    leaves, tree = jax.tree.flatten(params)
    if bound is None:
        return np.full(layout.size, free)
    given, of_bound = jax.tree.flatten(bound, is_leaf=lambda b: b is None)
    if of_bound != tree:
        raise TypeError(
            f"{name}: each of bounds must have the structure of params, {tree}, with None where there is no "
            f"bound; got {of_bound}."
        )
    filled = []
    for b, leaf in zip(given, leaves, strict=True):
        if b is None:
            b = complex(free, free) if is_complex(leaf.dtype) else free
        if np.iscomplexobj(b) and not is_complex(leaf.dtype):
            raise TypeError(f"{name}: a bound is {b}, and its parameter is real.")
        if is_complex(leaf.dtype) and not np.iscomplexobj(b):
            raise TypeError(
                f"{name}: a bound of a complex parameter holds for its real and its imaginary part, and must "
                f"be complex, such as complex({b}, {b}); got {b}."
            )
        filled.append(jnp.broadcast_to(jnp.asarray(b, leaf.dtype), leaf.shape))
    return np.asarray(layout.pack(tree.unflatten(filled)), np.float64)


def real_names(tree: PyTree[Array], layout: Layout) -> list[str]:
    """What each entry of the real vector is: "Re gain[2]", "Im gain[2]", "loss"."""
    places = layout.unpack(jnp.arange(layout.size, dtype=layout.dtype))
    names = [""] * layout.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(places):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "params"
        leaf = np.asarray(leaf)
        for index in np.ndindex(leaf.shape):
            full = name + (f"[{', '.join(map(str, index))}]" if index else "")
            if np.iscomplexobj(leaf):
                names[int(leaf[index].real)] = f"Re {full}"
                names[int(leaf[index].imag)] = f"Im {full}"
            else:
                names[int(leaf[index])] = full
    return names
