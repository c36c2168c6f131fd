"""A pytree of real and complex arrays as one flat real vector: all real parts, then all imaginary.

diffrax is handed real vectors only. Implicit solvers then see the whole derivative of a function that
isn't holomorphic, error norms and step sizes are those of real numbers, and states may mix real and
complex leaves. The order is: real parts of complex leaves, their imaginary parts, real leaves.
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
        half = sum(size for size, c in zip(sizes, kinds, strict=True) if c)
        lead, complex_start, real_start = flat.shape[:-1], 0, 2 * half
        leaves = []
        for shape, dtype, size, c in zip(self.shapes, self.dtypes, sizes, kinds, strict=True):
            if c:
                take = slice(complex_start, complex_start + size)
                imag = slice(half + complex_start, half + complex_start + size)
                leaf = jax.lax.complex(flat[..., take], flat[..., imag])
                complex_start += size
            else:
                leaf = flat[..., real_start : real_start + size]
                real_start += size
            leaves.append(leaf.reshape(*lead, *shape).astype(dtype))
        return self.tree.unflatten(leaves)


def is_complex(dtype: Any) -> bool:
    """Whether a dtype is a complex one."""
    return bool(jnp.issubdtype(dtype, jnp.complexfloating))
