r"""The Schrödinger equation, i dpsi/dt = H(t) psi, with hbar = 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from cdiffeq._arrays import as_array, as_times, is_qobj, require_finite
from cdiffeq._errors import is_traced, poison, raise_if
from cdiffeq.linalg._operator import Operator, as_operator
from cdiffeq.schrodinger._grid import Order, make_grid, order_pins
from cdiffeq.schrodinger._hamiltonian import Hamiltonian, as_hamiltonian, as_matrix
from cdiffeq.schrodinger._large import Large, choose_method, make_large_steps
from cdiffeq.schrodinger._magnus import Exponential, Magnus
from cdiffeq.schrodinger._matrix_free import moving_operators
from cdiffeq.schrodinger._options import block_size, matrix_method, resolve_tolerances
from cdiffeq.schrodinger._propagate import Product, propagate
from cdiffeq.schrodinger._result import Result, Stats, finite_at, first_failure
from cdiffeq.schrodinger._steps import (
    Plan,
    dense_attempt,
    equal_steps,
    make_generator,
    search_steps,
    step_data,
)

Method: TypeAlias = Exponential | Magnus | Large


def sesolve(
    H: Any,
    psi0: Any,
    ts: Any,
    *,
    exp_ops: Sequence[Any] = (),
    method: Method | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 16384,
    hermitian: bool = True,
    throw: bool = True,
    progress: diffrax.AbstractProgressMeter | None = None,
) -> Result:
    r"""Solve ``i dpsi/dt = H(t) psi`` from ``psi(ts[0]) = psi0``, with exact derivatives.

    >>> H = cd.constant(np.diag([0.5, -0.5])) + cd.pwc([0.0, np.pi], [1.0], [[0, 0.5], [0.5, 0]])
    >>> result = cd.sesolve(H, [1.0, 0.0], [0.0, np.pi], exp_ops=[np.diag([0.0, 1.0])])
    >>> print(result.expects.real.round(6))
    [[0.       0.316564]]
    >>> duration = lambda t: cd.sesolve(H, [1.0, 0.0], jnp.stack([0.0, t])).final_state[1]
    >>> print(f"{jax.jacfwd(duration)(1.0).imag:.6f}")
    -0.380122

    **Arguments**

    - `H`: a Hamiltonian (see `constant`, `pwc`, `modulated`, `timecallable`) or a matrix (n, n), in units
      of angular frequency.
    - `psi0`: initial states, shape (..., n), real or complex, normalised or not; a QuTiP ket is (n,).
    - `ts`: times at which states are saved, shape (time,), ascending or descending; the solve runs from
      the first to the last, backward in time if they descend.
    - `exp_ops`: matrices (n, n) whose expectation values are wanted.
    - `method`: `Exponential()`, one exponential for each piece, exact where H is piecewise constant: the
      default for sums of `constant` and `pwc` terms. `Magnus(order, steps)` for H that vary smoothly
      in between; the default for these is order 4 where rtol >= 1e-5 and order 6 below, adaptive. For
      operators `Chebyshev`, the default, `Krylov`, the default with ``hermitian=False``, `SplitOperator`
      and `CrankNicolson`.
    - `rtol`, `atol`: the error of each saved state, in norm, is kept below ``atol + rtol |psi|``, for
      adaptive `Magnus` and Hermitian H; rounding adds about eps times the number of steps. By default
      1e-8 in double, 1e-4 in single precision; one of them may be 0.
    - `max_steps`: the most step sizes that adaptive `Magnus` may try.
    - `hermitian`: a promise that the whole of H(t) is Hermitian, checked as the solve runs. False is for
      decay terms and absorbing potentials: nothing is assumed, and gradients use checkpoints.
    - `throw`: whether a failed solve raises; if not, it comes back with `success` False and NaN.
    - `progress`: a progress meter of diffrax, such as ``diffrax.TextProgressMeter()``.

    The dtype of the states is the complex type of `psi0` and H together: complex64 in, complex64 out.

    **Returns** a `Result`: `.states` (time, ..., n), `.expects` (exp_op, ..., time), `.final_state`.

    **Raises**, before the solve where values are known and as it runs where they are traced:
    `ValueError` for shapes that don't fit, numbers that aren't finite, times that don't ascend or
    descend, a tolerance below what the dtype resolves, or a method that doesn't suit H; `ValueError` at
    run time where H(t) isn't Hermitian, naming the time; `RuntimeError` where `max_steps` is reached,
    the step size vanishes, or a number isn't finite.

    **Derivatives**: jvp, vjp and both orders of second derivatives, with respect to every matrix,
    amplitude, edge, parameter, psi0 and ts; also to what functions in H close over. They are the exact
    derivatives of what was computed (step sizes held fixed as fractions of their interval), by the
    Fréchet derivative of each exponential. At a saved time that coincides with an edge, the derivative
    is one-sided.

    **Cost**: an exponential of an (n, n) matrix takes 5 + log2(|H| dt) matrix products; a gradient takes
    about three times as many in all. **Memory** of a gradient, beyond inputs and outputs: one block of
    exponentials and two states, whatever the number of steps, by running the unitary steps backward;
    with ``hermitian=False`` a number of states that grows as the square root of the steps. Adaptive
    `Magnus` keeps a few numbers for each of 2 max_steps.

    Source: W. Magnus integrators, see `Magnus`; gradients of the divided-difference kind are known from
    optimal control, N. Khaneja et al. 2005, doi:10.1016/j.jmr.2004.11.004.
    """
    H = as_hamiltonian(H)
    n = H.n
    psi0 = _states("psi0", psi0, n)
    ops = [as_matrix(f"exp_ops[{i}]", E) for i, E in enumerate(exp_ops)]
    for i, E in enumerate(ops):
        if E.shape != (n, n):
            raise ValueError(f"exp_ops[{i}] must have shape ({n}, {n}) as H has; got {E.shape}.")
    given, dtype = _dtypes(H, psi0)
    ts = as_times(ts, jnp.finfo(dtype).dtype)
    double = jnp.finfo(dtype).bits == 64
    rtol, atol = resolve_tolerances(rtol, atol, 1e-8 if double else 1e-4, given)
    method = choose_method(H, method, rtol, hermitian)
    if not isinstance(method, Large):
        method = matrix_method(H, method, rtol)
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a positive integer, got {max_steps!r}.")
    meter: diffrax.AbstractProgressMeter = progress or diffrax.NoProgressMeter()
    psi0 = jnp.asarray(psi0).astype(dtype)
    moving = moving_operators(H) if isinstance(method, Large) else ()

    result, failure = _solve(
        H, psi0, ts, order_pins(H, ts), ops, jnp.asarray([rtol, atol], ts.dtype), method, max_steps,
        hermitian, meter, moving,
    )  # fmt: skip
    if throw:
        return raise_if(result, ~result.success, _error, *failure)
    return poison(result, ~result.success)


def propagator(
    H: Any,
    ts: Any,
    *,
    method: Method | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 16384,
    hermitian: bool = True,
    throw: bool = True,
    progress: diffrax.AbstractProgressMeter | None = None,
) -> Complex[Array, "time n n"]:
    r"""The propagators U(t, ts[0]) with ``psi(t) = U psi(ts[0])``, at all of `ts`.

    Arguments, errors, derivatives and memory as for `sesolve`, which it calls with the columns of the
    identity as states. Returns an array (time, n, n), the first of which is the identity. Cost: that of
    `sesolve`, and one product of n x n matrices for each exponential.

    >>> U = cd.propagator([[0.0, 1.0], [1.0, 0.0]], [0.0, np.pi / 2])
    >>> print((1j * U[1]).round(12) + 0)
    [[0.+0.j 1.+0.j]
     [1.+0.j 0.+0.j]]
    """
    H = as_hamiltonian(H)
    basis = jnp.eye(H.n, dtype=jnp.finfo(_dtypes(H, jnp.zeros((), jnp.float16))[1]).dtype)
    result = sesolve(
        H, basis, ts, method=method, rtol=rtol, atol=atol, max_steps=max_steps, hermitian=hermitian,
        throw=throw, progress=progress,
    )  # fmt: skip
    return jnp.swapaxes(result.states, -1, -2)


@eqx.filter_jit
def _solve(
    H: Hamiltonian,
    psi0: Complex[Array, "... n"],
    ts: Float[Array, " time"],
    pins: Order,
    ops: list[Any],
    tolerances: Float[Array, "2"],
    method: Method,
    max_steps: int,
    hermitian: bool,
    meter: diffrax.AbstractProgressMeter,
    moving: tuple[bool, ...],
) -> tuple[Result, tuple[Array, ...]]:
    """The solve, and what goes into the message if it failed: (code, time, steps tried)."""
    *batch, n = psi0.shape
    psi = psi0.reshape(-1, n).T
    # The initial state isn't kept among what is saved, where it would take memory there and back.
    given = 1 if len(ts) > 1 else 0
    saves = len(ts) - given
    grid = make_grid(H, ts, pins)
    grid = grid._replace(slots=jnp.where(grid.slots < given, saves, grid.slots - given))
    make: Any = make_large_steps if isinstance(method, Large) else _dense_steps
    params, fixed, plan = make(H, method, psi.dtype, grid, hermitian, moving)
    meter_state = meter.init()

    if plan.steps is None:
        still = jax.lax.stop_gradient  # the sizes of the steps are held fixed in derivatives
        attempt = plan.attempt(*still((params, fixed)))
        chosen, meter_state = search_steps(
            attempt, still(grid), still(psi), plan.order, still(tolerances), max_steps, meter,
            meter_state,
        )  # fmt: skip
        steps, attempts = chosen.steps, chosen.attempts
        finished, reached = chosen.finished, chosen.time
        meter_of_product: diffrax.AbstractProgressMeter = diffrax.NoProgressMeter()
        empty = jnp.sum(grid.lengths == 0)
        attempts = attempts - empty
        accepted = steps.used - 2 * empty
    else:
        steps = equal_steps(grid, plan.steps)
        finished, reached = jnp.asarray(True), ts[-1]
        meter_of_product = meter
        attempts = jnp.zeros((), jnp.int32)
        accepted = plan.steps * jnp.sum(grid.lengths != 0)

    rows = len(steps.interval)
    block = (
        block_size(rows, plan.exponentials, n) if isinstance(method, Exponential | Magnus) else 1
    )
    stepper = plan.stepper(saves, block, meter_of_product)
    xs, slots = step_data(grid, steps.pad(-rows % block, beyond=len(grid.starts)), saves)
    blocks = (steps.used + block - 1) // block
    saved, breach = propagate(params, xs, psi, fixed, slots, blocks, stepper, meter_state)
    meter.close(jax.lax.optimization_barrier((meter_state, breach))[0])

    shaped = lambda psis: jnp.swapaxes(psis, 1, 2).reshape(len(psis), *batch, n)
    states = jnp.concatenate([shaped(psi[None, :, :]), shaped(saved)]) if given else shaped(saved)
    expects = _expectations(ops, states)
    code, time = _diagnose(H, ts, states, expects, breach, xs, finished, reached)
    exponentials = plan.exponentials * (accepted + 3 * attempts)
    stats = Stats(
        accepted,
        attempts - accepted // 2 if plan.steps is None else jnp.zeros((), jnp.int32),
        exponentials,
        exponentials * psi.shape[1],
    )
    stats = jax.tree.map(lambda a: a.astype(jnp.int32), stats)
    return Result(ts, states, expects, stats, code == 0), (code, time, jnp.asarray(max_steps))


def _dense_steps(H, method, dtype, grid, hermitian, moving):
    """How small dense systems are stepped: the params, the fixed arrays and the `Plan`."""
    scheme = method.scheme
    params, fixed, generator = make_generator(H, scheme, dtype, grid)
    parallel = _in_parallel(H.n, hermitian)
    stepper = lambda saves, block, meter: Product(
        generator, saves, block, hermitian, parallel, meter
    )
    attempt = lambda params, fixed: dense_attempt(lambda x: generator(params, fixed, x))
    plan = Plan(scheme.order, method.steps, len(scheme.weights), stepper, attempt)
    return params, fixed, plan


def _expectations(
    ops: list[Any], states: Complex[Array, "time ... n"]
) -> Complex[Array, "exp_op ... time"]:
    """<psi|E|psi> of each operator, one after the other where they aren't all arrays."""
    dtype, n = states.dtype, states.shape[-1]
    if not any(isinstance(E, Operator) for E in ops):
        E = jnp.stack(ops).astype(dtype) if ops else jnp.zeros((0, n, n), dtype)
        return jnp.einsum("t...i,eij,t...j->e...t", states.conj(), E, states)
    of = lambda E: jnp.sum(states.conj() * (as_operator("E", E) @ states), axis=-1)
    return jnp.moveaxis(jnp.stack([of(E).astype(dtype) for E in ops]), 1, -1)


