r"""The derivative of a system of N real equations F(z) = 0 as an operator, and what solves with it.

In real and imaginary parts of z the real N x N Jacobian J stands for the pair (A, B) = (dF/dz, dF/dzbar):
J x = b is ``A x + B conj(x) = b``, and J^T w = g is ``A^H w + B^T conj(w) = g``. Nothing of it is dropped
where F isn't holomorphic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from cdiffeq.linalg._gmres import GMRES
from cdiffeq.linalg._krylov import KrylovSolver
from cdiffeq.linalg._lu import LU
from cdiffeq.linalg._operator import Function
from cdiffeq.linalg._solver import Solver
from cdiffeq.wirtinger._linear_map import hoist

# A system of equations, all flat and real: z -> F(z).
Equations = Callable[[Float[Array, " N"]], Float[Array, " N"]]

# So many real unknowns may have a dense Jacobian: 0.5 MB of it, and 256 products with it.
DENSE_SIZE = 256

# Newton's steps need no more of a Krylov solver: with a tenth as much it takes more of them, with a tenfold
# accuracy each costs more (R. S. Dembo, S. C. Eisenstat, T. Steihaug 1982, doi:10.1137/0719025).
_NEWTON_RTOL = 1e-2


def linearise(F: Equations, z: Float[Array, " N"]) -> tuple[Float[Array, " N"], Function]:
    """F(z) and its Jacobian there, which holds what it needs of F and is not a matrix."""
    f, push = jax.linearize(F, z)
    pure, _, consts = hoist(push, z)
    return f, Function(lambda consts, v: pure(consts, v), consts, (z.size, z.size), z.dtype)


def default_linear_solver(size: int, rtol: float) -> Solver:
    """LU for small systems, GMRES for large ones."""
    return LU() if size <= DENSE_SIZE else GMRES(rtol=rtol)


def for_steps(solver: Solver) -> Solver:
    """The solver as Newton's steps need it: a Krylov solver may stop early."""
    if isinstance(solver, KrylovSolver) and solver.rtol < _NEWTON_RTOL:
        return dataclasses.replace(solver, rtol=_NEWTON_RTOL)
    return solver
