r"""The steady state of the Lindblad equation.

    -i [H, rho] + sum_j (L_j rho L_j^H - {L_j^H L_j, rho} / 2) = 0,      tr rho = 1

In the real coordinates R of `_lindblad.py` it is ``G R = 0`` with ``e . R = 1``, where e is the identity
matrix. G maps into the matrices of trace zero, ``e . G = 0``, so that both together are one regular system,

    (G + c e e^T / n) R = c e / n,

for any c that isn't zero, if and only if the steady state is unique. Its derivatives are those of
`linalg.solve`.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex

from cdiffeq._errors import raise_if
from cdiffeq.linalg._gmres import GMRES
from cdiffeq.linalg._krylov import KrylovSolver
from cdiffeq.linalg._lu import LU
from cdiffeq.linalg._solve import solve
from cdiffeq.linalg._solver import Solver
from cdiffeq.schrodinger._hamiltonian import Constant, Hamiltonian
from cdiffeq.schrodinger._lindblad import (
    apply_unformed,
    as_jumps,
    bound_unformed,
    dense_hamiltonian,
    real_generator,
    stack,
    to_density,
    unformed,
)
from cdiffeq.schrodinger._mesolve import common_dtype, is_hermitian

# Up to this dimension the generator is formed and factored: 128 MB at 64 in double precision.
LARGEST_FACTORED = 40


def steadystate(H: Any, jump_ops: Any, *, solver: Solver | None = None) -> Complex[Array, "n n"]:
    r"""The density matrix that the Lindblad equation leaves unchanged.

    >>> lower = np.array([[0.0, 1.0], [0.0, 0.0]])
    >>> drive = lambda W: cd.steadystate(W / 2 * jnp.array([[0.0, 1.0], [1.0, 0.0]]), [lower])[1, 1].real
    >>> print(f"{drive(1.0):.6f} {jax.grad(drive)(1.0):.6f}")  # W^2 / (1 + 2 W^2)
    0.333333 0.222222

    **Arguments**

    - `H`: a Hermitian matrix (n, n) or a Hamiltonian of `constant` terms, in units of angular frequency.
    - `jump_ops`: the operators L_j as for `mesolve`, constant in time: matrices (n, n), at least one.
    - `solver`: a solver of `linalg.solve` for real systems of n^2 equations. By default `linalg.LU()` up to
      n = 40, and above it `linalg.GMRES` to a relative residual of 1e-10 (1e-5 in single precision), which
      forms no matrix. Its steps are as many as the slowest rates ask for; a system that it can't solve
      raises, and may be solved by `LU()`.

    **Returns** rho, complex (n, n), Hermitian with trace one; complex64 for single-precision input.

    **Raises** `ValueError` where H or a jump operator changes in time, H isn't Hermitian, or shapes don't
    fit; `RuntimeError` when run if the steady state isn't unique, so that the system is singular to working
    precision (GMRES: if it doesn't converge).

    **Derivatives**: jvp, vjp and second derivatives with respect to H and the jump operators, by the rule of
    `linalg.solve`: one more solve with the same factors. **Cost**: LU 2/3 n^6 real operations, a step of
    GMRES 1 + 2 J products of n x n matrices for J jump operators. **Memory**: two matrices of n^2 x n^2 for
    LU, 150 matrices of n x n for GMRES.

    Source: P. D. Nation 2015, arXiv:1504.06768, for the ways to solve the bordered system.
    """
    H = dense_hamiltonian(H, "steadystate")
    n = H.n
    jumps = as_jumps(jump_ops, n, "steadystate")
    if not jumps:
        raise ValueError("steadystate: without jump operators a steady state isn't unique.")
    for name, operator in [("H", H), *((f"jump_ops[{i}]", L) for i, L in enumerate(jumps))]:
        _require_constant(name, operator)
    _, dtype = common_dtype(H, jumps, jnp.zeros((), jnp.float16))
    if solver is None:
        double = jnp.finfo(dtype).bits == 64
        iterative = GMRES(rtol=1e-10 if double else 1e-5, restart=150, max_steps=3000)
        solver = LU() if n <= LARGEST_FACTORED else iterative
    matrix = jnp.asarray(H(0.0)).astype(dtype)
    L = stack([jnp.asarray(jump(0.0)) for jump in jumps], n).astype(dtype)
    rho, unique = _solve(matrix, L, solver)
    error = lambda: ValueError("steadystate: H must be Hermitian. Decay belongs into jump_ops.")
    rho = raise_if(rho, ~is_hermitian(matrix), error)
    return raise_if(rho, ~unique, lambda: RuntimeError("steadystate: the state isn't unique."))


@eqx.filter_jit
def _solve(H: Array, L: Array, solver: Solver) -> tuple[Array, Bool[Array, ""]]:
    """The steady state, and whether it is the same wherever an iterative solver starts."""
    n = H.shape[-1]
    G = unformed(H, L)
    e = jnp.eye(n, dtype=H.real.dtype)
    c = jax.lax.stop_gradient(bound_unformed(G)) / n  # of the size of G, whatever the units
    if not isinstance(solver, KrylovSolver):
        row = e.reshape(-1)
        A = real_generator(H, L).astype(e.dtype) + c * row[:, None] * row[None, :]
        return to_density(solve(A, c * row, solver).reshape(n, n)), jnp.asarray(True)

    def bordered(R):
        return apply_unformed(G, R) + c * jnp.trace(R) * e

    R = solve(bordered, c * e, solver)
    # A singular system has solutions, too, and an iteration finds the one that is nearest to its start.
    held = jax.lax.stop_gradient
    G, c, start = held((G, c, jax.random.normal(jax.random.key(0), (n, n), e.dtype) / n))
    other = held(solve(bordered, c * e, solver, guess=start))
    return to_density(R), jnp.linalg.norm(held(R) - other) <= 1e-3


def _require_constant(name: str, operator: Hamiltonian) -> None:
    for term in operator.terms:
        if not isinstance(term, Constant):
            raise ValueError(f"steadystate: {name} must not depend on time, but holds {term}.")