def _diagnose(H, ts, states, expects, breach, xs, finished, reached):
    """Zero for success, or what went wrong, and when."""
    edges = [jnp.diff(control.edges) for control in H.controls]
    edges, ts, states, expects, breach, xs = jax.lax.stop_gradient(
        (edges, ts, states, expects, breach, xs)
    )
    ordered = jnp.all(jnp.diff(ts) >= 0) | jnp.all(jnp.diff(ts) <= 0)
    increasing = jnp.all(jnp.asarray([jnp.all(d > 0) for d in edges] or True))
    breached = jnp.isfinite(breach)
    breach_time = xs[0][jnp.where(breached, breach, 0).astype(jnp.int32)]
    finite = finite_at(ts, states, expects)
    checks = [
        (~ordered, ts[0]), (~increasing, ts[0]), (breached, breach_time), (~finished, reached),
        (~jnp.all(finite), ts[jnp.argmin(finite)]),
    ]  # fmt: skip
    return first_failure(checks, ts[-1])


def _error(code: Any, time: Any, max_steps: Any) -> Exception:
    """The exception of a failed solve; `code` as `_diagnose` numbers them."""
    match int(code):
        case 1:
            return ValueError("sesolve: ts must ascend or descend.")
        case 2:
            return ValueError("sesolve: the edges of a pwc term must increase.")
        case 3:
            return ValueError(
                f"sesolve: H(t) is not Hermitian at t = {float(time):.6g}, though hermitian=True. Pass "
                "hermitian=False if it is meant to be so."
            )
        case 4:
            return RuntimeError(
                f"sesolve: the adaptive steps came no further than t = {float(time):.6g}, in at most "
                f"max_steps = {int(max_steps)} attempts or down to steps as small as rounding. Raise "
                "max_steps, loosen rtol and atol, or look for a jump or infinity of H(t) there (put "
                "times of jumps among ts)."
            )
        case _:
            return RuntimeError(
                f"sesolve: the state at t = {float(time):.6g} is not finite: H, psi0 or exp_ops holds NaN "
                "or infinity, or the norm of H times the step is beyond floating point."
            )


