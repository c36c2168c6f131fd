"""What a solve returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree


class Stats(eqx.Module):
    """What a solve did.

    `steps` were accepted, `rejected_steps` not; `evaluations` of f were made (for an implicit solver one
    a stage is counted, not its Newton iterations).
    """

    steps: Int[Array, ""]
    rejected_steps: Int[Array, ""]
    evaluations: Int[Array, ""]

    def __repr__(self) -> str:
        return "Stats(" + ", ".join(f"{k}={v}" for k, v in vars(self).items()) + ")"


class Solution(eqx.Module):
    """A solution of an initial value problem.

    - `ts`: the times, (time,). After an event all later times are the time of the event.
    - `ys`: the state at these times: the pytree of y0, with time as the leading axis of each leaf.
    - `cost`: the running cost accumulated from ``ts[0]`` to each time, (time,) on each leaf; or None.
    - `event_time`: when the event stopped the solve (``ts[-1]`` if it didn't), or None; `event_occurred`
      tells whether it did.
    - `stats`: what the solve did, `Stats`.
    - `success`: whether it succeeded; if not (seen only with ``throw=False``) all numbers are NaN.
    """

    ts: Float[Array, " time"]
    ys: PyTree[Any]
    cost: PyTree[Any]
    event_time: Float[Array, ""] | None
    event_occurred: Bool[Array, ""] | None
    stats: Stats
    success: Bool[Array, ""]
    dense: Callable[[Array], PyTree[Any]] | None

    def evaluate(self, t: ArrayLike) -> PyTree[Any]:
        """The state at a time, or at an array of times, within the interval that was solved.

        Needs ``dense=True``. `t` is real, of any shape, which comes first in each leaf of the result; NaN
        is returned for times outside. The solver steps to t from the last step before it, so that the
        value is as accurate as the saved ones; derivatives are with respect to t and to all that the
        solution depends on. Raises `ValueError` without ``dense=True``. Cost: a step for each time.

        >>> solution = cd.ode.solve(lambda t, z, _: 1j * z, 1 + 0j, [0.0, 3.0], dense=True)
        >>> print(solution.evaluate(1.0).round(4), np.exp(1j).round(4))
        (0.5403+0.8415j) (0.5403+0.8415j)
        """
        if self.dense is None:
            raise ValueError("evaluate needs a solution of solve(..., dense=True).")
        t = jnp.asarray(t, self.ts.dtype)
        flat = jax.vmap(self.dense)(t.reshape(-1))
        return jax.tree.map(lambda a: a.reshape(*t.shape, *a.shape[1:]), flat)

    def __repr__(self) -> str:
        form = lambda a: f"{a.dtype}{list(a.shape)}"
        ys = jax.tree.map(form, self.ys)
        extra = "" if self.cost is None else f", cost={jax.tree.map(form, self.cost)}"
        if self.event_time is not None:
            extra += f", event_time={self.event_time}"
        return f"Solution(ys={ys}{extra}, {self.stats}, success={self.success})"
