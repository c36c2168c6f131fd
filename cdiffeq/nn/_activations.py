r"""Activations of complex numbers, z = |z| u, none of them holomorphic. The Wirtinger derivatives:

    modrelu     (1 + b/|z|) z where |z| > -b        d/dz = 1 + b/(2|z|)           d/dzbar = -b u^2/(2|z|)
    cardioid    (1 + cos(arg z)) / 2 z              d/dz = 1/2 + (3u + ubar)/8    d/dzbar = (u - u^3)/8
    zrelu       z where Re z > 0 and Im z > 0       d/dz = 1                      d/dzbar = 0

and 0 elsewhere. At z = 0 each has the value 0 and a finite derivative.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Complex, Inexact


def modrelu(z: Inexact[Array, "..."], b: ArrayLike) -> Complex[Array, "..."]:
    """``relu(|z| + b) z / |z|``: shortens by -b, and keeps the phase.

    `z` complex, of any shape; `b` real, of a shape that broadcasts with it, usually a learned one with an
    entry per channel: negative, it silences what is shorter than -b. Returns the dtype of z. Raises
    `TypeError` for a real z or a complex b. Source: M. Arjovsky, A. Shah, Y. Bengio 2016, arXiv:1511.06464.

    >>> print(cd.nn.modrelu(jnp.array([3 + 4j, 0.3 + 0.4j]), -1.0))
    [2.4+3.2j 0. +0.j ]
    """
    _require_complex("modrelu", z)
    b = jnp.asarray(b)
    if jnp.iscomplexobj(b):
        raise TypeError(f"modrelu: b must be real, got {b.dtype}.")
    size = jnp.abs(z)
    b = b.astype(size.dtype)
    silent = (size + b <= 0) | (size == 0)  # not for a NaN, which is to be seen
    return jnp.where(silent, 0, z + b * z / jnp.where(size == 0, 1, size))


def cardioid(z: Inexact[Array, "..."]) -> Complex[Array, "..."]:
    """``(1 + cos(arg z)) / 2 z``: weakens z the further it points from the positive axis.

    `z` complex, of any shape and dtype, which the result has too. On the real axis it is max(z, 0). Raises
    `TypeError` for a real z. Source: P. Virtue, S. X. Yu, M. Lustig 2017, arXiv:1707.00070.

    >>> print(cd.nn.cardioid(jnp.array([2 + 0j, -2, 2j])) + 0)
    [2.+0.j 0.+0.j 0.+1.j]
    """
    _require_complex("cardioid", z)
    size = jnp.abs(z)
    return (1 + z.real / jnp.where(size == 0, 1, size)) / 2 * z


def zrelu(z: Inexact[Array, "..."]) -> Complex[Array, "..."]:
    """z in the first quadrant, where its real and its imaginary part are positive, and 0 elsewhere.

    `z` complex, of any shape and dtype, which the result has too. Raises `TypeError` for a real z.
    Source: N. Guberman 2016, arXiv:1602.09046.

    >>> print(cd.nn.zrelu(jnp.array([1 + 2j, -1 + 2j, 1 - 2j])))
    [1.+2.j 0.+0.j 0.+0.j]
    """
    _require_complex("zrelu", z)
    outside = (z.real <= 0) | (jnp.imag(z) <= 0)
    return jnp.where(outside & ~jnp.isnan(z), 0, z)


def _require_complex(name: str, z: Inexact[Array, "..."]) -> None:
    if not jnp.iscomplexobj(z):
        raise TypeError(f"{name}: z must be complex, got {jnp.result_type(z)}.")
