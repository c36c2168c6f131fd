"""What solves return, and how they say that they failed."""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int


class Stats(eqx.Module):
    """What a solve did: counts of accepted and rejected steps, exponentials, matrix-vector products.

    Each matrix exponential is counted once, and so is its product with each state of the batch; the
    search for adaptive step sizes is counted in.
    """

    steps: Int[Array, ""]
    rejected_steps: Int[Array, ""]
    exponentials: Int[Array, ""]
    matvecs: Int[Array, ""]

    def __repr__(self) -> str:
        return "Stats(" + ", ".join(f"{k}={v}" for k, v in vars(self).items()) + ")"


class Result(eqx.Module):
    """A solution of the Schrödinger equation.

    - `ts`: the saved times, (time,).
    - `states`: psi at these times, (time, ..., n).
    - `expects`: <psi|E|psi> for each of `exp_ops`, (exp_op, ..., time), complex.
    - `stats`: what the solve did, `Stats`.
    - `success`: whether it succeeded; if not (seen only with ``throw=False``) all numbers are NaN.
    """

    ts: Float[Array, " time"]
    states: Complex[Array, "time ... n"]
    expects: Complex[Array, "exp_op ... time"]
    stats: Stats
    success: Bool[Array, ""]

    @property
    def final_state(self) -> Complex[Array, "... n"]:
        """The state at the last time, (..., n)."""
        return self.states[-1]

    def __repr__(self) -> str:
        form = lambda a: f"{a.dtype}{list(a.shape)}"
        return (
            f"Result(states={form(self.states)}, expects={form(self.expects)}, {self.stats}, "
            f"success={self.success})"
        )


def finite_at(ts: Array, states: Array, expects: Array) -> Bool[Array, " time"]:
    """Whether all that is returned of each time is finite."""
    at_time = lambda a: jnp.all(jnp.isfinite(a.reshape(len(ts), -1)), axis=1)
    return at_time(states) & at_time(jnp.moveaxis(expects, -1, 0))


def first_failure(
    checks: Sequence[tuple[Bool[Array, ""], Float[Array, ""]]], end: Float[Array, ""]
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """The number, from one, and the time of the first pair (failed, when) that failed, or (0, end)."""
    code, time = jnp.zeros((), jnp.int32), end
    for i, (bad, when) in reversed(list(enumerate(checks, start=1))):
        code, time = jnp.where(bad, i, code), jnp.where(bad, when, time)
    return code, time
