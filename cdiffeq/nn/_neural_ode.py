r"""y(T) of dy/dt = field(t, y), y(0) = x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from cdiffeq.ode import solve


class NeuralODE(eqx.Module):
    """The layer that takes x to the state at `duration` of ``dy/dt = field(t, y)``, ``y(0) = x``.

    - `field`: a function or Equinox module ``(t, y) -> dy/dt``, holomorphic or not; what is learned.
    - `duration`: the time T, 1 by default.
    - `rtol`, `atol`: tolerances of a step, 1e-3 and 1e-6 by default: a model's own error is larger.
    - `options`: further keywords of `cd.ode.solve`, such as ``adjoint=cd.ode.Backsolve()`` or ``stiff=True``.

    Called with x, an array or pytree of arrays, complex or real, it returns the same; with times, `ts`, whose
    first one counts as that of x, the states at these, with time as the leading axis. `jax.vmap` it over a
    batch. Derivatives, errors, cost and memory are those of `cd.ode.solve`.

    >>> turn = lambda t, y: (1j - jnp.abs(y) ** 2) * y
    >>> layer = cd.nn.NeuralODE(turn, rtol=1e-8, atol=1e-10)
    >>> print(f"{layer(jnp.array(1.0 + 0j)):.4f}")  # exp(i) / sqrt(3)
    0.3119+0.4858j
    """

    field: Callable[[Any, Any], Any]
    duration: float | int
    rtol: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    options: dict[str, Any]

    def __init__(
        self,
        field: Any,
        duration: float | int = 1.0,
        *,
        rtol: float = 1e-3,
        atol: float = 1e-6,
        **options: Any,
    ):
        if not callable(field):
            raise TypeError(
                f"NeuralODE: field must be a function (t, y), got {type(field).__name__}."
            )
        self.field, self.duration, self.options = field, duration, options
        self.rtol, self.atol = rtol, atol

    def __call__(
        self, x: PyTree[Any], ts: Any = None, *, key: PRNGKeyArray | None = None
    ) -> PyTree[Any]:
        times = (0.0, self.duration) if ts is None else ts
        ys = solve(_field, x, times, self.field, rtol=self.rtol, atol=self.atol, **self.options).ys
        return ys if ts is not None else _last(ys)


def _field(t: Any, y: Any, field: Callable[[Any, Any], Any]) -> Any:
    return field(t, y)


def _last(ys: PyTree[Any]) -> PyTree[Any]:
    return jax.tree.map(lambda y: y[-1], ys)
