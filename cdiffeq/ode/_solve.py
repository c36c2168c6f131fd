"""The front door: any complex vector field, any adjoint method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import optimistix
from diffrax._root_finder import use_stepsize_tol
from jaxtyping import PyTree

from cdiffeq._arrays import as_params, as_state, as_times
from cdiffeq._errors import check_tolerance, is_traced, poison, raise_if
from cdiffeq._flat import Layout, is_complex
from cdiffeq.ode._core import Static, field_parts, solve_with
from cdiffeq.ode._discrete import Discrete
from cdiffeq.ode._interpolated import Interpolated
from cdiffeq.ode._march import Code, Stepping
from cdiffeq.ode._method import AdjointMethod
from cdiffeq.ode._solution import Solution
from cdiffeq.ode._steppers import is_split, make_stepper


def solve(
    f: Callable[[Any, Any, Any], Any] | tuple[Callable[[Any, Any, Any], Any], ...],
    y0: PyTree[Any],
    ts: Any,
    args: PyTree[Any] = None,
    *,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    stiff: bool = False,
    stepsize: float | diffrax.PIDController | None = None,
    adjoint: Any = None,
    dense: bool = False,
    event: Callable[[Any, Any, Any], Any] | None = None,
    cost: Callable[[Any, Any, Any], Any] | None = None,
    max_steps: int = 4096,
    throw: bool = True,
    progress: diffrax.AbstractProgressMeter | None = None,
) -> Solution:
    r"""Solve ``dy/dt = f(t, y, args)`` from ``y(ts[0]) = y0``, for complex y and any f.

    >>> f = lambda t, z, p: p["gain"] * z - (1 + 2j) * jnp.abs(z) ** 2 * z  # Stuart-Landau
    >>> final = lambda p: jnp.abs(cd.ode.solve(f, 0.1 + 0j, [0.0, 20.0], p).ys[-1]) ** 2
    >>> value, gradient = jax.value_and_grad(final)({"gain": 1 + 1j})
    >>> print(f"{value:.5f} {gradient['gain'].real:.5f}")
    1.00000 1.00000

    **Arguments**

    - `f`: the vector field ``(t, y, args) -> dy/dt``; it needn't be holomorphic. May be an Equinox module,
      and may close over arrays. An implicit-explicit solver (KenCarp3 to 5, Sil3) takes a pair
      ``(explicit, implicit)`` of such functions, whose sum is dy/dt.
    - `y0`: the initial state: any pytree of real and complex floating arrays of one precision.
    - `ts`: times at which the state is wanted, shape (time,), ascending or descending; the solve runs from
      the first to the last. f may jump at any of them: no step goes across.
    - `args`: any pytree: arrays, numbers, callables, Equinox modules.
    - `solver`: a solver of diffrax, explicit, diagonally implicit or both. By default Tsit5, for rtol
      below 1e-6 Dopri8, and Kvaerno5 with Newton's method where ``stiff=True``.
    - `rtol`, `atol`: tolerances of one step: its error stays below ``atol + rtol |y|`` in the root mean
      square over all real numbers of the state.
    - `stepsize`: a diffrax `PIDController`; or a float: steps of equal size, no longer than that.
    - `adjoint`: an adjoint method: `Discrete()`, `Interpolated()`, `Backsolve()`, `Reversible()` or
      `ForwardSensitivity()`. By default `Discrete()` for Runge-Kutta solvers, else `Interpolated()`.
    - `dense`: keep every step, so that the solution can be evaluated at any time. Needs `Discrete()`.
    - `event`: a real function ``(t, y, args)``; the solve stops where it changes sign. The time of the
      event has derivatives like everything else.
    - `cost`: a running cost ``(t, y, args)``, a pytree of real or complex numbers; its integral is solved
      for along with y, to the same tolerance, and is returned in `Solution.cost`.
    - `max_steps`: the most steps tried.
    - `throw`: whether a failed solve raises; if not, it comes back with `success` False and NaN.
    - `progress`: a progress meter of diffrax.

    complex64 in, complex64 out; times are of the state's real dtype.

    **Returns** a `Solution`: `.ts`, `.ys` (time first), `.stats`, `.cost`, `.evaluate`.

    **Raises**, before the solve where values are known: `TypeError` for complex times, integer states, and
    where f returns another structure or dtype than y0's (a complex f needs a complex y0: make it complex);
    `ValueError` for another shape, times that aren't in order or aren't finite, and a tolerance below what
    the dtype resolves. When the solve runs: `RuntimeError` where max_steps is reached, the step vanishes, a
    number isn't finite, an implicit step can't be solved; `ValueError` for traced times out of order.

    **Derivatives**: jvp, vjp and second derivatives with respect to y0, ts, and every floating array in
    args or closed over by f, under jit and vmap; never by differentiating the solver's loop, and holding
    nothing holomorphic. See the adjoint methods for cost and memory.

    **Cost**: a step is 6 (Tsit5) or 13 (Dopri8) evaluations of f. **Memory**: the saved states, and about
    2 sqrt(max_steps) states where the adjoint method keeps checkpoints.

    Source: the steps are P. Kidger's diffrax (arXiv:2202.02435), on real and imaginary parts.
    """
    moving = any(map(is_traced, jax.tree.leaves(ts)))
    y0 = as_state("y0", y0)
    layout = Layout.of(y0)
    ts = as_times(ts, layout.dtype)
    _check_tolerances(rtol, atol, layout)
    if not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a positive integer, got {max_steps!r}.")
    solver = _solver(solver, rtol, atol, stiff)
    controller = _controller(stepsize, solver, rtol, atol)
    stepper = make_stepper(_with_tolerances(solver, rtol, atol))
    if adjoint is None:
        adjoint = Discrete() if stepper.tableau is not None else Interpolated()
    if not isinstance(adjoint, AdjointMethod):
        raise TypeError(
            f"adjoint must be an adjoint method such as cd.ode.Discrete(), got {adjoint!r}."
        )
    if dense and not isinstance(adjoint, Discrete):
        raise ValueError(
            f"dense=True keeps every step, and needs adjoint=Discrete(); got {adjoint!r}."
        )
    split = is_split(stepper.tableau)
    if split:
        if not isinstance(f, tuple | list) or len(f) != 2:
            raise TypeError(
                f"f must be a pair of functions (explicit, implicit), whose sum is dy/dt, for "
                f"{type(solver).__name__}, an implicit-explicit method; got {type(f).__name__}."
            )
        if not isinstance(adjoint, Discrete):
            raise TypeError(
                f"adjoint must be Discrete() for an implicit-explicit method, got {adjoint!r}."
            )
    for name, fn in {**field_parts(f, split), "event": event, "cost": cost}.items():
        if fn is not None and not callable(fn):
            raise TypeError(f"{name} must be a function (t, y, args), got {type(fn).__name__}.")
    stepping = Stepping(
        stepper, controller, max_steps=max_steps, meter=progress or diffrax.NoProgressMeter()
    )
    stepping = adjoint.prepare(stepping, dense)
    static = Static((stepping, adjoint, dense, throw, moving))
    solution, failure = solve_with((f, event, cost), y0, ts, as_params(args), static)
    if throw:
        return raise_if(solution, ~solution.success, _error, *failure)
    return poison(solution, ~solution.success)


def _check_tolerances(rtol: Any, atol: Any, layout: Layout) -> None:
    for name, value in (("rtol", rtol), ("atol", atol)):
        if is_traced(value) or not isinstance(value, float | int) or not value >= 0:
            raise ValueError(f"{name} must be a number that isn't negative, got {value!r}.")
    if rtol == 0:
        check_tolerance("atol", atol, layout.dtype)
    else:
        # The message speaks of the dtype that the user gave.
        check_tolerance(
            "rtol", rtol, next((d for d in layout.dtypes if is_complex(d)), layout.dtype)
        )


def _solver(solver: Any, rtol: float, atol: float, stiff: bool) -> Any:
    if solver is None:
        if stiff:
            # diffrax's default, a chord method, gives up so often that more steps are rejected than
            # accepted on strongly nonlinear problems; Newton's method doesn't.
            return diffrax.Kvaerno5(root_finder=optimistix.Newton(rtol=rtol, atol=atol))
        return diffrax.Tsit5() if rtol >= 1e-6 else diffrax.Dopri8()
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(
            f"solver must be a solver of diffrax, such as diffrax.Tsit5(), got {solver!r}."
        )
    known = isinstance(solver, diffrax.AbstractRungeKutta | diffrax.Euler | diffrax.ImplicitEuler)
    ordinary = solver.term_structure is diffrax.AbstractTerm
    if not known or not (ordinary or is_split(getattr(solver, "tableau", None))):
        raise TypeError(
            f"solver={type(solver).__name__}() isn't supported: use a Runge-Kutta method for ordinary "
            "differential equations, explicit, diagonally implicit or both, Euler() or ImplicitEuler()."
        )
    return solver


def _controller(stepsize: Any, solver: Any, rtol: float, atol: float) -> Any:
    adaptive = isinstance(solver, diffrax.AbstractAdaptiveSolver)
    if stepsize is None:
        if not adaptive:
            raise ValueError(
                f"{type(solver).__name__} estimates no errors: pass the size of its steps, stepsize=0.01."
            )
        return diffrax.PIDController(rtol=rtol, atol=atol)
    if isinstance(stepsize, float | int) and not isinstance(stepsize, bool):
        if not 0 < stepsize < float("inf"):
            raise ValueError(f"stepsize must be positive and finite, got {stepsize}.")
        return float(stepsize)
    if isinstance(stepsize, diffrax.PIDController):
        if not adaptive:
            raise ValueError(
                f"{type(solver).__name__} estimates no errors: pass stepsize as a float."
            )
        return stepsize
    raise TypeError(
        f"stepsize must be a float or a diffrax.PIDController, got {stepsize!r}. Put the times of jumps "
        "among ts: no step goes across them."
    )


def _with_tolerances(solver: Any, rtol: Any, atol: Any) -> Any:
    """An implicit solver whose Newton iterations stop at the tolerances of the steps."""
    root_finder = getattr(solver, "root_finder", None)
    wanted = {"rtol": rtol, "atol": atol, "norm": optimistix.rms_norm}
    open_ = [name for name in wanted if getattr(root_finder, name, None) is use_stepsize_tol]
    if not open_:
        return solver
    if is_split(getattr(solver, "tableau", None)) and isinstance(root_finder, diffrax.VeryChord):
        # diffrax's default, a chord method, gives up at every step of some problems, in its own solve, too.
        return eqx.tree_at(lambda s: s.root_finder, solver, optimistix.Newton(rtol=rtol, atol=atol))
    where = lambda s: [getattr(s.root_finder, name) for name in open_]
    return eqx.tree_at(where, solver, [wanted[name] for name in open_])


def _error(code: Any, time: Any, max_steps: Any) -> Exception:
    """The exception of a failed solve."""
    at = f"at t = {float(time):.6g}"
    match int(code):
        case Code.UNORDERED:
            return ValueError("solve: ts must ascend or descend.")
        case Code.MAX_STEPS:
            return RuntimeError(
                f"solve: max_steps = {int(max_steps)} were tried, and the solution has come to {at[3:]}. "
                "Raise max_steps, loosen rtol and atol, or say stiff=True if the equation is stiff."
            )
        case Code.TINY:
            return RuntimeError(
                f"solve: the step size vanished {at}. The solution may be singular there, or f may jump "
                "(put the times of jumps among ts)."
            )
        case Code.NOT_SOLVED:
            return RuntimeError(
                f"solve: the equations of an implicit step could not be solved {at}. Shorten the steps."
            )
        case _:
            return RuntimeError(
                f"solve: the solution is not finite {at}: f returned NaN or infinity, or it blew up."
            )
