r"""Commutator-free Magnus integrators: a step is a product of exponentials of H at a few nodes.

    psi(t + h) = exp(-i h sum_i a_si H(t + c_i h)) ... exp(-i h sum_i a_1i H(t + c_i h)) psi(t) + O(h^(p+1))

Unitary for Hermitian H, of order p = 2, 4 or 6, with no commutator to form.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import numpy as np


class Scheme(NamedTuple):
    """Nodes c (q,) and weights a (s, q) of the s exponents, the first to act first."""

    order: int
    nodes: np.ndarray
    weights: np.ndarray


class Magnus(eqx.Module):
    """Commutator-free Magnus integrator, for Hamiltonians that vary smoothly between the pins.

    - `order`: 2 (exponential midpoint), 4 (three exponentials; Alvermann, Fehske and Littlewood 2012,
      doi:10.1088/1367-2630/14/10/105008) or 6 (five; Blanes and Moan 2006,
      doi:10.1016/j.apnum.2005.11.004).
    - `steps`: number of equal steps between neighbouring pins (saved times and edges of controls). By
      default the steps are adaptive: steps are doubled to estimate the error, which is kept below
      ``(atol + rtol |psi|) |h| / |T|`` in each, so that the errors of a unitary evolution add up to no
      more than the tolerance.

    Piecewise constant controls are exact in each step. Raises `ValueError` for another order or for
    fewer than one step. Cost of a step: 1, 3 or 5 exponentials; three times this where it is adaptive.

    >>> cd.Magnus(order=6, steps=20)
    Magnus(order=6, steps=20)
    """

    order: int = 4
    steps: int | None = None

    def __check_init__(self):
        if self.order is None:
            raise ValueError("Magnus: order must be 2, 4 or 6, got None.")
        _check("Magnus", self.order, self.steps)

    @property
    def scheme(self) -> Scheme:
        """The nodes and weights."""
        return _SCHEMES[self.order]


class Exponential(eqx.Module):
    """One exponential for each interval between pins: exact where H is constant in between.

    For Hamiltonians made of `constant` and `pwc` terms only; a solve raises `ValueError` for others.

    >>> cd.Exponential()
    Exponential()
    """

    @property
    def scheme(self) -> Scheme:
        """The midpoint, with the whole weight: for a constant H any node will do."""
        return _SCHEMES[2]

    @property
    def steps(self) -> int:
        """One step from pin to pin."""
        return 1


class Chebyshev(eqx.Module):
    r"""Exponentials of large Hermitian operators by Chebyshev polynomials, of which no matrix is formed.

    Between pins where H is constant one exponential is exact; where it varies, they make up the steps of a
    `Magnus` integrator.

    - `order`, `steps`: of the Magnus steps, as there; the default order is 4 where rtol >= 1e-5, else 6.

    An exponential of a step of length dt takes about ``rho dt + 15`` products of H with the states, where the
    spectrum of H lies in an interval of length 2 rho, or 3 for each unit of rho dt where it is long; bounds
    of it are added up from those of the terms (see `cd.linalg.spectral_bounds`, and `cd.linalg.operator`
    for an operator whose bounds are known better). Its error is rounding alone (H. Tal-Ezer and R. Kosloff
    1984, doi:10.1063/1.448136). A gradient takes two products more for each, for state and costate run
    backward, and the products of all operators with a dozen vectors for each exponential, in the memory of
    about 40 states. Beyond 2^17 amplitudes it takes that of 8, or of 10 where the numbers of the operators
    are traced, and about four times as many products.

    >>> chain = cd.spin_chain(3, {"ZZ": 1.0})
    >>> H = cd.constant(chain) + cd.pwc([0.0, 1.0, 2.0], [0.5, 1.0], cd.spin_chain(3, {"X": 1.0}))
    >>> psi0 = jnp.zeros(8).at[0].set(1.0)
    >>> psi = cd.sesolve(H, psi0, [0.0, 2.0], method=cd.Chebyshev()).final_state
    >>> print(jnp.sum(abs(psi) ** 2).round(12))
    1.0
    """

    order: int | None = None
    steps: int | None = None

    def __check_init__(self):
        _check("Chebyshev", self.order, self.steps)


class Krylov(eqx.Module):
    r"""Exponentials of large operators by Krylov spaces, Hermitian or not.

    - `dimension`: of the spaces; an exponential is cut into as many parts as they need (see
      `cd.linalg.Krylov`, which has cost and memory).
    - `order`, `steps`: of the Magnus steps, as for `Chebyshev`.

    Nothing has to be known of the spectrum. The default for operators with ``hermitian=False``.

    >>> decay = cd.linalg.diagonals(np.array([0.0, -0.5j])) + cd.linalg.diagonals([[1.0], [1.0]], (-1, 1))
    >>> result = cd.sesolve(decay, [1.0, 0.0], [0.0, 1.0], method=cd.Krylov(), hermitian=False)
    >>> print(abs(result.final_state).round(6))
    [0.607055 0.662692]
    """

    dimension: int = 30
    order: int | None = None
    steps: int | None = None

    def __check_init__(self):
        if not isinstance(self.dimension, int) or self.dimension < 1:
            raise ValueError(
                f"Krylov: dimension must be a positive integer, got {self.dimension!r}."
            )
        _check("Krylov", self.order, self.steps)


def _check(name: str, order: int | None, steps: int | None) -> None:
    if order is not None and order not in _SCHEMES:
        raise ValueError(f"{name}: order must be 2, 4 or 6, got {order!r}.")
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"{name}: steps must be a positive integer or None, got {steps!r}.")


def _cf4_3opt() -> Scheme:
    """Alvermann, Fehske and Littlewood 2012, on the Gauss nodes of order 6."""
    root = 400 / 957 * math.sqrt(5 / 3)
    h1, h2, h3, h4, h5 = 37 / 66 - root, -4 / 33, 37 / 66 + root, -11 / 162, 92 / 81
    shares = np.array([[11 / 40], [9 / 20], [11 / 40]])
    return Scheme(4, _GAUSS3, shares * np.array([[h3, h2, h1], [h4, h5, h4], [h1, h2, h3]]))


def _cf6_5() -> Scheme:
    """Blanes and Moan 2006, table 1, in the basis alpha of H at the Gauss nodes of order 6."""
    x1 = (0.2, 0.08734395950888931101, 0.03734395950888931101)
    x2 = (0.34815492558797391479, 0.053438272547684150, 0.00584269157837031012)
    x3 = (1 - 2 * (x1[0] + x2[0]), 0.0, 1 / 12 - 2 * (x1[2] + x2[2]))
    mirror = lambda x: (x[0], -x[1], x[2])
    rows = np.array([x1, x2, x3, mirror(x2), mirror(x1)])
    alpha = np.array(
        [[0, 1, 0], [-math.sqrt(15) / 3, 0, math.sqrt(15) / 3], [10 / 3, -20 / 3, 10 / 3]]
    )
    return Scheme(6, _GAUSS3, (rows @ alpha)[::-1])  # the table's last row acts first


_GAUSS3 = 0.5 + np.array([-1.0, 0.0, 1.0]) * math.sqrt(15) / 10
_SCHEMES = {
    2: Scheme(2, np.array([0.5]), np.array([[1.0]])),
    4: _cf4_3opt(),
    6: _cf6_5(),
}
