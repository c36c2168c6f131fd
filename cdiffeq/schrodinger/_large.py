"""How Hamiltonians without matrices are stepped, by which method."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import diffrax
import jax
import jax.numpy as jnp

from cdiffeq.linalg._action_krylov import Krylov as KrylovAction
from cdiffeq.linalg._bounds import disc
from cdiffeq.linalg._unitary import make_table
from cdiffeq.schrodinger._crank_nicolson import (
    CayleySteps,
    CrankNicolson,
    in_bands,
    with_bandwidth,
)
from cdiffeq.schrodinger._grid import Grid
from cdiffeq.schrodinger._hamiltonian import Constant, Hamiltonian, Pwc
from cdiffeq.schrodinger._magnus import Chebyshev, Exponential, Krylov, Magnus, Scheme
from cdiffeq.schrodinger._matrix_free import (
    ChebyshevSteps,
    KrylovSteps,
    fixed_operators,
    make_exponents,
)
from cdiffeq.schrodinger._propagate import Stepper
from cdiffeq.schrodinger._split import SplitOperator, make_split_steps
from cdiffeq.schrodinger._steps import Attempt, Plan

Large: TypeAlias = Chebyshev | Krylov | SplitOperator | CrankNicolson


def choose_method(H: Hamiltonian, method: Any, rtol: float, hermitian: bool) -> Any:
    """The user's method, or for a Hamiltonian without a matrix the one that suits it; complete with what
    is known of H alone: its order, its bandwidth."""
    if method is None and H.matrix_free:
        method = Chebyshev() if hermitian else Krylov()
    if isinstance(method, Exponential | Magnus) and H.matrix_free:
        raise TypeError(
            f"method={method} forms matrices, but H has operators; use Chebyshev(), Krylov(), "
            "SplitOperator() or CrankNicolson(), or cd.linalg.Operator.to_dense()."
        )
    if isinstance(method, Chebyshev) and not hermitian:
        raise ValueError(
            "method=Chebyshev() is for Hermitian H; with hermitian=False use Krylov()."
        )
    if isinstance(method, CrankNicolson):
        return with_bandwidth(H, method)
    if isinstance(method, Chebyshev | Krylov) and method.order is None:
        return dataclasses.replace(method, order=4 if rtol >= 1e-5 else 6)
    return method


def make_large_steps(
    H: Hamiltonian,
    method: Large,
    dtype: Any,
    grid: Grid,
    hermitian: bool,
    moving: tuple[bool, ...],
) -> tuple[Any, Any, Plan]:
    """The params, the fixed arrays and the `Plan` of a solve."""
    if isinstance(method, SplitOperator):
        params, fixed, stages, stepper_of = make_split_steps(
            H, method, dtype, grid, hermitian, moving
        )
        order, steps = method.order, method.steps
    elif isinstance(method, CrankNicolson):
        assert method.bandwidth is not None
        scheme, steps = Exponential().scheme, method.steps  # H at the middle of the step
        order, stages = scheme.order, 1
        params, fixed, exponents = make_exponents(
            in_bands(H, method.bandwidth), scheme, grid, moving
        )
        stepper_of = lambda saves, meter: CayleySteps(exponents, saves, hermitian, meter)
    else:
        scheme, steps = _schedule(H, method)
        order, stages = scheme.order, len(scheme.weights)
        params, arrays, exponents = make_exponents(H, scheme, grid, moving)
        if isinstance(method, Krylov):
            fixed, action = arrays, KrylovAction(method.dimension)
            stepper_of = lambda saves, meter: KrylovSteps(
                exponents, action, saves, hermitian, meter
            )
        else:
            known = [disc(A) for A in fixed_operators(H)]
            fixed = jax.tree.map(jnp.asarray, (arrays, known, make_table(dtype)))
            stepper_of = lambda saves, meter: ChebyshevSteps(exponents, saves, hermitian, meter)
    stepper = lambda saves, block, meter: stepper_of(saves, meter)
    attempt = lambda params, fixed: _attempt(
        stepper_of(0, diffrax.NoProgressMeter()), params, fixed
    )
    return params, fixed, Plan(order, steps, stages, stepper, attempt)


def _schedule(H: Hamiltonian, method: Chebyshev | Krylov) -> tuple[Scheme, int | None]:
    """The scheme of the steps and how many there are between pins."""
    if all(isinstance(term, Constant | Pwc) for term in H.terms):
        return Exponential().scheme, 1
    assert method.order is not None
    return Magnus(method.order).scheme, method.steps


def _attempt(stepper: Stepper, params: Any, fixed: Any) -> Attempt:
    """What `search_steps` tries."""

    def attempt(psi, x):
        step = lambda psi, i: stepper.forward(
            params, fixed, jax.tree.map(lambda a: a[i : i + 1], x), psi
        )[0]
        return step(psi, 0), step(step(psi, 1), 2)

    return attempt
