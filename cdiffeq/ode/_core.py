"""A checked problem as the rule sees it, flat and real, and its solution as the user sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from cdiffeq._flat import Layout, is_complex
from cdiffeq.ode._dense import Dense
from cdiffeq.ode._events import event_time
from cdiffeq.ode._flow import Problem, flow
from cdiffeq.ode._march import Code, Report
from cdiffeq.ode._real import realify, split
from cdiffeq.ode._solution import Solution, Stats
from cdiffeq.ode._steppers import is_split
from cdiffeq.wirtinger._linear_map import hoist


class Static(eqx.Module):
    """What is fixed about a solve, compared by value so that compiled programs are found again."""

    value: Any = eqx.field(static=True)


@eqx.filter_jit
def solve_with(functions: Any, y0: Any, ts: Any, args: Any, static: Static) -> Any:
    """The solution for functions (f, event, cost).

    What is static: (stepping, adjoint, dense, throw, whether ts may have derivatives). With the solution come
    the `Code`, the last time reached and max_steps, for an error message.
    """
    stepping, adjoint, dense, throw, moving = static.value
    f, event, cost = functions
    parts = field_parts(f, is_split(stepping.stepper.tableau))
    for name, part in parts.items():
        _check_field(name, part, ts, y0, args)
    first, *implicit = parts.values()
    zero_cost = None if cost is None else _zero_cost(cost, ts, y0, args)
    state = (y0, zero_cost)
    layout = Layout.of(state)

    direction = jax.lax.stop_gradient(jnp.where(ts[-1] >= ts[0], 1.0, -1.0)).astype(ts.dtype)
    arrays, rest = eqx.partition(args, eqx.is_array)
    tracer, fixed_arrays = eqx.partition(arrays, eqx.is_inexact_array)

    def field(s, flat, moving, still, direction):
        y, _ = layout.unpack(flat)
        full = eqx.combine(moving, still, rest)
        t = direction * s
        dcost = None if cost is None else _like(cost(t, y, full), zero_cost)
        flat = layout.pack((_like(first(t, y, full), y0), dcost))
        for second in implicit:  # of a field that a `SplitField` is made of
            nothing = jax.tree.map(jnp.zeros_like, zero_cost)
            flat = jnp.stack([flat, layout.pack((_like(second(t, y, full), y0), nothing))])
        return direction * flat

    def trigger(s, flat, moving, still, direction):
        y, _ = layout.unpack(flat)
        value = jnp.asarray(event(direction * s, y, eqx.combine(moving, still, rest)))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"event must return a real number, got {value.dtype}{list(value.shape)}."
            )
        return value.astype(flat.dtype)

    flat0 = layout.pack(state)
    s = direction * ts
    operands = (s[0], flat0, tracer, fixed_arrays, direction)
    pure_field, params, fixed = _close(field, operands)
    problem = Problem(pure_field, stepping, adjoint, throw, moving or event is not None)
    when = occurred = None
    if event is not None:
        pure_trigger, event_params, event_fixed = _close(trigger, operands)
        when, occurred = event_time(
            flat0, s[jnp.array([0, -1])], (params, event_params), (fixed, event_fixed),
            problem, pure_trigger,
        )  # fmt: skip
        s = jnp.minimum(s, when)
        when = direction * when
        ts = direction * s
    out = flow(flat0, s, params, fixed, problem)
    report = Report(*out.report)
    ys, costs = layout.unpack(out.ys)
    interpolation = (
        Dense(problem, layout, out.kept, out.ends, out.before, s, direction, params, fixed)
        if dense
        else None
    )
    stats = Stats(
        *(x.astype(jnp.int32) for x in (report.steps, report.rejected, report.evaluations))
    )
    solution = Solution(
        ts, ys, costs, when, occurred, stats, report.code == Code.SUCCESS, interpolation
    )
    return solution, (report.code, direction * report.time, jnp.asarray(stepping.max_steps))


def field_parts(f: Any, split: bool) -> dict[str, Any]:
    """The functions of a field, one or two, by what messages call them."""
    return {"f[0]": f[0], "f[1]": f[1]} if split else {"f": f}


def _close(fn: Callable[..., Any], operands: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """A function (t, y, params, fixed) that closes over no array, its parameters and the rest.

    Complex parameters come as pairs of real ones, and the function computes with those.
    """
    _, _, tracer, fixed_arrays, direction = operands
    pure, _, consts = hoist(fn, *operands)
    program = realify(pure, consts, *operands)
    moving = [eqx.is_inexact_array(c) for c in consts]
    some = lambda kind: [c for c, m in zip(consts, moving, strict=True) if m == kind]

    def closed(s, flat, params, fixed):
        moved, tracer = params
        held, fixed_arrays, direction = fixed
        moved, held = iter(moved), iter(held)
        values = [next(moved if m else held) for m in moving]
        return program(values, s, flat, tracer, fixed_arrays, direction)

    return closed, split((some(True), tracer)), (some(False), fixed_arrays, direction)


def _check_field(name: str, f: Any, ts: Any, y0: Any, args: Any) -> None:
    """Refuses a field whose value isn't shaped like the state, leaf by leaf."""
    dy = eqx.filter_eval_shape(f, ts[0], y0, args)
    if jax.tree.structure(dy) != jax.tree.structure(y0):
        raise TypeError(
            f"{name} must return the structure of y0, {jax.tree.structure(y0)}; got {jax.tree.structure(dy)}."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(y0), jax.tree.leaves(dy), strict=True)
    for (path, y), d in pairs:
        where = jax.tree_util.keystr(path)
        if jnp.shape(d) != y.shape:
            raise ValueError(
                f"{name} returns shape {jnp.shape(d)} for y{where}, whose initial value has shape {y.shape}."
            )
        dtype = jnp.result_type(d)
        if is_complex(dtype) and not is_complex(y.dtype):
            raise TypeError(
                f"{name} returns {dtype} for y{where}, but y0{where} is {y.dtype}: make y0 complex, for "
                "example y0 + 0j."
            )
        if jnp.finfo(jnp.result_type(dtype, y.dtype)).bits != jnp.finfo(y.dtype).bits:
            raise TypeError(
                f"{name} returns {dtype} for y{where}, but y0{where} is {y.dtype}: give y0 and all that f "
                "uses one precision."
            )


def _zero_cost(cost: Any, ts: Any, y0: Any, args: Any) -> Any:
    value = eqx.filter_eval_shape(cost, ts[0], y0, args)
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact) or leaf.shape != ():
            raise TypeError(
                f"cost{jax.tree_util.keystr(path)} must be a real or complex number, got "
                f"{leaf.dtype}{list(leaf.shape)}."
            )
    return jax.tree.map(lambda v: jnp.zeros((), v.dtype), value)


def _like(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), tree, like)
