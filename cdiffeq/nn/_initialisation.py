r"""Random weights W (out, in) that keep the mean square of what they multiply: C. Trabelsi et al. 2018.

    Glorot    E|W|^2 = 2/(in + out)        on average over both directions
    He        E|W|^2 = 2/in                before an activation that halves the mean square

The paper draws |W| from a Rayleigh distribution and the phase evenly, which makes W a Gaussian of independent
real and imaginary part with half of the variance each.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, PRNGKeyArray


def glorot(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = None) -> Complex[Array, "..."]:
    """Complex weights with ``E|W|^2 = 2 / (in + out)``, in the manner of Glorot.

    `shape` is (out, in, ...), axes beyond the second being those of a convolution's window, which count with
    both. `dtype`: complex128 by default where `jax_enable_x64` is on, else complex64. Raises `ValueError` for
    a shape with fewer than two axes, `TypeError` for a dtype that isn't complex.
    Source: C. Trabelsi et al. 2018, arXiv:1705.09792, section 3.6.

    >>> W = cd.nn.glorot(jax.random.key(0), (300, 100))
    >>> print(W.dtype, round(float(200 * jnp.mean(jnp.abs(W) ** 2)), 1))
    complex128 1.0
    """
    fan_out, fan_in = _fans("glorot", shape)
    return _normal(key, shape, 2 / (fan_in + fan_out), complex_dtype("glorot", dtype))


def he(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = None) -> Complex[Array, "..."]:
    """Complex weights with ``E|W|^2 = 2 / in``, in the manner of He; arguments and errors as for `glorot`.

    Source: C. Trabelsi et al. 2018, arXiv:1705.09792, section 3.6.

    >>> W = cd.nn.he(jax.random.key(0), (300, 100), jnp.complex64)
    >>> print(W.dtype, round(float(50 * jnp.mean(jnp.abs(W) ** 2)), 1))
    complex64 1.0
    """
    _, fan_in = _fans("he", shape)
    return _normal(key, shape, 2 / fan_in, complex_dtype("he", dtype))


def complex_dtype(name: str, dtype: Any) -> Any:
    """The complex dtype that was asked for, or JAX's default one."""
    dtype = jnp.result_type(complex) if dtype is None else jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{name}: dtype must be complex, got {dtype}.")
    return jax.dtypes.canonicalize_dtype(dtype)


def _fans(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """How many outputs an input reaches, and how many inputs an output."""
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"{name}: shape must be (out, in, ...), got {shape}.")
    window = math.prod(shape[2:])
    return shape[0] * window, shape[1] * window


def _normal(
    key: PRNGKeyArray, shape: tuple[int, ...], square: float, dtype: Any
) -> Complex[Array, "..."]:
    return math.sqrt(square) * jax.random.normal(key, shape, dtype)  # of E|W|^2 = 1
