"""Calls of NumPy functions on the host, of one system or of a batch.

`jax.pure_callback` hands over JAX arrays that it makes while the program runs, and to read a large one waits
for a thread of the pool that runs the program: with one core that is for ever. This primitive hands over what
XLA gives it, which are NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax.interpreters import batching, mlir
from jaxtyping import Array


def host_call(
    fn: Callable[..., tuple[Any, ...]], like: Sequence[jax.ShapeDtypeStruct], *args: Any
) -> list[Array]:
    """``fn(*args)`` in NumPy, when the program runs; the results are shaped as `like`.

    The arrays that fn gets are XLA's own, to be read until it returns. It has no derivative. Under
    `jax.vmap` the host goes from one system of the batch to the next.
    """
    args = tuple(map(jnp.asarray, args))
    ranks = tuple(a.ndim for a in args)
    return host_call_p.bind(*args, fn=fn, like=tuple(like), ranks=ranks)


host_call_p = jex.core.Primitive("host_call")
host_call_p.multiple_results = True


def _batch_of(args: Sequence[Any], ranks: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the batch: what stands before the axes that fn knows of."""
    leads = [a.shape[: a.ndim - rank] for a, rank in zip(args, ranks, strict=True)]
    return np.broadcast_shapes(*leads)


def _call(*args: Any, fn: Any, like: Any, ranks: tuple[int, ...]) -> list[np.ndarray]:
    """fn, of every system of the batch."""
    batch = _batch_of(args, ranks)
    out = [np.empty(batch + s.shape, s.dtype) for s in like]
    args = tuple(
        np.broadcast_to(np.asarray(a), batch + a.shape[a.ndim - rank :])
        for a, rank in zip(args, ranks, strict=True)
    )
    for lane in np.ndindex(batch):
        for whole, part in zip(out, fn(*(a[lane] for a in args)), strict=True):
            whole[lane] = part
    return out


@host_call_p.def_impl
def _impl(*args, **params):
    return [jnp.asarray(y) for y in _call(*args, **params)]


@host_call_p.def_abstract_eval
def _shapes(*args, fn, like, ranks):
    batch = _batch_of(args, ranks)
    return [jax.core.ShapedArray(batch + s.shape, s.dtype) for s in like]


def _lower(ctx, *args, **params):
    results, _, _ = mlir.emit_python_callback(
        ctx,
        lambda *args: tuple(_call(*args, **params)),
        None,
        list(args),
        ctx.avals_in,
        ctx.avals_out,
        has_side_effect=False,
        returns_token=False,
    )
    return results


mlir.register_lowering(host_call_p, _lower)


def _batch(args, dims, **params):
    front = lambda a, d: a[None] if d is None else jnp.moveaxis(a, d, 0)
    out = host_call_p.bind(*map(front, args, dims), **params)
    return out, [0] * len(out)


batching.primitive_batchers[host_call_p] = _batch
