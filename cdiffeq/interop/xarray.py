"""Results with labelled axes, as datasets of xarray.

Arrays of xarray are taken wherever the library takes arrays, as anything is that NumPy reads; their labels
don't come back by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cdiffeq import _errors, ode, schrodinger


def to_xarray(
    result: Any,
    *,
    batch: Sequence[str] | None = None,
    levels: Sequence[Any] | None = None,
    exp_ops: Sequence[str] | None = None,
    time_unit: str | None = None,
) -> Any:
    """The `xarray.Dataset` of a result, with the axes labelled.

    - `result`: a `Result` of `cd.sesolve` or `cd.mesolve`, or a `Solution` of `cd.ode.solve`.
    - `batch`: names for the axes of a batch of states, in their order; ``batch_0``, ... by default.
    - `levels`: labels of the basis states; 0, 1, ... by default. `exp_ops`: of the expectation values.
    - `time_unit`: what times are in, kept as the attribute ``units`` of the coordinate ``time``.

    Of a `Result` the dataset holds ``states`` (time, *batch, level), or (time, *batch, level, level_right)
    for density matrices, and ``expects`` (exp_op, *batch, time) if there are any. Of a `Solution` it holds
    each leaf of ``ys`` by its name in the pytree, ``y`` for a single array, as (time, y_0, y_1, ...), and
    each leaf of ``cost``. The counts of `.stats` and `.success` are attributes. Numbers stay complex: for a
    netCDF file, which has none, take ``.real`` and ``.imag``.

    Raises `TypeError` for another object and for traced results, `ValueError` for names or labels of the
    wrong number and for results that are batched by `jax.vmap` (convert one at a time), `ImportError`
    without xarray.

    >>> result = cd.sesolve([[0.0, 1.0], [1.0, 0.0]], np.eye(2), [0.0, 1.0], exp_ops=[np.diag([1.0, -1.0])])
    >>> data = cd.interop.xarray.to_xarray(result, batch=["start"], levels=["g", "e"], exp_ops=["sz"])
    >>> {name: variable.dims for name, variable in data.items()}
    {'states': ('time', 'start', 'level'), 'expects': ('exp_op', 'start', 'time')}
    >>> round(float(data.expects.sel(exp_op="sz", start=0, time=1.0).real), 6)
    -0.416147
    """
    xarray = _xarray()
    if not isinstance(result, schrodinger.Result | ode.Solution):
        raise TypeError(f"to_xarray: expected a Result or a Solution, got {type(result).__name__}.")
    if any(_errors.is_traced(leaf) for leaf in jax.tree.leaves(result)):
        raise TypeError("to_xarray: result is traced: convert outside of jax.jit, grad and vmap.")
    if np.ndim(result.ts) != 1:
        raise ValueError(
            f"to_xarray: ts has shape {np.shape(result.ts)}, so that this is a batch of results: pick one "
            "with jax.tree.map(lambda a: a[0], result)."
        )
    unit = {} if time_unit is None else {"units": time_unit}
    coords: dict[str, Any] = {"time": ("time", np.asarray(result.ts), unit)}
    if isinstance(result, schrodinger.Result):
        variables, labels = _of_result(result, batch, levels, exp_ops)
        coords |= labels
    else:
        given = dict(batch=batch, levels=levels, exp_ops=exp_ops)
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"to_xarray: {name} is for a Result; this is a Solution.")
        variables = _of_solution(result)
    stats = {name: int(count) for name, count in vars(result.stats).items()}
    return xarray.Dataset(variables, coords, stats | {"success": int(result.success)})


def _of_result(
    result: schrodinger.Result, batch: Any, levels: Any, exp_ops: Any
) -> tuple[dict, dict]:
    """The variables (dimensions, values) and coordinates of a solution in quantum dynamics."""
    states, expects = np.asarray(result.states), np.asarray(result.expects)
    axes = expects.ndim - 2  # of the batch; what else states have are those of one state
    batch = [f"batch_{i}" for i in range(axes)] if batch is None else list(batch)
    if len(batch) != axes:
        raise ValueError(f"to_xarray: the states have {axes} axes of a batch, batch names {batch}.")
    levels = _labels("levels", levels, states.shape[-1])
    state_dims = ["level", "level_right"][: states.ndim - 1 - axes]
    variables: dict[str, Any] = {"states": (["time", *batch, *state_dims], states)}
    coords = dict.fromkeys(state_dims, levels)
    if len(expects):
        variables["expects"] = (["exp_op", *batch, "time"], expects)
        coords["exp_op"] = _labels("exp_ops", exp_ops, len(expects))
    return variables, coords


def _of_solution(solution: ode.Solution) -> dict[str, Any]:
    """The variables (dimensions, values) of the solution of an initial value problem."""
    variables = {}
    for kind, tree in (("y", solution.ys), ("cost", solution.cost)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
            name = ".".join(parts if kind == "y" and parts else [kind, *parts])
            dims = ["time", *(f"{name}_{i}" for i in range(leaf.ndim - 1))]
            variables[name] = (dims, np.asarray(leaf))
    return variables


def _labels(name: str, labels: Sequence[Any] | None, count: int) -> list[Any]:
    labels = list(range(count)) if labels is None else list(labels)
    if len(labels) != count:
        raise ValueError(f"to_xarray: {name} has {len(labels)} labels for {count}.")
    return labels


def _xarray() -> Any:
    try:
        import xarray
    except ImportError as error:
        raise ImportError("cdiffeq.interop.xarray needs xarray: pip install xarray.") from error
    return xarray
