r"""Steps of Hamiltonians that are known by their products with states alone.

    psi_{m+1} = exp(-i B_s) ... exp(-i B_1) psi_m,     B_r = sum_j theta_rj A_j,

the A_j are the operators of the Hamiltonian's terms and the theta_rj what the terms' amplitudes come to in
the exponent r of a (Magnus) step. The gradient of B_r, a sum of a few products L P^H of vectors, is never
formed:

    g_theta_rj = <L, A_j P>,     and the numbers in A_j get the pull-back of L along  A_j -> theta_rj A_j P.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Inexact, Int, PyTree

from cdiffeq._errors import is_traced
from cdiffeq.linalg._action import act
from cdiffeq.linalg._action_krylov import Krylov as KrylovAction
from cdiffeq.linalg._arnoldi import two_norm
from cdiffeq.linalg._bounds import disc
from cdiffeq.linalg._operator import Disc, Operator, Sparse, Sum, as_operator, combined
from cdiffeq.linalg._padded import padded
from cdiffeq.linalg._unitary import (
    Plan,
    Table,
    exponential_action,
    exponential_back,
    make_plan,
    norm_is_kept,
)
from cdiffeq.linalg._unitary_march import exponential_march, make_march
from cdiffeq.schrodinger._grid import Grid
from cdiffeq.schrodinger._hamiltonian import Constant, Hamiltonian, Modulated, Pwc, TimeCallable
from cdiffeq.schrodinger._magnus import Scheme
from cdiffeq.schrodinger._propagate import Stepper
from cdiffeq.schrodinger._steps import hoist_step
from cdiffeq.wirtinger._linear_map import pull_back

# Amplitudes from which on memory matters more than time: then the way back is marched.
_LARGE = 2**17


class Exponents(NamedTuple):
    """The exponents of a step, ``B_r = sum_j factors[j][r] operators[j]``."""

    factors: list[Inexact[Array, " s"]]
    operators: tuple[Operator, ...]

    def at(self, r: Int[Array, ""]) -> Sum:
        """B_r."""
        return Sum(tuple(row[r] for row in self.factors), self.operators)

    @property
    def many(self) -> int:
        """s."""
        return self.factors[0].shape[0]


def fixed_operators(H: Hamiltonian) -> list[Operator]:
    """The operators of the terms whose operator doesn't depend on time, in their order."""
    return [
        as_operator("H", t.matrix) for t in H.terms if isinstance(t, Constant | Pwc | Modulated)
    ]


def moving_operators(H: Hamiltonian) -> tuple[bool, ...]:
    """Which of `fixed_operators` hold traced numbers: the others have no derivative, and cost none."""
    return tuple(any(map(is_traced, jax.tree.leaves(A))) for A in fixed_operators(H))


def make_exponents(
    H: Hamiltonian, scheme: Scheme, grid: Grid, moving: tuple[bool, ...]
) -> tuple[PyTree[Array], PyTree[Array], Callable[[Any, Any, Any], Exponents]]:
    """The exponents (params, fixed, x) -> `Exponents` of a step, with their params and fixed arrays.

    The data of a step is x = (time, size, amplitudes of the controls), as for `make_generator`. `params`
    are the numbers of the operators that move, the parameters of the terms' functions, and whatever these
    close over.
    """
    operators = fixed_operators(H)
    # Rows of sparse matrices are put in order once, not in each product.
    is_sparse = lambda a: isinstance(a, Sparse)
    in_order = lambda a: padded(a) if is_sparse(a) else a
    operators = [jax.tree.map(in_order, A, is_leaf=is_sparse) for A in operators]
    arrays, still = eqx.partition(operators, eqx.is_inexact_array)
    nothing = lambda A: jax.tree.map(lambda _: None, A)
    diff = [A if moves else nothing(A) for A, moves in zip(arrays, moving, strict=True)]
    held = [nothing(A) if moves else A for A, moves in zip(arrays, moving, strict=True)]
    held_arrays, static = eqx.partition((held, still), eqx.is_array)

    functions = [
        (t.fn, t.params, getattr(t, "factor", None))
        if isinstance(t, Modulated | TimeCallable)
        else None
        for t in H.terms
    ]
    of_functions, rest = eqx.partition(functions, eqx.is_inexact_array)

    def amplitudes(of_functions, x):
        """For each exponent the factors of the operators, and the operators that depend on time."""
        t, h, controls = x
        given = iter(controls)
        times = [t + c * h for c in scheme.nodes]
        at_nodes, late, of_late = [], [], []
        for term, data in zip(H.terms, eqx.combine(of_functions, rest), strict=True):
            if isinstance(term, Constant):
                at_nodes.append([jnp.ones((), h.dtype)] * len(times))
            elif isinstance(term, Pwc):
                at_nodes.append([next(given)] * len(times))
            elif isinstance(term, Modulated):
                fn, params, _ = data
                at_nodes.append([jnp.asarray(fn(s, params)) for s in times])
            else:
                fn, params, factor = data
                late += [as_operator("H", fn(s, params)) for s in times]
                of_late.append(factor)
        weights = jnp.asarray(scheme.weights, h.dtype)
        early = [h * (weights @ jnp.stack(list(map(jnp.asarray, values)))) for values in at_nodes]
        of_nodes = [h * factor * w for factor in of_late for w in weights.T]
        return [*early, *of_nodes], late

    closed, constant, pure = hoist_step(amplitudes, of_functions, grid)

    def build(params, fixed, x):
        diff, of_functions, closed = params
        held_arrays, constant = fixed
        held, still = eqx.combine(held_arrays, static)
        operators = eqx.combine(diff, held, still)
        factors, late = pure(closed, constant, of_functions, x)
        return Exponents(factors, (*operators, *late))

    return (diff, of_functions, closed), (held_arrays, constant), build


