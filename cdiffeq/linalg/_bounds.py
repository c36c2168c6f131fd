"""What is known of an operator: discs around its spectrum, whether it is Hermitian, bounds from the user."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cdiffeq._arrays import as_real
from cdiffeq._errors import is_traced, raise_if
from cdiffeq.linalg._operator import Bounded, Disc, Operator, Sum, as_operator, combined
from cdiffeq.linalg._spectrum import adjoint_sign, norm_estimate, real_bounds


def operator(
    A: Any, n: int | None = None, *, dtype: Any = None, bounds: tuple[Any, Any] | None = None
) -> Operator:
    """The operator that A stands for.

    - `A`: an array (n, n), a matrix of `scipy.sparse`, a BCOO or BCSR matrix of JAX, a `Qobj` of QuTiP, an
      operator of lineax, or a function x -> A x of vectors (n,), linear over the complex numbers.
    - `n`, `dtype`: of the vectors that a function acts on; complex by default.
    - `bounds`: the lowest and the highest eigenvalue of a Hermitian A, or bounds of them. Where nothing is
      known Lanczos' process looks for them, which takes 30 products.

    Raises `TypeError` for a function without n, and for what stands for no operator.

    >>> H = cd.linalg.operator(lambda x: 2 * jnp.roll(x, 4), 8, bounds=(-2, 2))
    >>> (H @ jnp.eye(8)[0]).real
    Array([0., 0., 0., 0., 2., 0., 0., 0.], dtype=float64)
    """
    like = None
    if n is not None:
        like = jnp.zeros((n,), jnp.result_type(complex) if dtype is None else dtype)
    made = as_operator("A", A, like)
    if bounds is None:
        return made
    low, high = (as_real("bounds", b) for b in bounds)
    if not (is_traced(low) or is_traced(high) or low <= high):
        raise ValueError(f"operator: bounds must be (lowest, highest), got ({low}, {high}).")
    return Bounded(made, low, high)


def spectral_bounds(A: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Bounds of the eigenvalues of a Hermitian operator, the lowest and the highest, without derivatives.

    From what the operator knows of itself (Gershgorin's theorem, or an interval for each part of a sum), or
    from 30 products of Lanczos' process. Raises where A isn't Hermitian.

    >>> cd.linalg.spectral_bounds(cd.linalg.diagonals([jnp.ones(3), jnp.ones(3)], (1, -1)))
    (Array(-2., dtype=float64), Array(2., dtype=float64))
    """
    A = jax.lax.stop_gradient(as_operator("A", A))
    sign = adjoint_sign(A)
    message = "spectral_bounds: A isn't Hermitian."
    sign = raise_if(sign, ~(sign > 0), lambda: ValueError(message))
    center, radius = disc(A)
    center = jnp.real(center) * sign
    return center - radius, center + radius


def is_hermitian(A: Any) -> bool:
    """Whether A^H = A, to rounding: of a dense matrix all entries are compared, of others two random
    products.

    >>> cd.linalg.is_hermitian(np.array([[0.0, 1j], [-1j, 0.0]])), cd.linalg.is_hermitian(1j * np.eye(2))
    (True, False)
    """
    A = as_operator("A", A)
    if A.shape[0] != A.shape[1]:
        return False
    return bool(np.asarray(adjoint_sign(A)) > 0)


def disc(A: Operator) -> Disc:
    """A disc around the spectrum of a Hermitian A, and around <x, A x> for any other; without derivatives.

    What A doesn't know is estimated: bounds of Lanczos' process where A is Hermitian, else a norm.
    """
    A = jax.lax.stop_gradient(A)
    if isinstance(A, Sum):
        return combined(A.factors, [disc(B) for B in A.operators])
    known = A.disc()
    if known is not None:
        return known
    hermitian = adjoint_sign(A) > 0
    low, high = real_bounds(A, jnp.asarray(False), None)
    norm = norm_estimate(A)
    center = jnp.where(hermitian, (low + high) / 2, 0)
    return Disc(center, jnp.where(hermitian, (high - low) / 2, norm))
