"""A matrix with a multiple of the identity below it, whose least squares are damped ones of the matrix."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from cdiffeq.linalg._operator import Operator


class Damped(Operator):
    """[A; mu 1], of shape (m + n, n), or its adjoint."""

    operator: Operator
    damping: Float[Array, ""]
    adjointed: bool = eqx.field(static=True, default=False)

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.operator.shape
        return (n, m + n) if self.adjointed else (m + n, n)

    @property
    def dtype(self) -> Any:
        return self.operator.dtype

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return self.mm(x[:, None])[:, 0]

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        if not self.adjointed:
            return jnp.concatenate([self.operator.mm(X), self.damping * X])
        above, below = jnp.split(X, [self.operator.shape[0]])
        return self.operator.adjoint().mm(above) + self.damping * below

    def adjoint(self) -> Damped:
        return Damped(self.operator, self.damping, not self.adjointed)
