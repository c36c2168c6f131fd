r"""A diagonal state-space model, with complex states and an exact step.

    dx/dt = L x + B u,    y = C x + D u,       L = diag(lambda), Re lambda < 0, x(0) = 0

    x_k = exp(lambda d) x_(k-1) + (exp(lambda d) - 1)/lambda B u_k

exactly, where u is u_k during the k-th step of length d.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact, PRNGKeyArray

from cdiffeq.nn._initialisation import complex_dtype, glorot
from cdiffeq.nn._recurrence import linear_recurrence


class DiagonalSSM(eqx.Module):
    r"""A linear state-space model of sequences with diagonal dynamics, solved exactly and in parallel.

    ``DiagonalSSM(in, state, out, key)``; called with u of shape (length, in), real or complex, it returns y
    of shape (length, out), complex. u is held during each step; y_k is the output at the end of the k-th.

    **Parameters**, all learned: `log_decay` and `frequency`, real (state,), with
    ``lambda = -exp(log_decay) + i frequency``, so that every mode decays; `log_step`, the logarithm of d for
    each mode; complex `B` (state, in), `C` (out, state), `D` (out, in). At first the frequencies are pi times
    whole numbers about zero, of both signs as complex signals have them, the decay rates are 1/2, and the
    steps lie between `steps`, evenly on a logarithmic scale: a model of memory between their inverses.

    - `steps`: the shortest and the longest step d at first, 1e-3 and 1e-1 by default.
    - `dtype`: of B, C and D, as for `Linear`; the others are real of the same precision.

    Calling raises `ValueError` for another shape. Derivatives are exact, by `linear_recurrence`.
    **Cost**: length times (2 state + in state + state out) complex multiplications. **Memory** of a gradient:
    two sequences of states.

    Source: A. Gu et al. 2022 (S4D), arXiv:2206.11893; J. T. H. Smith et al. 2023 (S5), arXiv:2208.04933.

    >>> model = cd.nn.DiagonalSSM(1, 8, 2, jax.random.key(0))
    >>> model(jnp.ones((100, 1))).shape
    (100, 2)
    """

    log_decay: Float[Array, " state"]
    frequency: Float[Array, " state"]
    log_step: Float[Array, " state"]
    B: Complex[Array, "state n"]
    C: Complex[Array, "out state"]
    D: Complex[Array, "out n"]

    def __init__(
        self,
        in_size: int,
        state_size: int,
        out_size: int,
        key: PRNGKeyArray,
        *,
        steps: tuple[float | int, float | int] = (1e-3, 1e-1),
        dtype: Any = None,
    ):
        dtype = complex_dtype("DiagonalSSM", dtype)
        real = jnp.finfo(dtype).dtype
        if not 0 < steps[0] <= steps[1]:
            raise ValueError(f"DiagonalSSM: steps must be positive and in order, got {steps}.")
        of_B, of_C, of_D, of_steps = jax.random.split(key, 4)
        self.log_decay = jnp.full(state_size, np.log(0.5), real)
        self.frequency = jnp.asarray(np.pi * (np.arange(state_size) - state_size // 2), real)
        low, high = np.log(steps)
        self.log_step = jax.random.uniform(of_steps, (state_size,), real, low, high)
        self.B = glorot(of_B, (state_size, in_size), dtype)
        self.C = glorot(of_C, (out_size, state_size), dtype)
        self.D = glorot(of_D, (out_size, in_size), dtype)

    def __call__(
        self, u: Inexact[Array, "..."], *, key: PRNGKeyArray | None = None
    ) -> Complex[Array, "length out"]:
        n = self.B.shape[1]
        if u.ndim != 2 or u.shape[1] != n:
            raise ValueError(f"DiagonalSSM: u must have shape (length, {n}), got {u.shape}.")
        rates = jax.lax.complex(-jnp.exp(self.log_decay), self.frequency)
        steps = rates * jnp.exp(self.log_step)
        gain = jnp.expm1(steps) / rates
        x = linear_recurrence(jnp.exp(steps), u @ (gain[:, None] * self.B).T)
        return x @ self.C.T + u @ self.D.T
