"""Calls of NumPy functions on the host, of one system or of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def host_call(fn: Callable[..., Any], like: PyTree[jax.ShapeDtypeStruct], *args: Any) -> Any:
    """``fn(*args)`` in NumPy, when the program runs; the result is shaped as `like`.

    Under `jax.vmap` the host goes from one system of the batch to the next, and what they have in common is
    handed over once.
    """
    args = tuple(map(jnp.asarray, args))
    ranks = [a.ndim for a in args]
    leaves, tree = jax.tree.flatten(like)

    def call(*args):
        args = [np.asarray(a) for a in args]
        leads = [a.shape[: a.ndim - rank] for a, rank in zip(args, ranks, strict=True)]
        batch = np.broadcast_shapes(*leads)
        if not batch:
            return tree.unflatten(_as(fn(*args)))
        lanes = [
            np.broadcast_to(a, batch + a.shape[len(lead) :])
            for a, lead in zip(args, leads, strict=True)
        ]
        out = [np.empty(batch + s.shape, s.dtype) for s in leaves]
        for lane in np.ndindex(batch):
            for whole, part in zip(out, _as(fn(*(a[lane] for a in lanes))), strict=True):
                whole[lane] = part
        return tree.unflatten(out)

    def _as(result):
        return [
            np.asarray(y, s.dtype) for y, s in zip(jax.tree.leaves(result), leaves, strict=True)
        ]

    return jax.pure_callback(call, like, *args, vmap_method="expand_dims")
