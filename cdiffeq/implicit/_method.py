"""What an algorithm for F(z) = 0 has to be; each is a file of its own, and none writes a derivative."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cdiffeq.implicit._jacobian import Equations
from cdiffeq.linalg._solver import Code, Solver


class Options(eqx.Module):
    """How far to go, and what solves linear systems with the Jacobian."""

    rtol: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    linear_solver: Solver

    def tolerance(self, z: Float[Array, " N"]) -> Float[Array, ""]:
        """The error that is left to every entry of z."""
        return self.atol + self.rtol * largest(z)


class Found(NamedTuple):
    """Where an algorithm ended: the point, a `Code`, and how many steps it took."""

    z: Float[Array, " N"]
    code: Int[Array, ""]
    steps: Int[Array, ""]


class Step(NamedTuple):
    """After one step: the point, F there, an estimate of the largest error in z, and a `Code`."""

    z: Float[Array, " N"]
    f: Float[Array, " N"]
    error: Float[Array, ""]
    code: Int[Array, ""]


class Method(eqx.Module):
    """An algorithm for a system of real equations F(z) = 0 that improves on z step by step.

    - `init(F, z, f)` gives its memory, an empty one, with f = F(z).
    - `step(F, z, f, memory, options)` makes one step, and says how far off it still is.
    """

    @abstractmethod
    def init(self, F: Equations, z: Array, f: Array, options: Options) -> Any:
        """The memory at the start."""

    @abstractmethod
    def step(
        self, F: Equations, z: Array, f: Array, memory: Any, options: Options
    ) -> tuple[Step, Any]:
        """One step, and the memory after it."""

    def find(self, F: Equations, z: Float[Array, " N"], options: Options) -> Found:
        """z with F(z) = 0: steps, until the error is within the tolerances."""

        def going(state):
            step, _, count = state
            close = step.error <= options.tolerance(step.z)
            return ~close & (step.code == Code.SUCCESS) & (count < options.max_steps)

        def advance(state):
            step, memory, count = state
            step, memory = self.step(F, step.z, step.f, memory, options)
            finite = jnp.all(jnp.isfinite(step.z)) & jnp.all(jnp.isfinite(step.f))
            code = first_failure(code_if(~finite, Code.NOT_FINITE), step.code)
            return step._replace(code=code), memory, count + 1

        f = F(z)
        code = code_if(~jnp.all(jnp.isfinite(f)), Code.NOT_FINITE)
        start = Step(z, f, jnp.asarray(jnp.inf, z.dtype), code)
        state = (start, self.init(F, z, f, options), jnp.asarray(0))
        step, _, count = jax.lax.while_loop(going, advance, state)
        close = step.error <= options.tolerance(step.z)
        code = first_failure(step.code, code_if(~close, Code.NOT_CONVERGED))
        return Found(step.z, code, count)


def code_if(failed: Bool[Array, ""], code: int) -> Int[Array, ""]:
    """`code` where `failed`, else success."""
    return jnp.where(failed, code, Code.SUCCESS).astype(jnp.int32)


def first_failure(*codes: Int[Array, ""]) -> Int[Array, ""]:
    """The first code that isn't success, if there is one."""
    first = jnp.asarray(Code.SUCCESS, jnp.int32)
    for code in reversed(codes):
        first = jnp.where(code == Code.SUCCESS, first, code)
    return first


def largest(z: Float[Array, " N"]) -> Float[Array, ""]:
    """The largest modulus of an entry."""
    return jnp.max(jnp.abs(z), initial=0)


def square(f: Float[Array, " N"]) -> Float[Array, ""]:
    """|f|^2; infinite where f isn't a number, so that no such point ever looks good."""
    s = jnp.sum(f**2)
    return jnp.where(jnp.isnan(s), jnp.inf, s)
