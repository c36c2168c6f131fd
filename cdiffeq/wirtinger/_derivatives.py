"""The two Wirtinger derivatives of any function.

To first order every function of a complex variable is R-linear,

    f(z + dz) = f(z) + A dz + B conj(dz),    A = df/dz,    B = df/dzbar,

and A and B follow from the images of the two real directions of each entry z_k = x_k + i y_k:

    P = df/dx,  Q = df/dy,    A = (P - i Q) / 2,    B = (P + i Q) / 2.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, PyTree

from cdiffeq.wirtinger._arguments import pick_arguments


def derivatives(
    f: Callable[..., Any], argnums: int | tuple[int, ...] = 0
) -> Callable[..., tuple[PyTree, PyTree]]:
    """The function that returns both Wirtinger derivatives of `f`: (df/dz, df/dzbar).

    `derivatives(f)(*args)` is the pair (A, B) of `dy = A dz + B conj(dz)`. Nothing is assumed of
    `f`: it may use `conj`, `abs`, `real`, and mix real and complex arguments. It is holomorphic
    exactly where B = 0. For a real-valued f, B = conj(A), and `jax.grad` returns 2 A.

    **Shapes.** Each of A and B has the shape `out.shape + in.shape`. With pytrees they nest as the
    result of `jax.jacobian` does: the tree of the output, in each leaf the tree of the argument (a
    tuple of such trees where `argnums` is a tuple). `args` may have keyword arguments beside them,
    which are handed on.

    **Dtypes.** A and B are complex of the output's precision (complex64 in, complex64 out), but
    real where input and output are both real.

    **Real arguments.** With respect to a real x, A = df/dx and B = 0. For real dx the formula
    `dy = A dx + B conj(dx)` fixes no more than A + B = df/dx; this choice gives f' for a
    holomorphic f whether its argument comes as 2.0 or as 2.0 + 0j. The chain rule
    `(A2, B2) o (A1, B1) = (A2 A1 + B2 conj(B1), A2 B1 + B2 conj(A1))` holds through real
    intermediate values as it stands. From a real x through a non-holomorphic step it gives the
    right dy, with A + B = df/dx, but spread over A and B.

    **Errors.** `TypeError` if an argument or an output is not of floating-point type (integers,
    booleans), `ValueError` if `argnums` names no argument. `f` needs forward mode: a function
    with nothing but a `custom_vjp` is refused by JAX.

    **Cost.** One linearisation, mapped over all N real directions (one per real entry, two per
    complex entry) at once: N tangents, and N times the memory of one, next to N x N for the
    directions. For a gradient use `grad`, which is one sweep.

    Source: W. Wirtinger (1927), doi:10.1007/BF01447872; K. Kreutz-Delgado (2009),
    arXiv:0906.4835, section 3.

    >>> A, B = cd.wirtinger.derivatives(lambda z: z * jnp.abs(z) ** 2)(3 + 4j)
    >>> print(A, B)  # 2 |z|^2 and z^2
    (50+0j) (-7+24j)
    """

    def pair(*args: Any, **kwargs: Any) -> tuple[PyTree, PyTree]:
        of_picked, picked = pick_arguments(f, argnums, args, kwargs)
        leaves, in_tree = jax.tree.flatten(picked)
        out, push = jax.linearize(lambda *leaves: of_picked(in_tree.unflatten(leaves)), *leaves)
        _check_outputs(out)
        images = jax.vmap(push)(*_real_directions(leaves))
        # Per leaf of the output: the tree of its derivatives with respect to every input leaf.
        kinds = tuple(_describe(leaf) for leaf in leaves)
        pairs = [_pairs(image, kinds) for image in jax.tree.leaves(images)]
        out_tree = jax.tree.structure(out)
        df_dz, df_dzbar = (
            out_tree.unflatten([in_tree.unflatten([ab[which] for ab in row]) for row in pairs])
            for which in (0, 1)
        )
        return df_dz, df_dzbar

    return pair


def _check_outputs(out: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(out):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"the output{jax.tree_util.keystr(path)} of f is {dtype}: only real and "
                "complex floating-point outputs have a derivative"
            )


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """What of an argument's leaf decides its real directions."""

    shape: tuple[int, ...]
    is_complex: bool

    @property
    def count(self) -> int:
        """How many real directions there are: one per real entry, two per complex entry."""
        return math.prod(self.shape) * (2 if self.is_complex else 1)


def _describe(leaf: Any) -> _Leaf:
    return _Leaf(np.shape(leaf), jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating))


def _real_directions(leaves: list) -> list[Inexact[Array, "N ..."]]:
    """All N real unit directions of the leaves: for a complex leaf 1 in each entry, then i."""
    kinds = [_describe(leaf) for leaf in leaves]
    N = sum(kind.count for kind in kinds)
    columns = np.split(np.eye(N), np.cumsum([kind.count for kind in kinds])[:-1], axis=1)
    directions = []
    for leaf, kind, column in zip(leaves, kinds, columns, strict=True):
        if kind.is_complex:
            real, imag = np.split(column, 2, axis=1)
            column = real + 1j * imag
        directions.append(jnp.asarray(column.reshape(N, *kind.shape), jnp.result_type(leaf)))
    return directions


# Compiled as one, since eagerly its many small operations would each be dispatched on their own.
@functools.partial(jax.jit, static_argnames="kinds")
def _pairs(image: Inexact[Array, "N ..."], kinds: tuple[_Leaf, ...]) -> list[tuple[Array, Array]]:
    """(A, B) of one output leaf for every input leaf, from the images of all real directions."""
    pairs, start = [], 0
    for kind in kinds:
        rows = jnp.moveaxis(image[start : start + kind.count], 0, -1)
        start += kind.count
        if kind.is_complex:
            P, Q = (half.reshape(image.shape[1:] + kind.shape) for half in jnp.split(rows, 2, -1))
            pairs.append(((P - 1j * Q) / 2, (P + 1j * Q) / 2))
        else:
            P = rows.reshape(image.shape[1:] + kind.shape)
            pairs.append((P, jnp.zeros_like(P)))
    return pairs
