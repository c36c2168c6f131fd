r"""Kinetic and potential energy on a periodic grid, in one to three dimensions.

    A = F^-1 T(k) F + V(x),

F the discrete Fourier transform. The states are the values on the grid, flattened as NumPy does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from cdiffeq._arrays import as_array, as_real, require_finite
from cdiffeq.linalg._operator import Disc, Operator, bounding_box


class Grid(eqx.Module):
    """A periodic grid around the origin, of one to three axes.

    - `lengths`: of the box along each axis; `points`: how many along each, best with small prime factors.

    `x`, `y`, `z` are the coordinates of all points, ``-L/2, -L/2 + dx, ...``, of shape `points`; `cell` is
    the volume of one, by which ``sum(abs(psi)**2) * cell`` is a probability. Raises `ValueError` for other
    numbers of axes.

    >>> grid = cd.linalg.Grid((4.0,), (4,))
    >>> print(grid.x, grid.cell)
    [-2. -1.  0.  1.] 1.0
    """

    lengths: tuple[float, ...] = eqx.field(static=True, converter=lambda a: tuple(map(float, a)))
    points: tuple[int, ...] = eqx.field(static=True, converter=lambda a: tuple(map(int, a)))

    def __check_init__(self):
        if not 1 <= len(self.points) <= 3 or len(self.points) != len(self.lengths):
            raise ValueError(
                f"Grid: lengths and points must be of one to three axes, got {self.lengths}, {self.points}."
            )
        if min(self.points) < 1 or not min(self.lengths) > 0:
            raise ValueError(f"Grid: must be positive, got {self.lengths}, {self.points}.")

    @property
    def n(self) -> int:
        """The number of points."""
        return math.prod(self.points)

    @property
    def cell(self) -> float:
        """The volume of one cell."""
        return math.prod(self.lengths) / self.n

    def _axis(self, axis: int, values: Callable[[float, int], np.ndarray]) -> np.ndarray:
        along = values(self.lengths[axis], self.points[axis])
        shape = [-1 if k == axis else 1 for k in range(len(self.points))]
        return np.broadcast_to(along.reshape(shape), self.points)

    @property
    def x(self) -> np.ndarray:
        """The first coordinate of each point."""
        return self._axis(0, _positions)

    @property
    def y(self) -> np.ndarray:
        """The second coordinate of each point."""
        return self._axis(1, _positions)

    @property
    def z(self) -> np.ndarray:
        """The third coordinate of each point."""
        return self._axis(2, _positions)

    @property
    def k_squared(self) -> np.ndarray:
        """|k|^2 of each wave, in the order of the Fourier transform."""
        squares = [self._axis(axis, _waves) ** 2 for axis in range(len(self.points))]
        return functools.reduce(np.add, squares)


def _positions(length: float, points: int) -> np.ndarray:
    return (np.arange(points) - points // 2) * (length / points)


def _waves(length: float, points: int) -> np.ndarray:
    return 2 * np.pi * np.fft.fftfreq(points, length / points)


class KineticPotential(Operator):
    r"""The Hamiltonian of a particle on a periodic grid, ``p^2 / 2m + V(x)``, by Fourier transforms.

    **Arguments**

    - `grid`: a `Grid`.
    - `potential`: V at each point, real or (absorbing) complex, of the shape of the grid or flat; 0 by
      default.
    - `mass`: a number, 1 by default. hbar = 1.

    Its states are vectors (n,) of the values on the grid, flattened; ``psi.reshape(grid.points)`` is back.
    The gradient in `potential` is a number for each point. **Cost**: two transforms, O(n log n). Raises
    `ValueError` for a potential of another shape.

    >>> grid = cd.linalg.Grid((20.0,), (64,))
    >>> H = cd.linalg.KineticPotential(grid, grid.x**2 / 2)
    >>> ground = np.exp(-(grid.x**2) / 2)
    >>> bool(jnp.allclose(H @ ground, 0.5 * ground))
    True
    """

    kinetic: Float[Array, "..."]
    potential: Inexact[Array, "..."]

    def __init__(self, grid: Grid, potential: Any = 0.0, mass: Any = 1.0):
        V = as_array("potential", potential)
        if V.ndim and V.shape not in (grid.points, (grid.n,)):
            raise ValueError(
                f"KineticPotential: potential must be of the grid's shape {grid.points}, got {V.shape}."
            )
        require_finite("KineticPotential: potential", V)
        real = jnp.finfo(V.dtype).dtype
        V = jnp.broadcast_to(V, grid.points) if V.ndim == 0 else V.reshape(grid.points)
        self.kinetic = jnp.asarray(grid.k_squared, real) / (2 * as_real("mass", mass).astype(real))
        self.potential = V

    @property
    def shape(self) -> tuple[int, int]:
        n = self.potential.size
        return n, n

    @property
    def dtype(self) -> Any:
        return jnp.result_type(self.potential, jnp.complex64)

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return self.mm(x[:, None])[:, 0]

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        grid = self.potential.shape
        # The grid's axes last: that is where the transform takes them.
        x = X.T.reshape(-1, *grid)
        waves = self.kinetic[None] * fourier(x, False)
        y = fourier(waves, True) + self.potential[None] * x
        return y.reshape(X.shape[::-1]).T.astype(jnp.result_type(X, self.dtype))

    def adjoint(self) -> KineticPotential:
        return eqx.tree_at(lambda A: A.potential, self, jnp.conj(self.potential))

    def disc(self) -> Disc:
        kinetic, potential = jax.lax.stop_gradient((self.kinetic, self.potential))
        low, high = bounding_box(potential)
        center = (low + high) / 2
        radius = jnp.max(jnp.abs(potential - center))
        top, bottom = jnp.max(kinetic), jnp.min(kinetic)
        return Disc(center + (top + bottom) / 2, radius + (top - bottom) / 2)


def fourier(x: Inexact[Array, "b ..."], inverse: bool) -> Inexact[Array, "b ..."]:
    """The transform along all axes but the first."""
    x = x.astype(jnp.result_type(x, jnp.complex64))
    axes = tuple(range(1, x.ndim))
    transform, back = jnp.fft.fftn, jnp.fft.ifftn
    return (back if inverse else transform)(x, axes=axes)
