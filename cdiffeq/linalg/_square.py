"""What functions of dense square matrices share: checks, and errors about one matrix of a batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, PyTree

from cdiffeq._errors import poison, raise_if

# Without it a GPU may round the factors of a product to ten bits.
matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def as_matrix(function: str, name: str, A: Any) -> Inexact[Array, "... m n"]:
    """A as an array (..., m, n) in single or double precision, or an error that names it."""
    A = jnp.asarray(A)
    if not jnp.issubdtype(A.dtype, jnp.inexact) or jnp.finfo(A.dtype).bits < 32:
        raise TypeError(
            f"{function}: {name} must be floating or complex, in single or double precision; "
            f"got {A.dtype}."
        )
    if A.ndim < 2:
        raise ValueError(f"{function}: {name} must be a matrix, (..., m, n); got shape {A.shape}.")
    return A


def as_square(function: str, name: str, A: Any) -> Inexact[Array, "... n n"]:
    """The same for an array (..., n, n)."""
    A = as_matrix(function, name, A)
    if A.shape[-1] != A.shape[-2]:
        raise ValueError(f"{function}: {name} must be square, (..., n, n); got shape {A.shape}.")
    return A


def all_finite(A: Inexact[Array, "... m n"]) -> Bool[Array, "..."]:
    """Whether a matrix holds neither NaN nor infinity."""
    return jnp.all(jnp.isfinite(A), axis=(-2, -1))


def frobenius(A: Inexact[Array, "... m n"]) -> Float[Array, "..."]:
    """The Frobenius norm, whose squares don't overflow."""
    size = jnp.abs(A)
    largest = jnp.max(size, axis=(-2, -1), keepdims=True, initial=0)
    scale = jnp.where(largest > 0, largest, 1)
    return scale[..., 0, 0] * jnp.sqrt(jnp.sum((size / scale) ** 2, axis=(-2, -1)))


def poison_each(out: PyTree[Array], failed: Bool[Array, "..."]) -> PyTree[Array]:
    """`out`, with NaN in the part of those matrices of the batch that `failed`."""
    each = poison
    for _ in failed.shape:
        each = jax.vmap(each)
    return each(out, failed)


def raise_for_any(
    out: PyTree[Array],
    failed: Bool[Array, "..."],
    message: Callable[..., str],
    *values: Inexact[Array, "..."],
) -> PyTree[Array]:
    """`out`, unless any matrix of the batch `failed`: then a `RuntimeError` about the first of them.

    Its text is `message(*values)` with the values at that matrix. As in `raise_if`, what can't
    raise becomes NaN.
    """
    if failed.size == 0:
        return out
    shape = failed.shape
    failed = failed.ravel()
    first = jnp.argmax(failed)

    def error(first, *values):
        where = [int(i) for i in np.unravel_index(int(first), shape)]
        prefix = f"matrix {where} of the batch: " if shape else ""
        return RuntimeError(prefix + message(*(float(v) for v in values)))

    return raise_if(out, jnp.any(failed), error, first, *(v.ravel()[first] for v in values))
