r"""Functions with a derivative rule of their own: a primal, its tangent and its adjoint.

To first order ``f(p + dp) = f(p) + T dp``, with ``T`` linear over the reals. A rule says how to
apply ``T`` and its adjoint ``T*`` under ``<x, y> = Re sum(conj(x) * y)``; `adjoint_rule` makes of
the three a function with jvp, vjp, vmap, jit and second derivatives.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching

from cdiffeq.wirtinger._linear_map import (
    Derivative,
    Program,
    bind_linear_map,
    hoist,
    instantiate,
    primitive,
)


def adjoint_rule(primal: Callable[..., Any] | None = None, *, nondiff: Sequence[str] = ()) -> Any:
    r"""Decorator: a function whose derivatives are given by a tangent and an adjoint program.

    The primal is an ordinary JAX function, of any pytrees of floating and complex arrays. It gets

    - a **tangent** ``(args, out, dargs) -> dout``: ``T dargs``;
    - an **adjoint** ``(args, out, g) -> gargs``: ``T* g``, a tuple with one entry per
      differentiable argument, where ``g = dL/dx + i dL/dy`` in ``out = x + i y`` and the result is
      in the same convention (`linear_map` conjugates for JAX). A real argument gets the real part.

    ``args`` holds all arguments in order, ``out`` is the primal's value, and ``dargs`` has None in
    the places of `nondiff`. Example, a whole rule in ten lines:

    >>> import jax, jax.numpy as jnp
    >>> @adjoint_rule
    ... def solve(A, b):
    ...     return jnp.linalg.solve(A, b)
    >>> @solve.def_tangent
    ... def _(args, x, dargs):
    ...     (A, b), (dA, db) = args, dargs
    ...     return jnp.linalg.solve(A, db - dA @ x)
    >>> @solve.def_adjoint
    ... def _(args, x, g):
    ...     gb = jnp.linalg.solve(args[0].conj().T, g)
    ...     return -jnp.outer(gb, x.conj()), gb
    >>> A, b = jnp.array([[2.0, 1j], [0.0, 1.0]]), jnp.array([1.0 + 0j, 2.0])
    >>> jax.grad(lambda b: jnp.sum(jnp.abs(solve(A, b)) ** 2))(b)
    Array([0.5+1.j , 5. -0.5j], dtype=complex128)

    No derivative is ever taken of the primal's program, nor is any program transposed by JAX, up to
    and including second derivatives (these are jvps of the tangent and of the adjoint).

    **Arguments**

    - `nondiff`: names of the primal's arguments that aren't differentiated: arrays of any dtype,
      functions, flags. All others must hold floating or complex arrays only. A derivative with
      respect to a non-differentiable argument raises.

    **Raises** `TypeError`: an unknown name in `nondiff`; an integer, boolean or non-array leaf in a
    differentiable argument; a primal that closes over a traced value; at the first derivative of
    any kind, a missing tangent or adjoint, a tangent that isn't shaped like the output, or an
    adjoint that isn't shaped like the arguments. **Cost**: a jvp is the primal and the tangent, a
    vjp the primal and the adjoint. **Memory**: the arguments and the output are kept for the
    adjoint, nothing else.
    """
    if primal is None:
        return functools.partial(adjoint_rule, nondiff=nondiff)
    return AdjointRule(primal, tuple(nondiff))


class AdjointRule:
    """What `adjoint_rule` returns: a callable with `def_tangent` and `def_adjoint`."""

    def __init__(self, primal: Callable[..., Any], nondiff: tuple[str, ...]):
        self.primal = primal
        self.signature = inspect.signature(primal)
        self.names = tuple(self.signature.parameters)
        for name in nondiff:
            if name not in self.names:
                raise TypeError(
                    f"adjoint_rule: nondiff names {name!r}, but {primal.__name__} has the "
                    f"arguments {', '.join(self.names)}."
                )
        self.nondiff = nondiff
        self.tangent: Callable[..., Any] | None = None
        self.adjoint: Callable[..., Any] | None = None
        functools.update_wrapper(self, primal)

    def def_tangent(self, tangent: Callable[..., Any]) -> Callable[..., Any]:
        """Set the tangent program ``(args, out, dargs) -> dout``; used as a decorator."""
        self.tangent = tangent
        return tangent

    def def_adjoint(self, adjoint: Callable[..., Any]) -> Callable[..., Any]:
        """Set the adjoint program ``(args, out, g) -> gargs``; used as a decorator."""
        self.adjoint = adjoint
        return adjoint

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        diff = [
            self._require_inexact(name, value)
            for name, value in bound.arguments.items()
            if name not in self.nondiff
        ]
        fixed = [value for name, value in bound.arguments.items() if name in self.nondiff]
        fixed_arrays, fixed_rest = eqx.partition(fixed, eqx.is_array)

        def merge(diff: Any, fixed: Any) -> tuple[Any, ...]:
            """All arguments in their order."""
            diff, fixed = iter(diff), iter(fixed)
            return tuple(next(fixed if name in self.nondiff else diff) for name in self.names)

        def primal(diff, fixed_arrays):
            values = merge(diff, eqx.combine(fixed_arrays, fixed_rest))
            arguments = dict(zip(self.names, values, strict=True))
            call = inspect.BoundArguments(self.signature, arguments)
            return self.primal(*call.args, **call.kwargs)

        def tangent(residuals, ddiff):
            diff, fixed_arrays, out = residuals
            if self.tangent is None:
                raise TypeError(f"{self._name} has no tangent: use `@{self._name}.def_tangent`.")
            args = merge(diff, eqx.combine(fixed_arrays, fixed_rest))
            dargs = merge(ddiff, [None] * len(self.nondiff))
            return self._require_like_output(self.tangent(args, out, dargs), out)

        def adjoint(residuals, g):
            diff, fixed_arrays, out = residuals
            if self.adjoint is None:
                raise TypeError(f"{self._name} has no adjoint: use `@{self._name}.def_adjoint`.")
            args = merge(diff, eqx.combine(fixed_arrays, fixed_rest))
            return list(self._require_tuple(self.adjoint(args, out, g), len(diff)))

        primal, out, consts = hoist(primal, diff, fixed_arrays)
        if any(isinstance(c, jax.core.Tracer) for c in consts):
            raise TypeError(
                f"{self._name} closes over a traced value, whose derivative would be lost; pass it "
                "as an argument."
            )
        operands, tree = jax.tree.flatten((diff, fixed_arrays))
        diff_tree, out_tree = jax.tree.structure(diff), jax.tree.structure(out)

        def flat_primal(*args):
            return jax.tree.leaves(primal(consts, *tree.unflatten(args)))

        def differential(args, out, dargs):
            residuals = (*tree.unflatten(args), out_tree.unflatten(out))
            value = range(len(args), len(args) + len(out))
            derivative = Derivative(point=range(len(dargs)), value=value)
            ddiff = diff_tree.unflatten(dargs)
            dout = bind_linear_map(tangent, adjoint, residuals, ddiff, derivative=derivative)
            return jax.tree.leaves(dout)

        names = [name for name in self.names if name in self.nondiff]
        outs = rule_p.bind(
            *operands,
            primal=Program(flat_primal),
            differential=differential,
            fixed=tuple(
                f"{self._name}: derivative in the non-differentiable argument {name!r}."
                for name, value in zip(names, fixed_arrays, strict=True)
                for _ in jax.tree.leaves(value)
            ),
        )
        return out_tree.unflatten(outs)

    @property
    def _name(self) -> str:
        return self.primal.__name__

    def _require_inexact(self, name: str, value: Any) -> Any:
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            kind = getattr(leaf, "dtype", None)
            if kind is None and isinstance(leaf, float | complex):
                continue
            if kind is None or not jnp.issubdtype(kind, jnp.inexact):
                got = type(leaf).__name__ if kind is None else f"an array of {kind}"
                where = name + jax.tree_util.keystr(path)
                raise TypeError(
                    f"{self._name}: argument {where} is {got}, which has no derivative. "
                    "Make it floating or complex, or name it in `nondiff`."
                )
        return jax.tree.map(jnp.asarray, value)

    def _require_like_output(self, dout: Any, out: Any) -> Any:
        dout = jax.tree.map(jnp.asarray, dout)
        form = lambda tree: jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
        if form(dout) != form(out):
            raise TypeError(f"{self._name}: the tangent is {form(dout)}, the output {form(out)}.")
        return dout

    def _require_tuple(self, gargs: Any, n: int) -> tuple[Any, ...]:
        if not isinstance(gargs, tuple) or len(gargs) != n:
            got = f"{len(gargs)} entries" if isinstance(gargs, tuple) else type(gargs).__name__
            raise TypeError(
                f"{self._name}: the adjoint must return a tuple with one entry for each of the {n} "
                f"differentiable arguments, got {got}."
            )
        return gargs


# The function itself. A `jax.custom_jvp` would do, but that JAX drops its rule where it partially
# evaluates a scan: a second derivative of a scan would be one of the primal's program.
#
# primal: a Program of the operands, the differentiable ones first
# differential: (args, out, dargs) -> T dargs, flat lists
# fixed: for each of the last operands, what to say if it moves
rule_p = primitive("adjoint_rule", "primal")


def _jvp(args, dargs, *, primal, differential, fixed):
    out = rule_p.bind(*args, primal=primal, differential=differential, fixed=fixed)
    n = len(args) - len(fixed)
    for message, darg in zip(fixed, dargs[n:], strict=True):
        if type(darg) is not ad.Zero:
            raise TypeError(message)
    moving = [instantiate(*pair) for pair in zip(args[:n], dargs[:n], strict=True)]
    return out, differential(list(args), out, moving)


ad.primitive_jvps[rule_p] = _jvp


def _batch(args, dims, *, primal, differential, fixed):
    axes, moving = list(dims), list(dims[: len(args) - len(fixed)])
    mapped = rule_p.bind(
        *args,
        primal=Program(jax.vmap(lambda *args: primal(*args), tuple(dims))),
        differential=jax.vmap(differential, (axes, 0, moving)),
        fixed=fixed,
    )
    return mapped, [0] * len(mapped)


batching.primitive_batchers[rule_p] = _batch
