r"""A program on complex numbers as one on real numbers: ``z = x + iy`` is computed with as a pair (x, y).

A field of real and imaginary parts in one vector, whose inside is complex, is slow on a CPU: XLA computes
every complex number twice, once for each of its parts, and can't vectorize what it computes. Products with
real numbers and with 1j are taken at face value here, without the zeros that JAX fills in.

Operations without a rule below (functions, loops, whatever is custom) are handed complex numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import PyTree

from cdiffeq._flat import is_complex


class Pair(NamedTuple):
    """A complex array by its parts; None is a part that is zero."""

    re: Any
    im: Any


def split(tree: PyTree[Any]) -> PyTree[Any]:
    """A tree with a `Pair` in place of every complex leaf."""
    part = lambda a: Pair(a.real, a.imag) if is_complex(a.dtype) else a
    return jax.tree.map(part, tree)


def realify(fn: Callable[..., Any], *args: PyTree[Any]) -> Callable[..., Any]:
    """`fn` as a function of `split` arguments, and with a `split` result; traced at the shapes of `args`."""
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    tree = jax.tree.structure(out)

    def program(*args):
        leaves = jax.tree.leaves(args, is_leaf=lambda a: isinstance(a, Pair))
        found = _evaluate(closed.jaxpr, closed.consts, leaves)
        return tree.unflatten(map(_filled, found, closed.jaxpr.outvars))

    return program


def _evaluate(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
    values: dict[Any, Any] = {}

    def read(v: Any) -> Any:
        return _known(v.val, v.aval) if isinstance(v, Literal) else values[v]

    values.update((v, split(c)) for v, c in zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        found = _apply(jaxpr, eqn, [read(v) for v in eqn.invars])
        values.update(zip(eqn.outvars, found, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _known(value: Any, aval: Any) -> Any:
    """A number that stands in the program, without parts that are zero."""
    if not is_complex(aval.dtype):
        return value
    value = np.asarray(value, aval.dtype)
    return Pair(*(part if np.any(part) else None for part in (value.real, value.imag)))


def _apply(jaxpr: Any, eqn: Any, args: list[Any]) -> list[Any]:
    name = eqn.primitive.name
    pairs = any(isinstance(a, Pair) for a in args)
    if name in ("pjit", "jit"):
        inner = eqn.params["jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, args)
    if pairs and name in PARTWISE:
        return _part_by_part(eqn, args)
    found = RULES[name](eqn, *args) if name in RULES else None
    if found is not None:
        return [_broadcast(found, eqn.outvars[0].aval.shape)]
    whole = [_whole(a, v) for a, v in zip(args, eqn.invars, strict=True)]
    variables = [v for v in eqn.invars if not isinstance(v, Literal)]
    one = jaxpr.replace(constvars=[], invars=variables, outvars=eqn.outvars, eqns=[eqn])
    values = [a for a, v in zip(whole, eqn.invars, strict=True) if not isinstance(v, Literal)]
    return [split(a) for a in jax.core.eval_jaxpr(one, (), *values)]


def _filled(a: Any, v: Any) -> Any:
    """The same without None."""
    if not isinstance(a, Pair):
        return a
    zero = jnp.zeros(v.aval.shape, jnp.finfo(v.aval.dtype).dtype)
    return Pair(*(zero if part is None else jnp.asarray(part) for part in a))


def _broadcast(a: Any, shape: Any) -> Any:
    """Of a scalar and an array that was zero only the scalar is left."""
    full = lambda part: None if part is None else jnp.broadcast_to(part, shape)
    return Pair(*map(full, a)) if isinstance(a, Pair) else full(a)


def _whole(a: Any, v: Any) -> Any:
    return jax.lax.complex(*_filled(a, v)) if isinstance(a, Pair) else a


# What does to a complex array what it does to each of its parts.
PARTWISE = {
    "broadcast_in_dim", "concatenate", "copy", "copy_p", "cumsum", "dynamic_slice",
    "dynamic_update_slice", "expand_dims", "pad", "reduce_sum", "reshape", "rev", "select_n", "slice",
    "split", "squeeze", "transpose",
}  # fmt: skip


def _part_by_part(eqn: Any, args: list[Any]) -> list[Any]:
    def part(i):
        mine = [a[i] if isinstance(a, Pair) else a for a in args]
        if all(m is None for a, m in zip(args, mine, strict=True) if isinstance(a, Pair)):
            return [None] * len(eqn.outvars)
        filled = [_filled(a, v) for a, v in zip(args, eqn.invars, strict=True)]
        mine = [a[i] if isinstance(a, Pair) else a for a in filled]
        found = eqn.primitive.bind(*mine, **eqn.params)
        return found if eqn.primitive.multiple_results else [found]

    return list(map(Pair, part(0), part(1)))


def _sum(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return a if b is None else b
    return jnp.add(a, b)


def _minus(a: Any) -> Any:
    return None if a is None else jnp.negative(a)


def _difference(a: Any, b: Any) -> Any:
    return _minus(b) if a is None else a if b is None else jnp.subtract(a, b)


def _times(product: Callable[[Any, Any], Any], a: Pair, b: Pair) -> Pair:
    """The complex product of a real bilinear one."""
    of = lambda x, y: None if x is None or y is None else product(x, y)
    return Pair(_difference(of(a.re, b.re), of(a.im, b.im)), _sum(of(a.re, b.im), of(a.im, b.re)))


def _rule_of_pairs(rule: Callable[..., Any]) -> Callable[..., Any]:
    return lambda eqn, *args: rule(*args) if all(isinstance(a, Pair) for a in args) else None


def _dot(eqn, a, b):
    if not (isinstance(a, Pair) and isinstance(b, Pair)):
        return None
    wanted = eqn.params["preferred_element_type"]
    real = None if wanted is None else jnp.finfo(wanted).dtype
    product = lambda x, y: eqn.primitive.bind(x, y, **eqn.params | {"preferred_element_type": real})
    return _times(product, a, b)


def _quotient(a, b):
    """By a real number only."""
    if b.im is not None or b.re is None:
        return None
    return Pair(*(None if part is None else jnp.divide(part, b.re) for part in a))


def _convert(eqn, a):
    dtype = eqn.params["new_dtype"]
    if not is_complex(dtype):
        return None
    real = jnp.finfo(dtype).dtype
    to = lambda x: None if x is None else jnp.asarray(x).astype(real)
    return Pair(to(a.re), to(a.im)) if isinstance(a, Pair) else Pair(to(a), None)


RULES: dict[str, Callable[..., Any]] = {
    "add": _rule_of_pairs(lambda a, b: Pair(_sum(a.re, b.re), _sum(a.im, b.im))),
    "add_any": _rule_of_pairs(lambda a, b: Pair(_sum(a.re, b.re), _sum(a.im, b.im))),
    "sub": _rule_of_pairs(lambda a, b: Pair(_difference(a.re, b.re), _difference(a.im, b.im))),
    "neg": _rule_of_pairs(lambda a: Pair(_minus(a.re), _minus(a.im))),
    "mul": _rule_of_pairs(lambda a, b: _times(jnp.multiply, a, b)),
    "square": _rule_of_pairs(lambda a: _times(jnp.multiply, a, a)),
    "integer_pow": lambda eqn, a: (
        _times(jnp.multiply, a, a) if isinstance(a, Pair) and eqn.params["y"] == 2 else None
    ),
    "div": _rule_of_pairs(_quotient),
    "conj": lambda eqn, a: Pair(a.re, _minus(a.im)) if isinstance(a, Pair) else Pair(a, None),
    "real": lambda eqn, a: _filled(a, eqn.invars[0]).re,
    "imag": lambda eqn, a: _filled(a, eqn.invars[0]).im,
    "complex": lambda eqn, a, b: Pair(a, b),
    "convert_element_type": _convert,
    "dot_general": _dot,
}
