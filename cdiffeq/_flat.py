"""A pytree of real and complex arrays as one flat real vector: all real parts, then all imaginary.

diffrax, optimistix and SciPy are handed real vectors only. Newton's method then sees the whole derivative of
a function that isn't holomorphic, error norms and step sizes are those of real numbers, and states may mix
real and complex leaves. The order is: real parts of complex leaves, their imaginary parts, real leaves.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a pytree lies in a flat vector: its structure, and the shape and dtype of each leaf."""

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @staticmethod
    def of(tree: PyTree[Any]) -> Layout:
        leaves, structure = jax.tree.flatten(tree)
        shapes = tuple(tuple(leaf.shape) for leaf in leaves)
        return Layout(structure, shapes, tuple(np.dtype(leaf.dtype) for leaf in leaves))

    @property
    def size(self) -> int:
        """The number of real numbers."""
        return sum(
            math.prod(s) * (2 if is_complex(d) else 1)
            for s, d in zip(self.shapes, self.dtypes, strict=True)
        )

    @property
    def dtype(self) -> np.dtype:
        """The real dtype of the flat vector: the widest of the leaves'."""
        return np.dtype(np.result_type(*(np.finfo(d).dtype for d in self.dtypes)))

    def pack(self, tree: PyTree[Inexact[Array, "..."]]) -> Float[Array, " N"]:
        """The flat vector of a tree of this layout."""
        leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]
        kinds = [is_complex(d) for d in self.dtypes]
        parts = [leaf.real for leaf, c in zip(leaves, kinds, strict=True) if c]
        parts += [leaf.imag for leaf, c in zip(leaves, kinds, strict=True) if c]
        parts += [leaf for leaf, c in zip(leaves, kinds, strict=True) if not c]
        if not parts:
            return jnp.zeros(0)
        return jnp.concatenate([part.astype(self.dtype) for part in parts])

    def unpack(self, flat: Float[Array, "... N"]) -> PyTree[Inexact[Array, "..."]]:
        """The tree of a flat vector, or of a stack of them: leading axes are kept on every leaf."""
        kinds = [is_complex(d) for d in self.dtypes]
        sizes = [math.prod(s) for s in self.shapes]
        complex_sizes = [size for size, c in zip(sizes, kinds, strict=True) if c]
        real_sizes = [size for size, c in zip(sizes, kinds, strict=True) if not c]
        # Not slices: the transpose of a split is a concatenation, that of slices a sum of padded parts.
        parts = jax.lax.split(flat, [*complex_sizes, *complex_sizes, *real_sizes], flat.ndim - 1)
        n = len(complex_sizes)
        complexes = iter(map(jax.lax.complex, parts[:n], parts[n : 2 * n]))
        reals = iter(parts[2 * n :])
        leaves = [
            next(complexes if c else reals).reshape(*flat.shape[:-1], *shape).astype(dtype)
            for shape, dtype, c in zip(self.shapes, self.dtypes, kinds, strict=True)
        ]
        return self.tree.unflatten(leaves)


def is_complex(dtype: Any) -> bool:
    """Whether a dtype is a complex one."""
    return bool(jnp.issubdtype(dtype, jnp.complexfloating))
