r"""Short ways to common operators: chains of spins and bosonic modes.

H = sum_j c_j S_j S'_(j+1) ...,     S = X, Y, Z, and the like
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cdiffeq._arrays import as_array, require_finite
from cdiffeq.linalg._diagonals import Diagonals, kron

_SPIN = {
    "X": np.array([[0.0, 1.0], [1.0, 0.0]]),
    "Y": np.array([[0.0, -1j], [1j, 0.0]]),
    "Z": np.diag([1.0, -1.0]),
    "I": np.eye(2),
    "+": np.array([[0.0, 1.0], [0.0, 0.0]]),
    "-": np.array([[0.0, 0.0], [1.0, 0.0]]),
}


def spin_chain(n: int, terms: Mapping[str, Any], *, periodic: bool = False) -> Diagonals:
    r"""A chain of n spins 1/2: ``sum_j c_j P_j Q_(j+1) ...`` for each term ``"PQ...": c``.

    - `terms`: by strings of Pauli matrices on neighbouring spins, ``"X"``, ``"ZZ"``, ``"XIX"``, with ``+``
      and ``-`` for (X + iY)/2 and (X - iY)/2: their coefficients, real or complex, one number for all
      places or an array of one for each place.
    - `periodic`: whether the chain is closed to a ring, so that each term has n places.

    States are of length 2^n, the first spin's index the slowest; Z is 1 in the state 0. Returns an operator
    of the dtype of the coefficients, complex where Y is in the game. Applied, it costs as many
    multiplications as it has non-zeros. Raises `ValueError` for other letters, and for a number of
    coefficients that doesn't fit.

    >>> H = cd.spin_chain(2, {"ZZ": 1.0, "X": jnp.array([0.5, 0.0])})
    >>> H.to_dense()
    Array([[ 1. ,  0. ,  0.5,  0. ],
           [ 0. , -1. ,  0. ,  0.5],
           [ 0.5,  0. , -1. ,  0. ],
           [ 0. ,  0.5,  0. ,  1. ]], dtype=float64)
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"spin_chain: n must be a positive integer, got {n!r}.")
    if not terms:
        raise ValueError("spin_chain: there must be a term.")
    parts: list[Any] = []
    for letters, coefficient in terms.items():
        if not letters or set(letters) - set(_SPIN):
            raise ValueError(
                f"spin_chain: terms are strings of {', '.join(_SPIN)}, got {letters!r}."
            )
        places = n if periodic else n - len(letters) + 1
        c = as_array(f"spin_chain: {letters}", coefficient)
        require_finite(f"spin_chain: {letters}", c)
        if places < 1 or len(letters) > n or c.shape not in ((), (places,)):
            raise ValueError(
                f"spin_chain: {letters!r} has {max(places, 0)} places in a chain of {n}: its coefficient is "
                f"a number or of shape ({max(places, 0)},); got {c.shape}."
            )
        with jax.ensure_compile_time_eval():
            c = jnp.broadcast_to(c, (places,))
            for j in range(places):
                sites = {(j + k) % n: _SPIN[s] for k, s in enumerate(letters) if s != "I"}
                parts.append(_in_precision_of(c, kron((2,) * n, sites)).scaled(c[j]))
    return sum(parts[1:], parts[0])


def _in_precision_of(c: Array, A: Diagonals) -> Diagonals:
    """A, real or complex as it is, in single or double precision as c is."""
    kinds = jnp.finfo(c.dtype).dtype, jnp.result_type(c.dtype, jnp.complex64)
    return jax.tree.map(lambda D: D.astype(kinds[jnp.iscomplexobj(D)]), A)


def modes(levels: Sequence[int], factors: Mapping[int, str]) -> Diagonals:
    """A product of operators of bosonic modes, each cut off at some levels.

    - `levels`: how many levels each mode has, the first mode's index the slowest.
    - `factors`: for some modes, by number, a string of ``a``, ``+`` (a's adjoint) and ``n``, as they stand in
      the product: ``{0: "+a"}`` is the number of photons in mode 0, ``{0: "+", 1: "a"}`` a hop to it.

    Products are those of the matrices after the cut. Returns a real operator; they add and scale. Raises
    `ValueError` for other letters.

    >>> hop = cd.modes((2, 3), {0: "+", 1: "a"})
    >>> H = 0.5 * cd.modes((2, 3), {1: "n"}) + hop + hop.adjoint()
    >>> cd.linalg.is_hermitian(H), H.shape
    (True, (6, 6))
    """
    matrices = {}
    for mode, letters in factors.items():
        if not letters or set(letters) - {"a", "+", "n"}:
            raise ValueError(f"modes: factors are strings of a, + and n, got {letters!r}.")
        if not 0 <= mode < len(levels):
            raise ValueError(f"modes: there is no mode {mode} among {len(levels)}.")
        d = int(levels[mode])
        a = np.diag(np.sqrt(np.arange(1.0, d)), 1)
        of = {"a": a, "+": a.T, "n": np.diag(np.arange(float(d)))}
        matrices[mode] = np.linalg.multi_dot([np.eye(d), *[of[s] for s in letters], np.eye(d)])
    return kron(levels, matrices)
