r"""The Lindblad master equation, d rho/dt = -i [H, rho] + sum_j D[L_j] rho, with hbar = 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from cdiffeq._arrays import as_array, as_times, is_qobj, require_finite
from cdiffeq._errors import is_traced, poison, raise_if
from cdiffeq.linalg._action_taylor import Taylor
from cdiffeq.linalg._arnoldi import two_norm
from cdiffeq.linalg._operator import Operator
from cdiffeq.linalg._spectrum import probes
from cdiffeq.ode._solve import solve
from cdiffeq.schrodinger._grid import Order, make_grid, order_pins
from cdiffeq.schrodinger._hamiltonian import Constant, Hamiltonian, Pwc, as_dense, as_hamiltonian
from cdiffeq.schrodinger._lindblad import (
    apply_unformed,
    as_jumps,
    bound_formed,
    bound_unformed,
    dense_hamiltonian,
    exponents,
    gathered,
    joined,
    make_operators,
    real_generator,
    stack,
    to_density,
    to_real,
    unformed,
)
from cdiffeq.schrodinger._lindblad_action import Action, act, short_steps, step_norms
from cdiffeq.schrodinger._magnus import Exponential, Magnus
from cdiffeq.schrodinger._options import block_size, matrix_method, resolve_tolerances
from cdiffeq.schrodinger._propagate import Product, propagate
from cdiffeq.schrodinger._result import Result, Stats, finite_at, first_failure
from cdiffeq.schrodinger._steps import choose_steps, equal_steps, step_data

# Up to these dimensions the generator, a matrix of n^2 x n^2, is exponentiated, and is formed, by default.
LARGEST_EXPONENTIATED, LARGEST_FORMED = 4, 12


def mesolve(
    H: Any,
    jump_ops: Any,
    rho0: Any,
    ts: Any,
    *,
    exp_ops: Sequence[Any] = (),
    method: Exponential | Magnus | Taylor | diffrax.AbstractSolver | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 16384,
    throw: bool = True,
) -> Result:
    r"""Solve ``d rho/dt = -i [H, rho] + sum_j (L_j rho L_j^H - {L_j^H L_j, rho} / 2)``.

    >>> lower, T1 = np.array([[0.0, 1.0], [0.0, 0.0]]), 2.0
    >>> result = cd.mesolve(np.zeros((2, 2)), [lower / np.sqrt(T1)], [0.0, 1.0], [0.0, 1.0])
    >>> print(result.final_state.real.round(6))
    [[0.393469 0.      ]
     [0.       0.606531]]
    >>> decay = lambda T1: cd.mesolve(0 * lower, [lower / jnp.sqrt(T1)], [0, 1.0], [0, 1.0]).final_state[1, 1]
    >>> print(f"{jax.grad(lambda T1: decay(T1).real)(2.0):.6f}")
    0.151633

    **Arguments**

    - `H`: a Hermitian Hamiltonian (see `constant`, `pwc`, `modulated`, `timecallable`) or a matrix (n, n),
      in units of angular frequency. Operators of `cdiffeq.linalg` (`cd.modes`, `cd.linalg.kron`, sparse
      ones) stay operators beyond n = 12, except in `Exponential` and `Magnus`: rho is multiplied by them at
      the cost of their non-zeros.
    - `jump_ops`: the operators L_j, a sequence, with the roots of their rates in them: ``sqrt(1 / T1) * a``
      for decay, ``sqrt(2 / T_phi) * a^H a`` for pure dephasing. Matrices (n, n) or, where they change in
      time, the same objects as H: ``cd.pwc(edges, sqrt_rates, a)``.
    - `rho0`: initial density matrices (..., n, n), Hermitian, or one ket (n,) for ``|psi><psi|``; of any
      trace. Matrices of QuTiP are taken, too.
    - `ts`: times at which states are saved, (time,), ascending.
    - `exp_ops`: matrices (n, n) whose expectation values ``tr(E rho)`` are wanted.
    - `method`: where H and the jump operators are piecewise constant `Exponential()`, an exponential of the
      generator for each piece, the default for n up to 4; or `linalg.Taylor()`, the action of the
      exponential on the states, the default for n up to 12. Both are exact. Where they vary smoothly in
      between `Magnus(order, steps)`, as in `sesolve`, the default for n up to 4. For everything else the
      default is an explicit Runge-Kutta solver of diffrax, which forms no matrix of n^2 x n^2:
      ``diffrax.Tsit5()``, or ``diffrax.Dopri8()`` for rtol below 1e-6.
    - `rtol`, `atol`: the error of each saved state, in Frobenius norm, is kept below ``atol + rtol |rho|``
      by adaptive `Magnus`; a Runge-Kutta solver keeps the error of each step below. By default 1e-8
      in double, 1e-4 in single precision.
    - `max_steps`: the most step sizes that are tried.
    - `throw`: whether a failed solve raises; if not, it comes back with `success` False and NaN.

    States are Hermitian exactly, keep their trace to rounding, and their eigenvalues are not below zero by
    more than the tolerance. complex64 in, complex64 out.

    **Returns** a `Result`: `.states` (time, ..., n, n), `.expects` (exp_op, ..., time), `.final_state`. Of
    its `.stats`, `matvecs` counts evaluations of the equation's right side where no matrix is formed.

    **Raises**, before the solve where values are known and as it runs where they are traced:
    `ValueError` for shapes that don't fit, numbers that aren't finite, a rho0 or H(t) that isn't Hermitian,
    times that don't ascend, or a method that doesn't suit; `RuntimeError` where `max_steps` is reached or a
    number isn't finite.

    **Derivatives**: jvp, vjp and second derivatives with respect to every matrix, amplitude, edge and
    parameter in H and the jump operators, rho0 and ts. They are the exact derivatives of what was computed,
    by adjoint equations: a costate sigma with ``d sigma/dt = - (K^H sigma + sigma K + sum L^H sigma L)``.
    The gradient of rho0 is that within Hermitian matrices.

    **Cost**: an exponential takes 5 + log2(|G| dt) products of real n^2 x n^2 matrices, Taylor's polynomial
    about 6 |G| dt applications of G, beyond n = 12 without forming it; a Runge-Kutta stage is one. An
    application takes 1 + 2 J products of n x n matrices for J jump operators, of operators 1 + 3 J products
    with n columns, or 2 + 2 J where all jump operators are diagonals of the same sites. A gradient takes 4
    to 6 times as much. For long pieces, |G| dt in the hundreds, take `Exponential()`. **Memory** of a
    gradient: about 2 sqrt(max_steps) states beside a few generators, where they are formed; `Exponential`
    and `Magnus` keep the square root of their own number of steps. A Runge-Kutta solver keeps a state at
    each edge in addition.

    Source: G. Lindblad 1976, doi:10.1007/BF01608499; V. Gorini, A. Kossakowski and E. Sudarshan 1976,
    doi:10.1063/1.522979. Real coordinates are those of the coherence vector.
    """
    H = as_hamiltonian(H)
    n = H.n
    forms_matrices = n <= LARGEST_FORMED or isinstance(method, Exponential | Magnus)
    H = dense_hamiltonian(H, "mesolve") if forms_matrices else H
    jumps = as_jumps(jump_ops, n, "mesolve", dense=forms_matrices)
    rho0 = _density("mesolve: rho0", rho0, n)
    operators = as_observables("mesolve", exp_ops, n)
    given, dtype = common_dtype(H, jumps, rho0)
    ts = as_times(ts, jnp.finfo(dtype).dtype)
    if not is_traced(ts) and np.any(np.diff(ts) < 0):
        raise ValueError("mesolve: ts must ascend: the equation can't be solved backward in time.")
    rtol, atol = resolve_tolerances(
        rtol, atol, 1e-8 if jnp.finfo(dtype).bits == 64 else 1e-4, given
    )
    whole = joined(H, jumps)
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"mesolve: max_steps must be a positive integer, got {max_steps!r}.")
    method = _choose(whole, method, rtol)

    rho0 = jnp.asarray(rho0).astype(dtype)
    result, failure = _solve(
        H, jumps, rho0, ts, order_pins(whole, ts), operators.astype(dtype), (rtol, atol), method, max_steps
    )  # fmt: skip
    if throw:
        return raise_if(result, ~result.success, _error, *failure)
    return poison(result, ~result.success)


@eqx.filter_jit
def _solve(
    H: Hamiltonian,
    jumps: list[Hamiltonian],
    rho0: Complex[Array, "... n n"],
    ts: Float[Array, " time"],
    pins: Order,
    operators: Complex[Array, "exp_op n n"],
    tolerances: tuple[float, float],
    method: Exponential | Magnus | Taylor | diffrax.AbstractSolver,
    max_steps: int,
) -> tuple[Result, tuple[Array, ...]]:
    """The solve, and what goes into the message if it failed: (code, time, max_steps)."""
    grid = make_grid(joined(H, jumps), ts, pins)
    R0 = to_real((rho0 + _adjoint(rho0)) / 2)
    if isinstance(method, diffrax.AbstractSolver):
        solve_with = _runge_kutta
    else:
        solve_with = _taylor if isinstance(method, Taylor) else _exponentials
    R, stats, finished, reached = solve_with(H, jumps, R0, ts, grid, tolerances, method, max_steps)
    states = to_density(R)
    expects = jnp.einsum("eij,t...ji->e...t", operators, states)
    code, time = _diagnose(H, jumps, rho0, grid, ts, states, expects, finished, reached)
    return Result(ts, states, expects, stats, code == 0), (code, time, jnp.asarray(max_steps))


def _choose(
    whole: Hamiltonian,
    method: Exponential | Magnus | Taylor | diffrax.AbstractSolver | None,
    rtol: float,
) -> Exponential | Magnus | Taylor | diffrax.AbstractSolver:
    """The method, by default from the dimension and the kinds of terms in H and the jump operators."""
    n, smooth = whole.n, not all(isinstance(t, Constant | Pwc) for t in whole.terms)
    if method is None and n > LARGEST_EXPONENTIATED:
        if n <= LARGEST_FORMED and not smooth:
            method = Taylor()
        else:
            method = diffrax.Tsit5() if rtol >= 1e-6 else diffrax.Dopri8()
    if isinstance(method, Taylor) and smooth:
        raise ValueError(
            "mesolve: method=Taylor() is for piecewise constant H and jump operators; use Magnus() or "
            "diffrax.Dopri8()."
        )
    if isinstance(method, Taylor | diffrax.AbstractSolver):
        return method
    return matrix_method(whole, method, rtol)


def _exponentials(H, jumps, R0, ts, grid, tolerances, method, max_steps):
    """Exponentials of the generator, in steps from pin to pin or adaptive ones."""
    *batch, n, _ = R0.shape
    R = R0.reshape(-1, n * n).T
    scheme, per_step, saves = method.scheme, len(method.scheme.weights), len(ts)
    params, fixed, generator = make_operators(H, jumps, grid, exponents(scheme, R.dtype))
    silent = diffrax.NoProgressMeter()
    if method.steps is None:
        still = jax.lax.stop_gradient  # the sizes of the steps are held fixed in derivatives
        held, held_grid = still(params), still(grid)
        chosen, _ = choose_steps(
            lambda x: generator(held, fixed, x), held_grid, still(R), scheme.order,
            jnp.asarray(tolerances, R.dtype), max_steps, silent, None,
        )  # fmt: skip
        steps, finished, reached = chosen.steps, chosen.finished, chosen.time
        empty = jnp.sum(grid.lengths == 0)
        attempts, accepted = chosen.attempts - empty, steps.used - 2 * empty
        rejected = attempts - accepted // 2
    else:
        steps, finished, reached = equal_steps(grid, method.steps), jnp.asarray(True), ts[-1]
        accepted = method.steps * jnp.sum(grid.lengths != 0)
        attempts = rejected = jnp.zeros((), jnp.int32)

    rows = len(steps.interval)
    block = block_size(rows, per_step, n * n)
    product = Product(generator, saves, block, False, False, silent)
    xs, slots = step_data(grid, steps.pad(-rows % block, beyond=len(grid.starts)), saves)
    blocks = (steps.used + block - 1) // block
    saved, _ = propagate(params, xs, R, fixed, slots, blocks, product, None)
    exponentials = per_step * (accepted + 3 * attempts)
    counts = (accepted, rejected, exponentials, exponentials * R.shape[1])
    stats = Stats(*(jnp.asarray(a, jnp.int32) for a in counts))
    states = jnp.swapaxes(saved, 1, 2).reshape(saves, *batch, n, n)
    return states, stats, finished, reached


def _taylor(H, jumps, R0, ts, grid, tolerances, method, max_steps):
    """Taylor's polynomial in steps that are short enough for it; exact for piecewise constant terms."""
    *batch, n, _ = R0.shape
    R, saves = R0.reshape(-1, n * n).T, len(ts)
    formed = n <= LARGEST_FORMED
    entries = n**4 if formed else 2 * n * n * (1 + 2 * len(jumps))
    bound: Any = bound_formed if formed else bound_unformed

    def then(operators, t, h):
        if formed:
            return (h * real_generator(*operators(t))).astype(R.dtype)
        H, L = operators(t)
        return unformed(H, L, h)

    def apply(G, R):
        if formed:
            return G @ R
        return apply_unformed(G, R.T.reshape(-1, n, n)).reshape(-1, n * n).T

    params, fixed, operators = make_operators(H, jumps, grid, then)
    xs, slots = step_data(grid, equal_steps(grid, 1), saves)
    held = jax.lax.stop_gradient(params)
    norms = step_norms(bound, lambda x: operators(held, fixed, x), xs)
    most = max(max_steps, len(grid.starts))
    schedule, finished, last = short_steps(norms, slots, most)
    used = jnp.minimum(schedule.ends[-1], most)
    block = max(1, 4096 // entries)
    action = Action(operators, apply, bound, saves, block, -(-most // block))
    blocks = (used + block - 1) // block
    saved = act(params, xs, R, fixed, schedule, blocks, action).saved
    none = jnp.zeros((), jnp.int32)
    stats = Stats(used, none, none, none)
    reached = grid.starts[last]
    return jnp.swapaxes(saved, 1, 2).reshape(saves, *batch, n, n), stats, finished, reached


def _runge_kutta(H, jumps, R0, ts, grid, tolerances, solver, max_steps):
    """`cd.ode.solve` from pin to pin, with an application of the unformed generator for each stage."""
    n = H.n

    def field(t, R, operators):
        H, jumps = operators
        H_t, L = gathered(H(t), [jump(t) for jump in jumps], n)
        return apply_unformed(unformed(H_t, L), R)

    # No step goes across a pin, nor looks at what holds beyond it.
    times = grid.starts + grid.lengths
    rtol, atol = tolerances
    solution = solve(
        field, R0, times, (H, jumps), solver=solver, rtol=rtol, atol=atol, max_steps=max_steps,
        throw=False,
    )  # fmt: skip
    at = jnp.zeros(len(ts), jnp.int32)
    at = at.at[grid.slots].set(jnp.arange(len(times), dtype=jnp.int32), mode="drop")
    done = solution.stats
    stats = Stats(done.steps, done.rejected_steps, jnp.zeros((), jnp.int32), done.evaluations)
    return solution.ys[at], stats, solution.success, ts[-1]


def _diagnose(H, jumps, rho0, grid, ts, states, expects, finished, reached):
    """Zero for success, or what went wrong, and when."""
    arrays, rest = eqx.partition((H, jumps, rho0, grid, ts, states, expects), eqx.is_array)
    held = eqx.combine(jax.lax.stop_gradient(arrays), rest)
    H, jumps, rho0, grid, ts, states, expects = held
    controls = joined(H, jumps).controls
    increasing = jnp.all(jnp.asarray([jnp.all(jnp.diff(c.edges) > 0) for c in controls] or True))
    middles = grid.starts + grid.lengths / 2
    # One after the other: side by side they would be a matrix for each interval.
    hermitian = jax.lax.map(lambda t: is_hermitian(H(t)), middles) | (grid.lengths == 0)
    finite = finite_at(ts, states, expects)
    checks = [
        (~jnp.all(jnp.diff(ts) >= 0), ts[0]), (~increasing, ts[0]), (~is_hermitian(rho0), ts[0]),
        (~jnp.all(hermitian), middles[jnp.argmin(hermitian)]), (~finished, reached),
        (~jnp.all(finite), ts[jnp.argmin(finite)]),
    ]  # fmt: skip
    return first_failure(checks, ts[-1])


def _error(code: Any, time: Any, max_steps: Any) -> Exception:
    """The exception of a failed solve; `code` as `_diagnose` numbers them."""
    match int(code):
        case 1:
            return ValueError("mesolve: ts must ascend.")
        case 2:
            return ValueError("mesolve: the edges of a pwc term must increase.")
        case 3:
            return ValueError("mesolve: rho0 must be Hermitian, or a ket of shape (n,).")
        case 4:
            return ValueError(
                f"mesolve: H(t) is not Hermitian at t = {float(time):.6g}. Decay belongs into jump_ops."
            )
        case 5:
            return RuntimeError(
                f"mesolve: the steps didn't get to the end within max_steps = {int(max_steps)} (those of "
                f"Magnus came to t = {float(time):.6g}). Raise max_steps, loosen rtol and atol, or look "
                "for a jump or infinity of H(t) (put times of jumps among ts)."
            )
        case _:
            return RuntimeError(
                f"mesolve: the state at t = {float(time):.6g} is not finite: H, jump_ops, rho0 or exp_ops "
                "holds NaN or infinity, or the norm of the generator times the step is beyond floating "
                "point."
            )


def is_hermitian(A):
    """Whether A is Hermitian but for rounding; of an operator a pair of products says so."""
    if isinstance(A, Operator):
        x, z = probes(A, 2)
        Ax, Az = A.mv(x), A.mv(z)
        off = jnp.abs(jnp.vdot(z, Ax) - jnp.vdot(Az, x))
        return ~(off > 1e3 * jnp.finfo(A.dtype).eps * (two_norm(Ax) + two_norm(Az)))
    size = jnp.max(jnp.abs(A), initial=0)
    return ~(jnp.max(jnp.abs(A - _adjoint(A)), initial=0) > 1e3 * jnp.finfo(A.dtype).eps * size)


def _is_hermitian_now(A: np.ndarray) -> bool:
    """`is_hermitian`, of known numbers, also inside a jitted function."""
    if not np.issubdtype(A.dtype, np.inexact):
        A = A.astype(float)
    size = np.max(np.abs(A), initial=0)
    largest = np.max(np.abs(A - A.conj().swapaxes(-1, -2)), initial=0)
    return bool(largest <= 1e3 * np.finfo(A.dtype).eps * size)


def _adjoint(A):
    return jnp.conj(jnp.swapaxes(A, -1, -2))


def as_observables(where: str, exp_ops: Sequence[Any], n: int) -> Array:
    """The operators whose expectation values are wanted, (exp_op, n, n)."""
    ops = [as_dense(f"{where}: exp_ops[{i}]", E) for i, E in enumerate(exp_ops)]
    for i, E in enumerate(ops):
        if E.shape != (n, n):
            raise ValueError(
                f"{where}: exp_ops[{i}] must have shape ({n}, {n}) as H has; got {E.shape}."
            )
        require_finite(f"{where}: exp_ops[{i}]", E)
    return stack(ops, n)


def common_dtype(H: Hamiltonian, jumps: Sequence[Hamiltonian], state: Any) -> tuple[Any, Any]:
    """The complex dtype of the data as given, and the one that JAX computes in."""
    given = state.dtype
    kinds = [jax.eval_shape(h, jnp.zeros((), jnp.float32)).dtype for h in (H, *jumps)]
    used = jnp.result_type(jax.dtypes.canonicalize_dtype(given), *kinds, jnp.complex64)
    return jnp.promote_types(given, used), used


def _density(name: str, rho: Any, n: int) -> Any:
    """A density matrix of shape (..., n, n), of which a ket (n,) makes one."""
    if is_qobj(rho):
        rho = rho.full()
        rho = rho[:, 0] if rho.shape[1] == 1 else rho
    rho = rho if isinstance(rho, np.ndarray) or is_traced(rho) else as_array(name, rho)
    shape = jnp.shape(rho)
    if shape != (n,) and shape[-2:] != (n, n):
        raise ValueError(
            f"{name} must have shape (..., {n}, {n}), or ({n},) for a ket; got {shape}."
        )
    require_finite(name, rho)
    if shape == (n,):
        return rho[:, None] * rho.conj()[None, :]
    if not is_traced(rho) and not _is_hermitian_now(np.asarray(rho)):
        raise ValueError(f"{name} must be Hermitian.")
    return rho
