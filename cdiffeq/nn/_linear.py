r"""y = W x + b with complex weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Complex, Inexact, PRNGKeyArray

from cdiffeq.nn._initialisation import complex_dtype, glorot


class Linear(eqx.Module):
    """The layer ``W x + b`` with complex weights.

    ``Linear(in, out, key)``; called with x of shape (in,), real or complex, it returns (out,). The weights
    are drawn by `init`, `glorot` or `he`; the bias starts at zero, or is left out. `dtype` is that of
    the weights, complex128 by default where `jax_enable_x64` is on, else complex64. Calling raises
    `ValueError` for another shape. `jax.vmap` it over a batch.

    >>> layer = cd.nn.Linear(3, 2, jax.random.key(0))
    >>> jax.vmap(layer)(jnp.ones((5, 3))).shape
    (5, 2)
    """

    weight: Complex[Array, "out n"]
    bias: Complex[Array, " out"] | None

    def __init__(
        self,
        in_size: int,
        out_size: int,
        key: PRNGKeyArray,
        *,
        init: Callable[..., Any] = glorot,
        use_bias: bool = True,
        dtype: Any = None,
    ):
        dtype = complex_dtype("Linear", dtype)
        self.weight = init(key, (out_size, in_size), dtype)
        self.bias = jnp.zeros(out_size, dtype) if use_bias else None

    def __call__(
        self, x: Inexact[Array, "..."], *, key: PRNGKeyArray | None = None
    ) -> Complex[Array, " out"]:
        require_vector("Linear", x, self.weight.shape[1])
        y = self.weight @ x
        return y if self.bias is None else y + self.bias


def require_vector(name: str, x: Any, n: int) -> None:
    """Refuses anything but a vector of length n."""
    if jnp.shape(x) != (n,):
        raise ValueError(
            f"{name}: x must have shape ({n},), got {jnp.shape(x)}; use jax.vmap for a batch."
        )
