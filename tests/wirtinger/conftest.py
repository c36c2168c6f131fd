"""Every way in which JAX takes a derivative of first or second order, as a fixture."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest


def _dot(a: Any, b: Any) -> jax.Array:
    terms = jax.tree.map(lambda x, y: jnp.real(jnp.sum(x * y)), a, b)
    return jnp.asarray(sum(jax.tree.leaves(terms)))


def _scaled(point: Any, s: Any) -> Any:
    return jax.tree.map(lambda x: x * s, point)


def _stack(point: Any) -> Any:
    return jax.tree.map(lambda x: jnp.stack([x, 0.7 * x, 1.3 * x]), point)


def _curve(L: Callable, p: Any, d: Any) -> Callable:
    """L as a function of two real numbers."""
    return lambda s: L(jax.tree.map(lambda x, y: x * s[0] + y * s[1], p, d))


def _in_a_scan(L: Callable) -> Callable:
    body = lambda p, total: (total + L(_scaled(p, 1 + 0.1 * jnp.sin(total))), None)
    return lambda p: jax.lax.scan(lambda c, _: body(p, c), jnp.asarray(0.0), None, length=3)[0]


def _hvp(L: Callable, p: Any, d: Any) -> Any:
    return jax.jvp(jax.grad(L), (p,), (d,))[1]


def _reverse_over_reverse(L: Callable, p: Any, d: Any) -> Any:
    return jax.grad(lambda p: _dot(jax.grad(L)(p), d))(p)


S = jnp.array([1.0, 0.3])

# (L, p, d): a real function of a pytree, a point, a direction.
TRANSFORMS: dict[str, Callable[[Callable, Any, Any], Any]] = {
    "value": lambda L, p, d: L(p),
    "jvp": lambda L, p, d: jax.jvp(L, (p,), (d,)),
    "vjp": lambda L, p, d: jax.grad(L)(p),
    "linearize": lambda L, p, d: jax.linearize(L, p)[1](d),
    "checkpoint": lambda L, p, d: jax.grad(jax.checkpoint(L))(p),
    "scan": lambda L, p, d: jax.grad(_in_a_scan(L))(p),
    "forward over forward": lambda L, p, d: jax.jvp(
        lambda p: jax.jvp(L, (p,), (d,))[1], (p,), (d,)
    ),
    "forward over reverse": _hvp,
    "reverse over reverse": _reverse_over_reverse,
    "reverse over forward": lambda L, p, d: jax.grad(lambda p: jax.jvp(L, (p,), (d,))[1])(p),
    "linearize the gradient": lambda L, p, d: jax.linearize(jax.grad(L), p)[1](d),
    "checkpoint, second order": lambda L, p, d: _hvp(jax.checkpoint(L), p, d),
    "checkpoint, reverse twice": lambda L, p, d: _reverse_over_reverse(jax.checkpoint(L), p, d),
    "scan, second order": lambda L, p, d: _hvp(_in_a_scan(L), p, d),
    "scan, reverse twice": lambda L, p, d: _reverse_over_reverse(_in_a_scan(L), p, d),
    "jacfwd of jacrev": lambda L, p, d: jax.hessian(_curve(L, p, d))(S),
    "jacrev of jacrev": lambda L, p, d: jax.jacrev(jax.jacrev(_curve(L, p, d)))(S),
    "jacrev of jacfwd": lambda L, p, d: jax.jacrev(jax.jacfwd(_curve(L, p, d)))(S),
    "vmap": lambda L, p, d: jax.vmap(lambda p: jax.grad(L)(p))(_stack(p)),
    "vmap of directions": lambda L, p, d: jax.vmap(lambda d: _hvp(L, p, d))(_stack(d)),
    "vmap of points": lambda L, p, d: jax.vmap(lambda p: _hvp(L, p, d))(_stack(p)),
    "vmap, reverse twice": lambda L, p, d: jax.vmap(lambda p: _reverse_over_reverse(L, p, d))(
        _stack(p)
    ),
    "vmap, nested": lambda L, p, d: jax.vmap(
        lambda p: jax.vmap(lambda d: _hvp(L, p, d), in_axes=-1, out_axes=-1)(
            jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), _stack(d))
        )
    )(_stack(p)),
    "reverse over vmap": lambda L, p, d: jax.grad(lambda P: jnp.sum(jax.vmap(L)(P)))(_stack(p)),
    "reverse over vmap over reverse": lambda L, p, d: jax.grad(
        lambda P: _dot(jax.vmap(jax.grad(L))(P), _stack(d))
    )(_stack(p)),
    "forward over vmap over reverse": lambda L, p, d: jax.jvp(
        jax.vmap(jax.grad(L)), (_stack(p),), (_stack(d),)
    )[1],
    "reverse twice over vmap twice": lambda L, p, d: _reverse_over_reverse(
        lambda p: jnp.sum(jax.vmap(jax.vmap(L))(_stack(_stack(p)))), p, d
    ),
}


# Nearly all the time goes into compiling programs that run once: they needn't be fast ones.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(params=TRANSFORMS)
def transform(request: pytest.FixtureRequest) -> Callable[[Callable, Any, Any], Any]:
    """``(L, p, d) -> numbers``: a derivative of a real function L at p, along d if it needs one."""
    found = TRANSFORMS[request.param]
    run = lambda L: jax.jit(lambda p, d: found(L, p, d), compiler_options=QUICK)
    return lambda L, p, d: run(L)(p, d)