def _in_parallel(n: int, hermitian: bool) -> bool:
    """Products of many small matrices are formed by a parallel scan where there is a GPU for it."""
    return hermitian and n <= 64 and jax.default_backend() != "cpu"


def _states(name: str, psi: Any, n: int) -> Any:
    if is_qobj(psi):
        if psi.shape[1] != 1:
            raise ValueError(f"{name} must be a ket, but is a Qobj of shape {psi.shape}.")
        psi = psi.full()[:, 0]
    psi = psi if isinstance(psi, np.ndarray) or is_traced(psi) else as_array(name, psi)
    shape = jnp.shape(psi)
    if not shape or shape[-1] != n:
        raise ValueError(
            f"{name} must have shape (..., {n}) for an H of dimension {n}; got {shape}."
        )
    require_finite(name, psi)
    return psi


def _dtypes(H: Hamiltonian, psi0: Any) -> tuple[Any, Any]:
    """The complex dtype of the data as given, and the one that JAX computes in."""
    given = np.asarray(psi0).dtype if not hasattr(psi0, "dtype") else psi0.dtype
    of_H = jax.eval_shape(H, jnp.zeros((), jnp.float32)).dtype
    used = jnp.result_type(jax.dtypes.canonicalize_dtype(given), of_H, jnp.complex64)
    return jnp.promote_types(given, used), used
