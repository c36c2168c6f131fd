r"""y = exp(-i H) x with a learned Hermitian H.

H = (R + R^T)/2 + i (R - R^T)/2        R real: n^2 numbers for the n^2 dimensions of Hermitian matrices
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact, PRNGKeyArray

from cdiffeq.linalg import expm
from cdiffeq.nn._linear import require_vector


class UnitaryLayer(eqx.Module):
    """Propagation under a learned Hamiltonian for the time 1: ``exp(-i H) x``, which keeps the norm of x.

    ``UnitaryLayer(n, key)``; called with x of shape (n,), real or complex, it returns (n,), complex. The
    parameters are real, (n, n), unconstrained, and no optimizer needs to know of complex numbers: their
    symmetric part is the real part of H, the antisymmetric one its imaginary part; `.hamiltonian` is H. It
    starts with energies between about -2 and 2. `dtype` is that of the parameters, float64 by default where
    `jax_enable_x64` is on, else float32.

    Calling raises `ValueError` for another shape. Gradients are those of the rule of `cd.linalg.expm`.
    Cost: an exponential, about 10 products of matrices (n, n), once for a batch by `jax.vmap`. For a drive
    that varies in time, or levels by the hundred, write a layer around `cd.sesolve` or
    `cd.linalg.expm_multiply`.

    >>> layer = cd.nn.UnitaryLayer(3, jax.random.key(0))
    >>> print(f"{jnp.linalg.norm(layer(jnp.array([0.6, 0.0, 0.8j]))):.12f}")
    1.000000000000
    """

    parameters: Float[Array, "n n"]

    def __init__(self, size: int, key: PRNGKeyArray, *, dtype: Any = None):
        dtype = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"UnitaryLayer: dtype must be that of real parameters, got {dtype}.")
        self.parameters = jax.random.normal(key, (size, size), dtype) / float(np.sqrt(size))

    @property
    def hamiltonian(self) -> Complex[Array, "n n"]:
        """H, (n, n)."""
        R = self.parameters
        return jax.lax.complex((R + R.T) / 2, (R - R.T) / 2)

    def __call__(
        self, x: Inexact[Array, "..."], *, key: PRNGKeyArray | None = None
    ) -> Complex[Array, " n"]:
        require_vector("UnitaryLayer", x, len(self.parameters))
        return expm(-1j * self.hamiltonian) @ x