@dataclasses.dataclass(frozen=True, eq=False)
class ChebyshevSteps(Stepper):
    """Steps of exponentials of Hermitian operators by Chebyshev polynomials.

    `fixed` holds what the exponents want, the discs of `fixed_operators`, and the table of coefficients.
    """

    exponents: Callable[[Any, Any, Any], Exponents]
    saves: int
    unitary: bool
    meter: diffrax.AbstractProgressMeter
    block: int = 1

    def forward(self, params, fixed, x, psi):
        arrays, known, table = fixed
        exponents = self.exponents(params, arrays, first(x))

        def apply(r, state):
            psi, kept = state
            B = exponents.at(r)
            plan = _plan(B, known, table)
            after = exponential_action(B.mm, psi, plan, table)
            return after, kept & norm_is_kept(psi, after, plan)

        psi, kept = jax.lax.fori_loop(0, exponents.many, apply, (psi, jnp.asarray(True)))
        return psi, psi[None], _breach(kept, psi)

    def backward(self, params, fixed, x, psi, lam, jumps, g_params):
        arrays, known, table = fixed
        x = first(x)
        exponents = self.exponents(params, arrays, x)

        def back(i, state):
            psi, lam, gradient = state
            r = exponents.many - 1 - i

            def pull(L, P):
                product = lambda params, x: self.exponents(params, arrays, x).at(r).mm(P)
                return pull_back(product, params, x)[1](L)

            B = exponents.at(r)
            plan = _plan(B, known, table, back=True)
            if len(psi) > _LARGE:
                march = make_march(psi.dtype)
                return exponential_march(B.mm, pull, gradient, psi, lam, plan, march)
            return exponential_back(B.mm, pull, gradient, psi, lam, plan, table)

        state = psi, lam + jumps[0], (g_params, jax.tree.map(jnp.zeros_like, x))
        psi, lam, (g_params, g_x) = jax.lax.fori_loop(0, exponents.many, back, state)
        return psi, lam, g_params, jax.tree.map(lambda a: a[None], g_x)


@dataclasses.dataclass(frozen=True, eq=False)
class KrylovSteps(Stepper):
    """Steps of exponentials of any operators by Krylov spaces; derivatives are those of `act`."""

    exponents: Callable[[Any, Any, Any], Exponents]
    action: KrylovAction
    saves: int
    unitary: bool
    meter: diffrax.AbstractProgressMeter
    block: int = 1

    def forward(self, params, fixed, x, psi):
        before, (psi, _) = psi, self._run(params, first(x), psi, fixed)
        if not self.unitary:
            return psi, psi[None], jnp.asarray(jnp.inf, psi.real.dtype)
        size, now = two_norm(before), two_norm(psi)
        allowed = jnp.finfo(size.dtype).eps ** 0.625  # well above the tolerance of a step
        kept = ~jnp.isfinite(size) | (jnp.abs(now - size) <= allowed * size)
        return psi, psi[None], _breach(kept, psi)

    def backward(self, params, fixed, x, psi, lam, jumps, g_params):
        x = first(x)
        exponents = self.exponents(params, fixed, x)
        s = exponents.many
        # Of a step that can't be taken back all states in it are computed again.
        befores = None if self.unitary else self._run(params, x, psi, fixed)[1]

        def back(i, state):
            psi, lam, gradient = state
            r = s - 1 - i
            taken_back = lambda: self._exponential(exponents.at(r), psi, 1j)
            psi = taken_back() if befores is None else befores[r]
            program = lambda params, x, psi: self._exponential(
                self.exponents(params, fixed, x).at(r), psi, -1j
            )
            *more, lam = pull_back(program, params, x, psi)[1](lam)
            return psi, lam, jax.tree.map(jnp.add, gradient, tuple(more))

        state = psi, lam + jumps[0], (g_params, jax.tree.map(jnp.zeros_like, x))
        psi, lam, (g_params, g_x) = jax.lax.fori_loop(0, s, back, state)
        return psi, lam, g_params, jax.tree.map(lambda a: a[None], g_x)

    def _run(self, params, x, psi, fixed):
        """The state after a step, and those before each of its exponentials."""
        exponents = self.exponents(params, fixed, x)

        def apply(psi, r):
            return self._exponential(exponents.at(r), psi, -1j), psi

        psi, befores = jax.lax.scan(apply, psi, jnp.arange(exponents.many))
        return psi, befores

    def _exponential(self, B: Sum, psi: Array, h: complex) -> Array:
        diff, rest = eqx.partition(B, eqx.is_inexact_array)
        return act(diff, psi, jnp.asarray(h, psi.dtype), rest, (), self.action)[0]


def first(x: PyTree[Array]) -> PyTree[Array]:
    """The data of the one step of a block."""
    return jax.tree.map(lambda a: a[0], x)


def _plan(B: Sum, known: list[Disc], table: Table, back: bool = False) -> Plan:
    """The plan of exp(-iB); operators that depend on time are asked for their discs at this time."""
    B = jax.lax.stop_gradient(B)
    late = [disc(A) for A in B.operators[len(known) :]]
    center, radius = combined(B.factors, [*known, *late])
    return make_plan(jnp.real(center).astype(radius.dtype), radius, table, back)


def _breach(kept: Array, psi: Complex[Array, "n k"]) -> Array:
    return jnp.where(kept, jnp.inf, 0).astype(psi.real.dtype)
