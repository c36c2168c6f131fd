r"""Phase factors ``exp(-i phi)`` of real phi.

    tangent    dE = -i E dphi           adjoint    g_phi = <-i E, g>

In double precision by the reduction of Cody and Waite to |r| <= pi/4 and the polynomials of fdlibm (Sun
Microsystems 1993, k_sin.c and k_cos.c): XLA makes vector instructions of them, and calls the functions of
the C library one number at a time, which takes four times as long on a CPU. The error is 2 eps, and eps |phi|
beyond |phi| = 1e6.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from cdiffeq.wirtinger._rule import adjoint_rule

# pi/2 in three parts, of which the first two have few enough bits that k times them is exact.
_PI_2 = (1.57079632673412561417, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_SIN = (
    -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
    2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
)  # fmt: skip
_COS = (
    4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
    -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
)  # fmt: skip


@adjoint_rule
def phase_factor(phi: Float[Array, "..."]) -> Complex[Array, "..."]:
    """exp(-i phi)."""
    if jnp.finfo(phi.dtype).bits != 64:
        return jax.lax.complex(jnp.cos(phi), -jnp.sin(phi))
    k = jnp.round(phi * (2 / np.pi))
    r = phi
    for part in _PI_2:
        r = r - k * part
    z = r * r
    sin = r + r * z * _polynomial(_SIN, z)
    cos = 1 - z / 2 + z * z * _polynomial(_COS, z)
    # By the quadrant: (cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos).
    quadrant = k - 4 * jnp.floor(k / 4)
    odd = (quadrant == 1) | (quadrant == 3)
    re, im = jnp.where(odd, sin, cos), jnp.where(odd, cos, sin)
    re = jnp.where((quadrant == 1) | (quadrant == 2), -re, re)
    im = jnp.where((quadrant == 2) | (quadrant == 3), -im, im)
    return jax.lax.complex(re, -im)


@phase_factor.def_tangent
def _tangent(args, E, dargs):
    return -1j * E * dargs[0]


@phase_factor.def_adjoint
def _adjoint(args, E, g):
    return (jnp.real(jnp.conj(-1j * E) * g),)


def _polynomial(coefficients: tuple[float, ...], z: Array) -> Array:
    value = jnp.full_like(z, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * z + c
    return value
