r"""The action of an exponential on vectors, ``y = exp(h A) v``: one rule for every method.

    tangent    dy  = exp(hA) dv + h int_0^1 exp((1-s)hA) dA exp(shA) v ds + dh A y
    adjoint    g_v = exp(hA)^H g,      g_h = <A y, g>,
               g_A = conj(h) int_0^1 l(s) y(s)^H ds,    l(s) = exp((1-s)hA)^H g,  y(s) = exp(shA) v,

where ``g_A`` is never formed: the parameters p of A get the pull-backs of ``l`` along ``p -> A(p) y``. A
method has those integrals in its own form, in the few vectors that it can afford.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, PyTree

from cdiffeq.linalg._operator import Operator
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule

Params: TypeAlias = Any  # a pytree of arrays


class Task(NamedTuple):
    """exp(h A) v as a method meets it: A = of(params) is (n, n), v is (n, k), `state` is from `init`."""

    of: Callable[[Params], Operator]
    params: Params
    state: PyTree[Any]
    v: Inexact[Array, "n k"]
    h: Inexact[Array, ""]

    @property
    def A(self) -> Operator:
        return self.of(self.params)


class Action(eqx.Module):
    """A method for exp(h A) v.

    - `init(A)` gives what all vectors and times share, bounds and norms. It is never differentiated.
    - `compute` gives ``y = exp(hA) v``, and whatever its adjoint wants kept, which mustn't depend on h.
    - `tangent` gives how the two move with the params and with v.
    - `adjoint` gives the gradients of the params and of v from that of y.

    The last two are differentiated by JAX in forward mode, for second derivatives.
    """

    @abstractmethod
    def init(self, A: Operator) -> PyTree[Any]: ...

    @abstractmethod
    def compute(self, task: Task) -> tuple[Inexact[Array, "n k"], PyTree[Array]]: ...

    @abstractmethod
    def tangent(
        self, task: Task, dparams: Params, dv: Inexact[Array, "n k"]
    ) -> tuple[Inexact[Array, "n k"], PyTree[Array]]: ...

    @abstractmethod
    def adjoint(
        self, task: Task, kept: PyTree[Array], g: Inexact[Array, "n k"]
    ) -> tuple[Params, Inexact[Array, "n k"]]: ...


@adjoint_rule(nondiff=("fixed", "state", "method"))
def act(
    params: Params,
    v: Inexact[Array, "n k"],
    h: Inexact[Array, ""],
    fixed: Any,
    state: Any,
    method: Any,
) -> tuple[Inexact[Array, "n k"], PyTree[Array]]:
    """exp(h A) v by a method, with what that keeps; A is put together of `params` and `fixed`.

    v has the dtype of the result. The cotangent of what is kept is taken to be zero.
    """
    return method.compute(_task(params, v, h, fixed, state))


@act.def_tangent
def _tangent(args, out, dargs):
    *args, method = args
    task = _task(*args)
    y, _ = out
    dparams, dv, dh, *_ = dargs
    dy, dkept = method.tangent(task, dparams, dv)
    return dy + dh * task.A.mm(y), dkept


@act.def_adjoint
def _adjoint(args, out, g):
    *args, method = args
    task = _task(*args)
    y, kept = out
    g_params, g_v = method.adjoint(task, kept, g[0])
    return g_params, g_v, jnp.sum(jnp.conj(task.A.mm(y)) * g[0])


def _task(params: Params, v: Array, h: Array, fixed: Any, state: Any) -> Task:
    return Task(lambda params: eqx.combine(params, fixed), params, state, v, h)


def zeros_like(params: Params) -> Params:
    """The gradient of what doesn't depend on the params."""
    return jax.tree.map(jnp.zeros_like, params)


def add_outer(
    task: Task, g_params: Params, l: Inexact[Array, "n k"], y: Inexact[Array, "n k"]
) -> Params:
    """`g_params` and the gradient that the params get from ``l y^H`` as the gradient of A."""
    _, pull = pull_back(lambda params: task.of(params).mm(y), task.params)
    return jax.tree.map(jnp.add, g_params, pull(l)[0])


def rounding(dtype: Any) -> float:
    """Half of eps, the relative error of one operation."""
    return float(jnp.finfo(dtype).eps) / 2


def max_norm(x: Inexact[Array, "..."]) -> Float[Array, ""]:
    """The largest modulus of an entry."""
    return jnp.max(jnp.abs(x), initial=0)
